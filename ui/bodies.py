"""What a request brings: read once within a limit, checked, and written anew, so that what is checked is what arrives.

The framework takes any JSON for an event: a server's file path as the value of a text box, numbers that cannot be
sent back, nesting that ends in a crash. Here only what this app's own pages send goes through.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope

MAX_BODY_BYTES: Final = 1024 * 1024
BODY_TIMEOUT_S: Final = 30.0
_LENGTH: Final = re.compile(r"[0-9]{1,20}")
MAX_DEPTH: Final = 16
MAX_HASH_CHARS: Final = 64
EXACT_INTEGERS: Final = 2**53
_LIKE_KEYS: Final = frozenset({"index", "value", "liked"})
MAX_CHOICES: Final = 100
_CHOICE: Final = re.compile(r"[0-9A-Za-z_.-]{1,100}")
"""What the pages offer to choose from: ids and keys, never text."""
_HALF: Final = re.compile("[\ud800-\udfff]")
FILE_KEYS: Final = frozenset({"path", "url", "meta", "_type", "orig_name"})
"""Any of them makes the framework take an object for a file, which it copies or fetches before a handler runs."""


class Refusal(Exception):
    """A request that is turned away; the person sees the sentence that `word` names in the texts."""

    def __init__(self, status: int, word: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(word)
        self.status = status
        self.word = word
        self.headers = dict(headers or {})


class Gone(Exception):
    """Whoever sent the request has hung up; nobody reads an answer."""


@dataclass(frozen=True)
class Input:
    """What the guard must know of a component that a page sends the value of."""

    kind: str
    choices: frozenset[str] = frozenset()
    """The only values it can have, where the page was laid out with them; others get theirs for each person."""


@dataclass(frozen=True)
class Event:
    """What the guard must know of one of a page's events."""

    name: str
    queued: bool
    inputs: tuple["Input", ...]
    """The components that its data come from."""
    has_handler: bool
    """False for what only runs in the browser."""
    operators_only: bool
    told: frozenset[str] = frozenset()
    """What the front end tells with it beside the data; a handler would fail without."""


Events = Mapping[int, Event]


def page_events(page: gr.Blocks, operators_only: frozenset[int]) -> Events:
    """Read a page's events once it is laid out and wired.

    Args:
        operators_only: ids of the events that members may not send.
    """
    config = page.get_config_file()
    parts = {part["id"]: _input(part) for part in config["components"]}
    return {
        event["id"]: Event(
            name=str(event["api_name"]),
            queued=bool(event["queue"]),
            inputs=tuple(parts[part] for part in event["inputs"]),
            has_handler=bool(event["backend_fn"]),
            operators_only=event["id"] in operators_only,
            told=_LIKE_KEYS if any(trigger == "like" for _, trigger in event["targets"]) else frozenset(),
        )
        for event in config["dependencies"]
    }


