"""From a stored question to stored replies: the one place of the web app that starts and ends them.

A reply's row exists before its text is shown and is closed whatever happens: finished, stopped, failed, tab
closed. Whoever streams one waits for the database in a thread of its own: a disk that is slow for one person must not
hold up what is being written for all others. Knows nothing about pages.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from assistant.engine import Engine, Finish, Reply, Request, Sampling
from assistant.engine import Message as Turn
from assistant.presets import PRESETS, Preset
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.conversations import read_by_model
from feedback_store.errors import NotYours, StoreError
from feedback_store.records import Message, MessageState, Origin
from ui.limits import Line
from ui.own import own_path
from ui.turns import WaitingReply, submit_in_turn

log = logging.getLogger(__name__)

SEED_LIMIT = 2**31
API_PRESET: Final = "api"
"""In the place of a preset where another program brings its own system prompt."""
WRITERS: Final = 8
"""Threads for the database: of their own number, so that busy handlers keep no reply from being closed."""
Record = Callable[[], Message]
Result = TypeVar("Result")
_STATES: Mapping[Finish, MessageState] = {"stop": "done", "length": "done", "cancelled": "stopped", "failed": "failed"}


class TooManyReplies(Exception):
    """Somebody has as many replies under way as one person may; the person who asked for one more sees it."""


@dataclass(frozen=True)
class Draft:
    """A reply under way: its row in the store, the engine's growing text, and whose it is."""

    message: Message
    reply: Reply
    person_id: int
    left: threading.Event = field(default_factory=threading.Event)
    """Set once nobody looks at it any more."""

    @property
    def waits(self) -> bool:
        """Whether another reply of the same person is written first."""
        return isinstance(self.reply, WaitingReply) and self.reply.waits


