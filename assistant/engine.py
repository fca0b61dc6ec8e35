"""What an engine promises: requests in, replies that grow out. The promise only, so that it imports no torch.

An engine is used from any thread. A Reply is written by the engine's own thread and read by others.
Engines: `local.LocalEngine`, `remote.RemoteEngine`, `fake.FakeEngine`.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypedDict

from assistant.errors import AssistantError, GenerationFailed

Finish = Literal["stop", "length", "cancelled", "failed"]
SERVER = "server:"
"""How a base's id begins when a server holds the weights: which they are cannot be seen from here."""
MOST_SEED = 2**62
"""What a seed may be, either side of 0; several replies take those that follow."""


class Message(TypedDict):
    """One turn. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How one reply is drawn. Temperature 0 is greedy; the same seed draws the same from the same probabilities.

    Those change by rounding with what is computed beside a reply and with what is known of its prompt.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts before whose first one the reply ends."""


def until_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first of the stop texts in it, and whether there is one."""
    found = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class Place(NamedTuple):
    """Where a reply stands in the engine's line."""

    ahead: int
    """Questions that are begun before its own."""
    seconds: float | None
    """How long that takes, as far as one can tell; None before anybody waited."""


@dataclass(frozen=True)
class Request:
    """One reply wanted. `adapter` is an adapter id, or None for the bare base."""

    messages: Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str | None = None


class Pulse:
    """When an engine last produced a token, in the time of `time.monotonic`; None before the first one."""

    at: float | None = None


class Reply:
    """A reply that grows. Reading never blocks the engine; `cancel` frees the model at its next token.

    Args:
        pulse: the engine's, which each token moves.
    """

    def __init__(self, pulse: Pulse | None = None) -> None:
        self.text = ""
        self.finish: Finish | None = None
        self.error = ""
        self.refusal: AssistantError | None = None
        """Why a reply that failed was never begun: for its sender to mend, or to wait for."""
        self.prompt_tokens = 0
        self.new_tokens = 0
        self.dropped_turns = 0
        """Earlier turns left out because the conversation outgrew the context."""
        self.control_tokens = 0
        """Control tokens in people's text that were kept as plain text."""
        self.first_token_s: float | None = None
        self.gaps_s: list[float] = []
        """Seconds between one token and the next."""
        self.created = time.monotonic()
        self._pulse = pulse or Pulse()
        self._last_token: float | None = None
        self._place: Place | None = None
        self._listeners: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._cancelled = threading.Event()

    @property
    def done(self) -> bool:
        """Whether the reply has ended, in whatever way."""
        return self.finish is not None

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._cancelled.is_set()

    @property
    def place(self) -> Place | None:
        """Where it stands in the engine's line; None once it is begun."""
        return self._place

    def cancel(self) -> None:
        """Ask the engine to stop after the token under way."""
        self._cancelled.set()

    def wait_at(self, place: Place | None) -> None:
        """Engine side: say where it stands in line; None that it is begun."""
        self._place = place

    def grow(self, text: str, tokens: int = 1) -> None:
        """Engine side: append text (may be empty while a character is incomplete).

        NUL is left out: a model can write it, and no store and no page takes it.
        """
        with self._changed:
            now = time.monotonic()
            if self.first_token_s is None:
                self.first_token_s = now - self.created
            if tokens:
                if self._last_token is not None:
                    self.gaps_s.append(now - self._last_token)
                self._last_token = self._pulse.at = now
            self.text += text.replace("\0", "")
            self.new_tokens += tokens
            self._tell()

    def end(self, finish: Finish, error: str = "") -> None:
        """Engine side: close the reply. The first end counts; later ones change nothing."""
        with self._changed:
            if self.finish is None:
                self.error = error
                self.finish = finish
            self._tell()
        self._ended.set()

    def refuse(self, error: AssistantError) -> None:
        """Engine side: close a reply that was accepted, and turns out to be one that cannot be begun."""
        with self._changed:
            if self.finish is None:
                self.refusal = error
            self.end("failed", str(error))

    def wait(self, timeout_s: float | None = None) -> str:
        """Block until the reply has ended and return its text.

        Raises:
            PromptTooLong, EngineBusy: it was refused after all.
            GenerationFailed: the engine met an error.
            TimeoutError: it has not ended in time.
        """
        if not self._ended.wait(timeout_s):  # woken once, not by every token: those are the model's time
            raise TimeoutError("The reply has not ended in time.")
        self._raise_if_failed()
        return self.text

    def pieces(self) -> Iterator[str]:
        """Yield the text as it comes, new part by new part.

        Raises:
            PromptTooLong, EngineBusy: it was refused after all.
            GenerationFailed: the engine met an error.
        """
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda start=seen: self.done or len(self.text) > start)  # type: ignore[misc]
                text, done = self.text, self.done
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if done:
                self._raise_if_failed()
                return

    async def snapshots(self, at_most_per_s: float = 15.0) -> AsyncIterator[str]:
        """Yield the whole text so far whenever it has grown or its place in line has changed, and once at the end.

        At most so often but for the end, which is told at once.

        Never raises for a failed reply: look at `finish` and `error` afterwards.
        """
        with self._heard(lambda: self.done) as ended:
            shown = None
            while True:
                done, now = self.done, (self.text, self.place)  # in this order: a reply seen as done is seen whole
                if now != shown or done:
                    shown = now
                    yield now[0]
                if done:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), 1 / at_most_per_s)

    async def growth(self) -> AsyncIterator[str]:
        """Yield each new part as soon as it comes, token by token.

        Never raises for a failed reply: look at `finish` and `error` afterwards.
        """
        with self._heard(lambda: True) as grown:
            seen = 0
            while True:
                grown.clear()
                done, text = self.done, self.text  # in this order: a reply seen as done is seen whole
                if len(text) > seen:
                    yield text[seen:]
                    seen = len(text)
                elif done:
                    return
                else:
                    await grown.wait()

    @contextmanager
    def _heard(self, matters: Callable[[], bool]) -> Iterator[asyncio.Event]:
        """Give an event of the running loop, which is set whenever the reply changes in a way that matters."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if matters():
                with suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                    loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._listeners.append(tell)
        try:
            yield changed
        finally:
            with self._changed:
                self._listeners.remove(tell)

    def _tell(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def _raise_if_failed(self) -> None:
        if self.finish == "failed":
            raise self.refusal or GenerationFailed(self.error)


class Engine(Protocol):
    """The promise."""

    base_id: str
    """Names the weights: the same id, the same base."""
    numeric_form: str
    """How they are held, for example `int4` or `bf16`."""
    pulse: Pulse
    """When it last produced a token."""

    def submit(self, requests: Sequence[Request]) -> list[Reply]:
        """Start one or several replies together and return at once.

        Requests of one call run as one batch when they can; calls run beside each other.

        Raises:
            PromptTooLong, EngineBusy, AdapterError: refused before anything starts.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """What it counts of itself since its start, by the names that /metrics shows; may be nothing."""
        ...

    def close(self) -> None:
        """Stop: replies under way end as cancelled."""
        ...
