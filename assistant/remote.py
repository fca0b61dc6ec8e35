"""The engine's promise over any OpenAI-compatible server: vLLM, llama.cpp, Ollama and the like.

One thread runs all requests on one event loop. To stop is to hang up: the server notices and frees its model. The
server's tokenizer is not here, so nothing is cut beforehand: when the server says that a conversation does not fit,
its earliest turns are left out and it is asked again, and the reply tells how many. Which weights the server holds
cannot be seen from here; it is known by the name of its model alone.

Does not cover control tokens in people's text, which are the server's to handle.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress

import httpx

from assistant.engine import SERVER, Engine, Finish, Message, Pulse, Reply, Request
from assistant.errors import EngineBusy, GenerationFailed, ModelUnavailable, PromptTooLong, SettingsError
from assistant.settings import ServerSettings
from assistant.wire import (
    DONE,
    TOO_LONG,
    Characters,
    Chunk,
    Events,
    error_message,
    is_overflow,
    leave_out_turns,
    not_the_protocol,
    parse_chunk,
    request_body,
)

log = logging.getLogger(__name__)

CONNECT_S = 10.0
HEARD_WITHIN_S = 0.1
"""How soon a stop is heard while the server is silent; while it speaks, at its next piece."""
MAX_ERROR_BYTES = 1 << 16
_HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}
REFUSALS = {
    401: "The model's server refuses the API key (HTTP 401). Set NIGHTSCHOOL_SERVER__API_KEY.",
    403: "The model's server refuses the API key (HTTP 403). Set NIGHTSCHOOL_SERVER__API_KEY.",
    429: "The model's server has too much to do (HTTP 429). Try again in a minute.",
}


def is_server(engine: str) -> bool:
    """Say whether the setting names a server."""
    return engine.startswith(("http://", "https://"))


def server_url(engine: str) -> str:
    """Return the address under which the server's routes lie, /v1 at its end.

    Raises:
        SettingsError: it is no address, or holds a password, which would show wherever settings are listed.
    """
    try:
        url = httpx.URL(engine)
    except httpx.InvalidURL as error:
        raise SettingsError(f"NIGHTSCHOOL_ENGINE is no address ({error}). Write it as http://HOST:PORT/v1.") from error
    if url.userinfo:
        raise SettingsError("NIGHTSCHOOL_ENGINE holds a password. Use NIGHTSCHOOL_SERVER__API_KEY instead.")
    if not url.host or url.query or url.fragment:
        raise SettingsError(f"NIGHTSCHOOL_ENGINE is no server's address ({engine}). Write it as http://HOST:PORT/v1.")
    path = url.path.rstrip("/")
    return str(url.copy_with(path=path if path.endswith("/v1") else f"{path}/v1"))


def find_model(url: str, api_key: str = "") -> str:
    """Ask the server for the name of the one model that it offers.

    Raises:
        ModelUnavailable: it cannot be reached, is no such server, or offers none or several.
    """
    try:
        with httpx.Client(headers=bearer(api_key), timeout=CONNECT_S, trust_env=False) as client:
            response = client.get(f"{url}/models")
        response.raise_for_status()
        # vLLM lists adapters beside the models, each with its parent
        names = [model["id"] for model in response.json()["data"] if not model.get("parent")]
    except httpx.HTTPStatusError as error:
        raise ModelUnavailable(_refusal(error.response.status_code, "", "", "")) from error
    except httpx.HTTPError as error:
        raise ModelUnavailable(
            f"The model's server at {url} cannot be reached ({_what(error)}). Start it, or correct NIGHTSCHOOL_ENGINE."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailable(f"What answers at {url} is no OpenAI-compatible server. Check the address.") from error
    if len(names) != 1:
        listed = ", ".join(map(str, names[:5])) or "none"
        raise ModelUnavailable(
            f"The server at {url} offers {len(names)} models ({listed}). Name the base in NIGHTSCHOOL_SERVER__MODEL."
        )
    return str(names[0])


class RemoteEngine:
    """The engine over a server.

    Args:
        url: from `server_url`.
        model: what the server calls the base; an adapter is asked for by its own id.
        server: key, limits and deadlines.
        queue_limit: requests that may wait for a place.
        load: loads an adapter by its id, on a server that lost it in a restart; None where the server loads none.
    """

    numeric_form = "server"

    def __init__(
        self,
        url: str,
        model: str,
        server: ServerSettings,
        queue_limit: int,
        load: Callable[[str], None] | None = None,
    ) -> None:
        self.base_id = f"{SERVER}{model}"
        self.pulse = Pulse()
        self._url = url
        self._model = model
        self._key = server.api_key.get_secret_value()
        self._limits = server
        self._load = load
        self._loading: dict[str, asyncio.Future[bool]] = {}
        self._most = server.at_once + queue_limit
        self._places = asyncio.Semaphore(server.at_once)
        self._running: set[Reply] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._client = httpx.AsyncClient(
            headers=bearer(self._key),
            timeout=httpx.Timeout(server.silence_s, connect=min(CONNECT_S, server.silence_s), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=server.at_once),
            trust_env=False,  # no proxy or password from the environment: chats go where the setting says
            verify=url.startswith("https:"),  # reading the certificates takes a while, and http has none
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> list[Reply]:
        """Send the requests, each on a connection of its own; beyond the places there are they wait here.

        What the server refuses ends the reply as failed: it is not known before.

        Raises:
            EngineBusy: too many wait already, or the engine is closing.
        """
        replies = [Reply(self.pulse) for _ in requests]
        with self._lock:
            if self._closed.is_set():
                raise EngineBusy("The assistant is shutting down. Try again in a minute.")
            if len(self._running) >= self._most:
                raise EngineBusy("Too many replies are waiting. Try again in a moment.")
            self._running.update(replies)
            for request, reply in zip(requests, replies, strict=True):
                asyncio.run_coroutine_threadsafe(self._serve(request, reply), self._loop)
        return replies

    def counters(self) -> Mapping[str, int]:
        """None: the server counts for itself."""
        return {}

    def close(self) -> None:
        """Hang up on everything under way; replies end as cancelled."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()

    async def _hang_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for reply in list(self._running):
            reply.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _serve(self, request: Request, reply: Reply) -> None:
        """See a reply to its end, and hang up when it is stopped or takes too long."""
        talk = asyncio.ensure_future(self._talk(request, reply))
        while not talk.done():
            await asyncio.wait([talk], timeout=HEARD_WITHIN_S)
            if reply.cancelled:
                reply.end("cancelled")
            elif time.monotonic() - reply.created > self._limits.deadline_s:
                reply.end("failed", "The reply took longer than it may. Try again, or ask for a shorter one.")
            if reply.done:
                talk.cancel()
        with suppress(asyncio.CancelledError):
            if error := talk.exception():
                log.error("a reply over the server failed", exc_info=error)
                reply.end("failed", f"The reply failed ({type(error).__name__}). Try again; details are in the log.")
        reply.end("cancelled")
        with self._lock:
            self._running.discard(reply)

    async def _talk(self, request: Request, reply: Reply) -> None:
        try:
            async with self._places:
                await self._ask_until_it_fits(request, reply)
        except PromptTooLong as error:
            reply.refuse(error)
        except GenerationFailed as error:
            reply.end("failed", str(error))
        except httpx.TimeoutException:
            reply.end("failed", "The model's server did not answer in time. Try again in a minute.")
        except httpx.ConnectError as error:
            said = f"The model's server cannot be reached ({_what(error)}). Start it, or correct NIGHTSCHOOL_ENGINE."
            reply.end("failed", said)
        except httpx.HTTPError as error:
            reply.end("failed", f"The model's server broke off ({_what(error)}). Send the message again.")

    async def _ask_until_it_fits(self, request: Request, reply: Reply) -> None:
        """Ask, and ask again without the earliest turns for as long as the server says that they do not fit.

        Raises:
            PromptTooLong: the last message alone does not fit.
            GenerationFailed: the server failed.
        """
        messages = list(request.messages)
        may_load = self._load is not None and request.adapter is not None
        while not await self._ask(request, messages, reply, may_load=may_load):
            fewer = leave_out_turns(messages)
            if not fewer:
                raise PromptTooLong(TOO_LONG)
            reply.dropped_turns += len(messages) - len(fewer)
            messages = fewer

    async def _ask(
        self, request: Request, messages: Sequence[Message], reply: Reply, *, may_load: bool = False
    ) -> bool:
        """Ask once; False when the server says that the conversation does not fit its context.

        A server that does not know the adapter is told to load it, and is asked again.

        Raises:
            GenerationFailed: the server refused otherwise, or what it sent is not the protocol's.
        """
        model = request.adapter or self._model
        url, body = f"{self._url}/chat/completions", request_body(messages, request.sampling, model)
        async with self._client.stream("POST", url, content=body, headers=_HEADERS) as response:
            streams = response.headers.get("content-type", "").startswith("text/event-stream")
            if response.status_code == 200 and streams:
                return await self._read(response, reply)
            said = await _error_body(response)
        if is_overflow(said):
            return False
        if response.status_code == 404 and may_load:
            assert request.adapter
            await self._load_again(request.adapter)
            return await self._ask(request, messages, reply)
        if response.status_code == 200 and not said:
            raise not_the_protocol("no stream")
        raise GenerationFailed(_refusal(response.status_code, said, self._key, model))

    async def _load_again(self, adapter: str) -> None:
        """Have the server load what it does not know any more; all replies that wait for it share one request.

        Raises:
            GenerationFailed: it does not; the log says why.
        """
        waiting = self._loading.get(adapter)
        if waiting is None:
            waiting = self._loading[adapter] = self._loop.create_future()
            threading.Thread(target=self._load_aside, args=(adapter, waiting), daemon=True).start()
        if not await asyncio.shield(waiting):
            raise GenerationFailed(
                f"The model's server does not know {adapter} and does not load it. Tell the operator."
            )

    def _load_aside(self, adapter: str, waiting: "asyncio.Future[bool]") -> None:
        """Load in a thread of its own, which nobody waits for when the app is told to stop."""
        assert self._load
        try:
            self._load(adapter)
            loaded = True
        except Exception as error:  # the thread's edge: whoever waits must hear of it
            log.error("%s is not loaded on the model's server: %s", adapter, error)
            loaded = False

        def tell() -> None:
            self._loading.pop(adapter, None)
            waiting.set_result(loaded)

        with suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(tell)

    async def _read(self, response: httpx.Response, reply: Reply) -> bool:
        """Let the reply grow by what the server streams, and end it; False when it says that nothing fits.

        Raises:
            GenerationFailed: the server said so, or broke off before the end.
        """
        growth = _Growth(reply)
        try:
            async for data in _data(response.aiter_bytes()):
                if reply.done or reply.cancelled:
                    continue  # to the stream's end, so that the connection can be used again; _serve waits no longer
                if data == DONE:
                    growth.end()
                    continue
                chunk = parse_chunk(data)
                if chunk.error is not None:
                    if is_overflow(chunk.error) and not reply.text:
                        return False
                    raise GenerationFailed(_refusal(200, chunk.error, self._key, ""))
                growth.add(chunk)
        except httpx.HTTPError:
            if growth.finish is None:  # else the reply is whole, and only the counts are lost
                raise
        if not reply.done and not reply.cancelled:
            if growth.finish is None:
                raise GenerationFailed("The model's server broke off in mid-reply. Send the message again.")
            growth.end()
        return True