class Replies:
    """Starts replies on the live adapter and sees that each ends in the database."""

    keep_every_s = 2.0
    """The most of a reply's writing that is lost when this process is killed."""

    def __init__(self, engine: Engine, store: Store, settings: Settings) -> None:
        self._engine = engine
        self._store = store
        self._sampling = settings.sampling
        self._running: dict[str, Draft] = {}
        self._line = Line(settings.door.generations_per_account)
        self._writers = ThreadPoolExecutor(WRITERS, "replies")
        self.heard: Callable[[Reply], None] = lambda _: None
        """Called with each reply that has ended."""
        self.one_by_one = threading.Lock()
        """Held from the look at what is on screen to what is stored after it: of two at once, the second sees it."""

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Do work on the database off the event loop, and to its end.

        A cancellation that comes meanwhile is heard by the caller's next wait. So a reply that was begun is always
        known to whoever must close it, and what is being closed is closed. Not by tasks: a stopping app cancels all.
        """
        future = asyncio.get_running_loop().run_in_executor(self._writers, work)
        heard = False
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                heard = True
        task = asyncio.current_task()
        if heard and task:
            task.cancel()
        return future.result()

    @contextlib.contextmanager
    def place(self, person_id: int, *, limited: bool) -> Iterator[threading.Event]:
        """Hold one of the places that a person has for replies under way; a round of several takes one.

        What it gives is set once it is their turn to be written: of one person's, one at a time is.

        Args:
            limited: False for the owner of an app without accounts, who has as many as the engine takes.

        Raises:
            TooManyReplies: none is free; one person would keep all others waiting.
        """
        turn = self._line.join(person_id) if limited else threading.Event()
        if turn is None:
            raise TooManyReplies
        try:
            if not limited:
                turn.set()
            yield turn
        finally:
            if limited:
                self._line.leave(person_id, turn)

    def ask(
        self,
        before: Sequence[Message],
        text: str,
        preset_key: str,
        person_id: int,
        record: Record,
        turn: threading.Event | None,
        count: int = 1,
    ) -> tuple[Message, list[Draft]]:
        """Begin `count` replies to a new question, from the same settings and different seeds.

        The engine is asked first, so that what it refuses is not stored and can be sent again.

        Args:
            before: the path that the question follows.
            record: stores the question and returns it.
            turn: of `place`, None where it is come; until then the replies wait, and what the engine refuses when it
                comes ends them as failed.

        Raises:
            AssistantError: the engine refused; nothing was stored.
            StoreError: the question could not be stored; nothing goes on.
        """
        turns = _turns(before)
        if turns and turns[-1]["role"] == "user":
            turns.pop()  # it got no answer, and roles must alternate
        begun = self._submit([*turns, Turn(role="user", content=text)], preset_key, turn, count)
        question = _recorded(begun, record)
        return question, self._begin(question, person_id, begun)

    def answer(
        self,
        turns: Sequence[Turn],
        system: str,
        samplings: Sequence[Sampling],
        adapter: str | None,
        person_id: int,
        record: Record,
        turn: threading.Event,
    ) -> list[Draft]:
        """Begin replies for another program, to turns that it supplies, in its own sampling; see ask.

        Args:
            turns: the last one is the question.
            system: the caller's own system prompt; may be empty.
            adapter: a registered one, or None for the base.

        Raises:
            AssistantError: the engine refused; nothing was stored.
            StoreError: the turns could not be stored; nothing goes on.
        """
        messages = [*([Turn(role="system", content=system)] if system else []), *turns]
        begun = self._start(messages, samplings, adapter, Preset(API_PRESET, API_PRESET, system), turn)
        return self._begin(_recorded(begun, record), person_id, begun)

    def retry(self, question: Message, person_id: int, preset_key: str, turn: threading.Event) -> Draft:
        """Begin another reply to a stored question; see again."""
        return self.again(question, person_id, preset_key, 1, turn)[0]

    def again(
        self, question: Message, person_id: int, preset_key: str, count: int, turn: threading.Event | None = None
    ) -> list[Draft]:
        """Begin `count` more replies to a stored question, from different seeds.

        Args:
            turn: of `place`; None where it is their turn already.

        Raises:
            AssistantError: the engine refused; nothing was stored.
            StoreError: the question is not this person's.
        """
        turns = _turns(own_path(self._store, person_id, question.id))
        return self._begin(question, person_id, self._submit(turns, preset_key, turn, count))

    def _submit(
        self, turns: list[Turn], preset_key: str, turn: threading.Event | None, count: int
    ) -> list[tuple[Origin, Reply]]:
        """Start replies; the live adapter is read here, so that a promotion answers the next message."""
        preset = PRESETS.get(preset_key, PRESETS["plain"])
        adapter = self._store.registry.live().adapter_id
        messages = [Turn(role="system", content=preset.system), *turns]
        return self._start(messages, [self._draw(seed) for seed in distinct_seeds(count)], adapter, preset, turn)

    def _start(
        self,
        messages: Sequence[Turn],
        samplings: Sequence[Sampling],
        adapter: str | None,
        preset: Preset,
        turn: threading.Event | None,
    ) -> list[tuple[Origin, Reply]]:
        requests = [Request(messages, sampling, adapter) for sampling in samplings]
        replies = submit_in_turn(self._engine, requests, turn)
        origins = [self._origin(adapter, preset, sampling) for sampling in samplings]
        return list(zip(origins, replies, strict=True))

    def _begin(self, question: Message, person_id: int, begun: Sequence[tuple[Origin, Reply]]) -> list[Draft]:
        """Store that these replies are under way."""
        drafts: list[Draft] = []
        try:
            for origin, reply in begun:
                row = self._store.conversations.begin_reply(question.id, person_id, origin)
                drafts.append(Draft(row, reply, person_id))
        except StoreError:
            _cancel(begun)
            for draft in drafts:
                self.close(draft)
            raise
        self._running.update((draft.message.id, draft) for draft in drafts)
        threading.Thread(target=self._keep_parts, args=(drafts,), daemon=True).start()
        return drafts

    def close(self, draft: Draft) -> None:
        """Write a reply's end to the store; one still running is stopped and keeps its partial text.

        Of somebody who was erased meanwhile there is nothing to close.
        """
        reply = draft.reply
        if not reply.done:
            reply.cancel()
        finish: Finish = reply.finish or "cancelled"
        if finish == "failed":  # the person is told that it failed, the operator why
            log.warning("a reply failed: %s", reply.error)
        if self._running.pop(draft.message.id, None):
            self.heard(reply)
        with contextlib.suppress(NotYours):
            self._store.conversations.finish_reply(
                draft.message.id, reply.text, _STATES[finish], finish, reply.new_tokens
            )

    async def end(self, *drafts: Draft) -> None:
        """Close replies off the event loop; those still running stop at once."""
        for draft in drafts:
            if not draft.reply.done:
                draft.reply.cancel()
        await self.in_thread(lambda: self._close_all(drafts))

    def _close_all(self, drafts: Sequence[Draft]) -> None:
        with contextlib.ExitStack() as all_of_them:  # each, also when another cannot be written
            for draft in drafts:
                all_of_them.callback(self.close, draft)

    def close_left(self) -> None:
        """Close what is still under way, for the end of the app: no stream is there any more to do it."""
        self._writers.shutdown()
        self._close_all(list(self._running.values()))

    def under_way(self) -> list[Reply]:
        """Every reply that is being written or waits for it."""
        return [draft.reply for draft in list(self._running.values())]

    def stop_all(self) -> None:
        """Ask every reply to stop, for the end of the app."""
        for reply in self.under_way():
            reply.cancel()
            reply.end("cancelled")  # its reader need not wait for the model, which may be reading a long prompt

    def stop(self, message_id: str, person_id: int) -> None:
        """Ask a person's reply of that id, or all their replies to the question of that id, to stop."""
        for draft in list(self._running.values()):
            if draft.person_id == person_id and message_id in (draft.message.id, draft.message.parent_id):
                draft.reply.cancel()

    def leave(self, message_id: str, person_id: int) -> None:
        """Stop a person's reply because its reader went elsewhere: it must not fill the page any more."""
        if draft := self._own(message_id, person_id):
            draft.left.set()
            self.stop(message_id, person_id)

    def is_left(self, draft: Draft) -> bool:
        """Whether nobody looks at this reply any more."""
        return draft.left.is_set()

    def text_so_far(self, message_id: str, person_id: int) -> str | None:
        """The text of a person's reply under way, or None when none of theirs by that id is running here."""
        draft = self._own(message_id, person_id)
        return draft.reply.text if draft else None

    def _own(self, message_id: str, person_id: int) -> Draft | None:
        draft = self._running.get(message_id)
        return draft if draft and draft.person_id == person_id else None

    def _keep_parts(self, drafts: Sequence[Draft]) -> None:
        """Write down now and then what these replies have said so far; ends when none is under way.

        Replies to somebody who was erased or disabled meanwhile are stopped: the model is there for the others.
        """
        while drafts:
            time.sleep(self.keep_every_s)
            drafts = [draft for draft in drafts if draft.message.id in self._running]
            for draft in drafts:
                with contextlib.suppress(StoreError):  # the reply's end is written later, and its failure told
                    if self._store.people.is_let_in(draft.person_id):
                        self._store.conversations.save_partial(draft.message.id, draft.reply.text)
                    else:
                        draft.reply.cancel()

    def _draw(self, seed: int) -> Sampling:
        wanted = self._sampling
        return Sampling(wanted.temperature, wanted.top_p, wanted.max_new_tokens, seed)

    def _origin(self, adapter: str | None, preset: Preset, sampling: Sampling) -> Origin:
        return Origin(
            adapter_id=adapter,
            base_id=self._engine.base_id,
            numeric_form=self._engine.numeric_form,
            preset=preset.key,
            system=preset.system,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
        )


def _turns(path: Sequence[Message]) -> list[Turn]:
    return [Turn(role=message.role, content=message.text) for message in read_by_model(path)]


def _recorded(begun: Sequence[tuple[Origin, Reply]], record: Record) -> Message:
    """Store a question; where that fails, nothing that was begun for it goes on."""
    try:
        return record()
    except StoreError:
        _cancel(begun)
        raise


def _cancel(begun: Sequence[tuple[Origin, Reply]]) -> None:
    for _, reply in begun:
        reply.cancel()


def distinct_seeds(count: int) -> list[int]:
    """Draw so many different seeds."""
    seeds: set[int] = set()
    while len(seeds) < count:
        seeds.add(secrets.randbelow(SEED_LIMIT))
    return list(seeds)
