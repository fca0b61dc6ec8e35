"""A small server that speaks the OpenAI protocol as documented, on a real socket; what it answers is up to the test."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

Asked = dict[str, Any]


def event(data: object) -> bytes:
    """One server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None) -> bytes:
    """One chunk of a reply."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], "usage": None})


def usage(prompt: int, new: int) -> bytes:
    """The chunk before the last, which tells the counts."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": new}})


DONE = event(b"[DONE]")


def refusal(status: int, message: str) -> JSONResponse:
    """An error in the documented shape."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


class ModelServer:
    """What was asked, how many hung up, and how it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.models: Any = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
        self.asked: list[Asked] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_at_once = self.hung_up = 0
        self.answer: Callable[[Asked], Response] = self.echo
        self.adapters: dict[str, str] | None = None
        """Name -> path of what was loaded; None where there are no routes for it."""

    def echo(self, asked: Asked) -> Response:
        """Answer with the last message, word by word."""
        words = f"You said: {asked['messages'][-1]['content']} ({asked['model']})".split(" ")
        texts = [word if place == 0 else f" {word}" for place, word in enumerate(words)]
        return self.stream(chunk(""), *map(chunk, texts), chunk(finish="stop"), usage(7, len(words)), DONE)

    def stream(self, *pieces: bytes | float, breaks: bool = False) -> Response:
        """Stream bytes as they are; a number is a pause in seconds."""

        async def flow() -> AsyncIterator[bytes]:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            try:
                for piece in pieces:
                    if isinstance(piece, bytes):
                        yield piece
                    await asyncio.sleep(piece if isinstance(piece, float) else 0)
            except asyncio.CancelledError:
                self.hung_up += 1
                raise
            finally:
                self.under_way -= 1
            if breaks:
                raise ConnectionAbortedError

        return StreamingResponse(flow(), media_type="text/event-stream")

    def whole(self, asked: Asked) -> Response:
        """Answer as echo does, in one piece."""
        message = {"role": "assistant", "content": f"You said: {asked['messages'][-1]['content']} ({asked['model']})"}
        return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def with_adapters(self, asked: Asked) -> Response:
        """Answer for the base and for what was loaded, as vLLM does; what is not known is 404."""
        if asked["model"] not in {"tiny", *(self.adapters or {})}:
            return refusal(404, f"The model `{asked['model']}` does not exist.")
        return self.echo(asked) if asked.get("stream") else self.whole(asked)

    def load(self, asked: Asked) -> Response:
        """Load an adapter as vLLM documents it: only a folder that is there, and each name once."""
        name, path = asked.get("lora_name"), asked.get("lora_path")
        if self.adapters is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if not name or not path:
            return refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            return refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            return refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = path
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    def wait_for(self, true: Callable[[], bool], seconds: float = 5.0) -> bool:
        """Wait until something holds here, and say whether it does."""
        until = time.monotonic() + seconds
        while not true() and time.monotonic() < until:
            time.sleep(0.005)
        return true()


@contextmanager
def running_server() -> Iterator[Callable[[], ModelServer]]:
    """Serve on a free port until the block ends; each call gives the port to a server that knows of nothing before."""
    app, current = FastAPI(), [ModelServer()]

    @app.get("/v1/models")
    def models() -> Any:
        return current[0].models

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        asked, answers = await request.json(), current[0]
        answers.asked.append(asked)
        answers.keys.append(request.headers.get("authorization"))
        return answers.answer(asked)

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        current[0].keys.append(request.headers.get("authorization"))
        return current[0].load(await request.json())

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert current[0].wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]

    def fresh() -> ModelServer:
        current[0] = ModelServer()
        current[0].url = f"http://127.0.0.1:{port}"
        return current[0]

    yield fresh
    server.should_exit = True
    thread.join(timeout=10)