class _Growth:
    """A reply as chunks come in."""

    def __init__(self, reply: Reply) -> None:
        self.finish: Finish | None = None
        self._reply = reply
        self._characters = Characters()
        self._counted = Chunk()

    def add(self, chunk: Chunk) -> None:
        """Take a chunk; each counts as one token until the server tells how many there were."""
        if chunk.text:
            self._reply.grow(self._characters.feed(chunk.text))
        self.finish = chunk.finish or self.finish
        if chunk.new_tokens is not None:
            self._counted = chunk

    def end(self) -> None:
        """End the reply with the server's own counts, where it gave any."""
        if rest := self._characters.end():
            self._reply.grow(rest, tokens=0)
        self._reply.prompt_tokens = self._counted.prompt_tokens or 0
        if self._counted.new_tokens is not None:
            self._reply.new_tokens = self._counted.new_tokens
        self._reply.end(self.finish or "stop")


async def _data(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    events = Events()
    async for piece in pieces:
        for data in events.feed(piece):
            yield data
    for data in events.end():
        yield data


async def _error_body(response: httpx.Response) -> str:
    """Read the beginning of an answer that is no stream, and return what it says."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    try:
        return error_message(json.loads(body))
    except (ValueError, RecursionError):
        return ""


def _refusal(status: int, said: str, key: str, model: str) -> str:
    """Say in one sentence why a server gave no reply; its own words are quoted, but never the key."""
    if status in REFUSALS:
        return REFUSALS[status]
    words = said.replace(key, "…") if key else said
    words = words.rstrip(".")
    detail = words if status == 200 else f"HTTP {status}" + (f": {words}" if words else "")
    if status == 404 and model:
        return f"The model's server does not know {model} ({detail}). Load it there, or set NIGHTSCHOOL_SERVER__MODEL."
    if status >= 500 or status == 200:  # an error in the middle of a stream
        return f"The model's server failed ({detail}). Try again in a minute."
    return f"The model's server refused the request ({detail}). Check NIGHTSCHOOL_ENGINE and the server's log."


def _what(error: httpx.HTTPError) -> str:
    """Name what happened to a connection, without addresses."""
    reason = str(error).strip().rstrip(".")
    return " ".join(reason.split())[:120] or type(error).__name__


def bearer(api_key: str) -> dict[str, str]:
    """The header that carries a key, where there is one."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


_promise: Callable[..., Engine] = RemoteEngine
