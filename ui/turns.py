"""Replies that wait until it is their turn at the engine. Knows neither who asks nor what is stored."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Final

from assistant.engine import Engine, Place, Reply, Request
from assistant.errors import AssistantError

LOOK_S: Final = 0.1
"""How soon a reply that waits hears that nobody wants it any more."""


class WaitingReply(Reply):
    """Grows as the engine's own reply does, once there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._source: Reply | None = None

    @property
    def waits(self) -> bool:
        """Whether the engine has not been asked yet."""
        return self._source is None and not self.done

    @property
    def place(self) -> Place | None:
        """Where it stands in the engine's line, once it does."""
        return self._source.place if self._source else None

    def cancel(self) -> None:
        """Stop, or do not begin."""
        super().cancel()
        if self._source:
            self._source.cancel()

    def follow(self, source: Reply) -> None:
        """Grow as another reply does, to its end."""
        self._source = source
        self.prompt_tokens, self.dropped_turns = source.prompt_tokens, source.dropped_turns
        self.control_tokens = source.control_tokens
        if self.cancelled:
            source.cancel()
        with contextlib.suppress(AssistantError):  # told by `finish` and `error`
            for piece in source.pieces():
                self.grow(piece, tokens=0)
        self.new_tokens = source.new_tokens
        if source.refusal:
            self.refuse(source.refusal)
        self.end(source.finish or "failed", source.error)


def submit_in_turn(engine: Engine, requests: Sequence[Request], turn: threading.Event | None) -> list[Reply]:
    """Ask the engine at once when it is their turn; else return replies that begin when it is.

    Raises:
        AssistantError: the engine refused at once; nothing begins.
    """
    if turn is None or turn.is_set():
        return engine.submit(requests)
    waiting = [WaitingReply() for _ in requests]
    threading.Thread(target=_begin_later, args=(engine, requests, turn, waiting), daemon=True).start()
    return list(waiting)


def _begin_later(
    engine: Engine, requests: Sequence[Request], turn: threading.Event, waiting: list[WaitingReply]
) -> None:
    while not turn.wait(LOOK_S):
        if all(reply.cancelled for reply in waiting):
            break
    if all(reply.cancelled for reply in waiting):
        for reply in waiting:
            reply.end("cancelled")
        return
    try:
        begun = engine.submit(requests)
    except AssistantError as error:
        for reply in waiting:
            reply.refuse(error)
        return
    for reply, source in zip(waiting, begun, strict=True):
        threading.Thread(target=reply.follow, args=(source,), daemon=True).start()