def _input(part: Mapping[str, Any]) -> Input:
    choices = part["props"].get("choices") if part["type"] in _CHOOSING else None
    return Input(part["type"], frozenset(value for _, value in choices or ()))


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """Read a whole body.

    Raises:
        Refusal: it is too large, by its own word or in fact, or takes too long: memory and threads are for everybody.
        Gone: the sender hung up.
    """
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise Refusal(400, "malformed")
    if int(length) > MAX_BODY_BYTES:
        raise Refusal(413, "too_large")
    body = bytearray()
    try:
        with anyio.fail_after(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise Refusal(413, "too_large")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(408, "too_slow") from None


def replayed(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """Return the request with this body, as if it had just arrived."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(len(body))
    del headers["transfer-encoding"]
    left = [body]

    async def receive_again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return {**scope, "headers": headers.raw}, receive_again


def check_event(body: bytes, headers: Headers, events: Events) -> tuple[Event, str, bytes]:
    """Check what a page sends for one of its events; returns the event, the page's hash, and the body to pass on.

    Raises:
        Refusal: not what this page sends; a server's files or a crash would be the answer.
    """
    sent = _loaded(body, headers)
    number = sent.get("fn_index")
    event = events.get(number) if type(number) is int else None
    if event is None or not event.has_handler:
        raise Refusal(404, "unknown_event")
    _check_values(sent)
    data, told, trigger = sent.get("data"), sent.get("event_data"), sent.get("trigger_id")
    if not isinstance(data, list) or len(data) != len(event.inputs):
        raise Refusal(422, "malformed")
    for value, part in zip(data, event.inputs, strict=True):
        if not _fits(value, part):
            raise Refusal(422, "malformed")
    if (
        not isinstance(told, dict | None)
        or not event.told <= set(told or ())
        or not (trigger is None or type(trigger) is int)
    ):
        raise Refusal(422, "malformed")
    page = _page_hash(sent)
    # an empty box may arrive as null, which no handler awaits
    data = [
        "" if value is None and part.kind == "textbox" else value
        for value, part in zip(data, event.inputs, strict=True)
    ]
    kept = {"data": data, "event_data": told, "fn_index": number, "trigger_id": trigger, "session_hash": page}
    return event, page, _dumped(kept)


def check_cancel(body: bytes, headers: Headers) -> tuple[str, bytes]:
    """Check what a page sends to cancel an event; returns the page's hash and the body to pass on.

    Raises:
        Refusal: not what a page sends.
    """
    sent = _loaded(body, headers)
    number, event_id = sent.get("fn_index"), sent.get("event_id")
    if type(number) is not int or not isinstance(event_id, str) or len(event_id) > MAX_HASH_CHARS:
        raise Refusal(422, "malformed")
    page = _page_hash(sent)
    return page, _dumped({"session_hash": page, "fn_index": number, "event_id": event_id})


def is_page_hash(value: Any) -> bool:
    """Say whether this can be what a page calls itself."""
    return isinstance(value, str) and 0 < len(value) <= MAX_HASH_CHARS and value.isascii() and value.isalnum()


def _page_hash(sent: Mapping[str, Any]) -> str:
    page = sent.get("session_hash")
    if not is_page_hash(page):
        raise Refusal(422, "malformed")
    return str(page)


def _loaded(body: bytes, headers: Headers) -> dict[str, Any]:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "malformed")
    try:
        sent = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal(400, "malformed") from None
    if not isinstance(sent, dict):
        raise Refusal(422, "malformed")
    return sent


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_values(sent: Any) -> None:
    """Check that nothing in it is a file, nested without end, or a number or text that cannot be sent back."""
    left: list[tuple[Any, int]] = [(sent, 0)]
    while left:
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise Refusal(422, "malformed")
        if isinstance(value, dict):
            if not FILE_KEYS.isdisjoint(value):
                raise Refusal(422, "file")
            left.extend((inner, depth + 1) for pair in value.items() for inner in pair)
        elif isinstance(value, list):
            left.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, str) and _HALF.search(value):
            raise Refusal(422, "half")  # it has no bytes: what is stored would be something else
        elif isinstance(value, float) and not math.isfinite(value):
            raise Refusal(422, "malformed")
        elif isinstance(value, int) and abs(value) > EXACT_INTEGERS:
            raise Refusal(422, "malformed")


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_choice(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(_CHOICE.fullmatch(value)))


def _is_choices(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_CHOICES and all(item and _is_choice(item) for item in value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


_FITTING: Final[Mapping[str, Callable[[Any], bool]]] = {
    "textbox": _is_text,
    "radio": _is_choice,
    "dropdown": _is_choice,
    "checkbox": _is_flag,
    "checkboxgroup": _is_choices,
}
_CHOOSING: Final = frozenset({"radio", "dropdown", "checkboxgroup"})


def _fits(value: Any, part: Input) -> bool:
    """Say whether a component can have sent this.

    The framework refuses a wrong choice too, but writes it into the log: so nothing that could be somebody's text gets
    as far as that.
    """
    if not _FITTING.get(part.kind, _is_plain)(value):
        return False
    chosen = value if isinstance(value, list) else [] if value is None else [value]
    return not part.choices or part.choices.issuperset(chosen)


def _dumped(sent: Mapping[str, Any]) -> bytes:
    return json.dumps(sent, ensure_ascii=False).encode()
