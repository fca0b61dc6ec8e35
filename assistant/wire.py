"""The words of an OpenAI-compatible server: requests out, server-sent events in. Pure; opens no connection.

Source: https://platform.openai.com/docs/api-reference/chat-streaming and
https://html.spec.whatwg.org/multipage/server-sent-events.html

Does not cover tool calls, several choices a request, or what a model thinks aloud beside its reply.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assistant.engine import Finish, Message, Sampling
from assistant.errors import GenerationFailed

MAX_LINE_BYTES = 1 << 20
"""A chunk holds a few characters; who sends a longer line sends no chunks."""
DONE = "[DONE]"
TOO_LONG = "The message is longer than the context of the model's server. Shorten it and send it again."
OVERFLOW = "context_length_exceeded"
"""The protocol's own word for it, which the sentence beside it need not say."""
_OVERFLOW = re.compile(r"context[ _-]?(length|size|window)|exceeds? context", re.IGNORECASE)
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a last \r may be half of \r\n


@dataclass(frozen=True)
class Chunk:
    """What one event adds to a reply."""

    text: str = ""
    finish: Finish | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    """Of the whole reply, in the chunk that says it."""
    error: str | None = None
    """The server's own words for what went wrong."""


class Events:
    """Cuts a stream of bytes into the data of its events.

    By hand, because text libraries also end lines at U+2028 and others, which may stand in a chunk's JSON; and because
    a character whose bytes come in two pieces is whole only in its line.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """Take the next bytes and return the data of the events that they complete.

        Raises:
            GenerationFailed: a line has no end or is not UTF-8.
        """
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        if len(self._rest) > MAX_LINE_BYTES:
            raise not_the_protocol("a line without an end")
        return [data for line in lines for data in self._take(line)]

    def end(self) -> list[str]:
        """Return the data of a last event that no empty line follows."""
        return self.feed(b"\n\n")

    def _take(self, line: bytes) -> list[str]:
        if not line:
            data, self._data = self._data, []
            return ["\n".join(data)] if data else []
        field, _, value = line.partition(b":")
        if field == b"data":
            try:
                self._data.append(value.removeprefix(b" ").decode())
            except UnicodeDecodeError as error:
                raise not_the_protocol("text that is not UTF-8") from error
        return []


class Characters:
    """Holds back half a character: some servers send the two halves of an emoji as two chunks of JSON."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """Return what can be shown of the text so far that was not returned yet."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _whole(text)

    def end(self) -> str:
        """Return what is left: a half that never got its other half is a replacement character."""
        half, self._half = self._half, ""
        return _whole(half)


def request_body(messages: Sequence[Message], sampling: Sampling, model: str) -> bytes:
    """Return the JSON that asks for one streamed reply."""
    fields: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message["role"], "content": message["content"]} for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return json.dumps(fields).encode()


def parse_chunk(data: str) -> Chunk:
    """Read the data of one event, other than DONE.

    Raises:
        GenerationFailed: it is not a chunk; a reply put together from guesses would be stored as the model's.
    """
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise not_the_protocol("something that is not JSON") from error
    if not isinstance(chunk, dict):
        raise not_the_protocol("JSON that is no chunk of a reply")
    if chunk.get("error"):
        return Chunk(error=error_message(chunk))
    choices = chunk.get("choices") or []  # null beside the usage, from some servers
    try:
        text, finish = _choice(choices[0]) if choices else ("", None)
        usage = chunk.get("usage") or {}
        return Chunk(text, finish, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise not_the_protocol("JSON that is no chunk of a reply") from error


def error_message(body: Any) -> str:
    """Return what the JSON of an error says, as one short line; empty when it says nothing."""
    said = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(said, dict):
        words, code = said.get("message") or said.get("detail") or "", said.get("code")
        said = f"{code}: {words}" if code == OVERFLOW and isinstance(words, str) else words
    return " ".join(said.split())[:200] if isinstance(said, str) else ""


def is_overflow(message: str) -> bool:
    """Say whether a server's error is that prompt and reply do not fit its context; every server words it its way."""
    return _OVERFLOW.search(message) is not None


def leave_out_turns(messages: Sequence[Message]) -> list[Message]:
    """Leave out the earliest quarter of the turns, up to the next of the person; empty when only the last is left.

    The system prompt and the last message stay.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    start = max(1, len(turns) // 4)
    while start < len(turns) - 1 and turns[start]["role"] != "user":
        start += 1
    return [*system, *turns[start:]] if len(turns) > 1 else []


def not_the_protocol(what: str) -> GenerationFailed:
    """Return the error for an answer that is none of the protocol's."""
    return GenerationFailed(f"The model's server sent {what}. Check that NIGHTSCHOOL_ENGINE is OpenAI-compatible.")


def _choice(choice: dict[str, Any]) -> tuple[str, Finish | None]:
    text = (choice.get("delta") or {}).get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    reason = choice.get("finish_reason")
    finish: Finish = "length" if reason == "length" else "stop"
    return text, finish if reason else None


def _count(value: Any) -> int | None:
    return None if value is None else max(0, int(value))


def _whole(text: str) -> str:
    """Join halves that stand together, and replace those that stand alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
