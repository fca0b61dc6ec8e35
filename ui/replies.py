"""From a stored question to stored replies: the one place of the web app that starts and ends them.

A reply's row exists before its text is shown and is closed whatever happens: finished, stopped, failed, tab
closed. Knows nothing about pages.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from assistant.engine import Engine, Finish, Reply, Request, Sampling
from assistant.engine import Message as Turn
from assistant.presets import PRESETS, Preset
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.conversations import read_by_model
from feedback_store.errors import StoreError
from feedback_store.records import Message, MessageState, Origin

SEED_LIMIT = 2**31
Record = Callable[[], Message]
_STATES: Mapping[Finish, MessageState] = {"stop": "done", "length": "done", "cancelled": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class Draft:
    """A reply under way: its row in the store and the engine's growing text."""

    message: Message
    reply: Reply


class Replies:
    """Starts replies on the live adapter and sees that each ends in the database."""

    keep_every_s = 2.0
    """The most of a reply's writing that is lost when this process is killed."""

    def __init__(self, engine: Engine, store: Store, settings: Settings) -> None:
        self._engine = engine
        self._store = store
        self._sampling = settings.sampling
        self._running: dict[str, Draft] = {}
        self._left: set[str] = set()

    def ask(
        self, before: Sequence[Message], text: str, preset_key: str, person_id: int, record: Record, count: int = 1
    ) -> tuple[Message, list[Draft]]:
        """Begin `count` replies to a new question, from the same settings and different seeds.

        The engine is asked first, so that what it refuses is not stored and can be sent again.

        Args:
            before: the path that the question follows.
            record: stores the question and returns it.

        Raises:
            AssistantError: the engine refused; nothing was stored.
            StoreError: the question could not be stored; nothing goes on.
        """
        turns = _turns(before)
        if turns and turns[-1]["role"] == "user":
            turns.pop()  # it got no answer, and roles must alternate
        begun = self._submit([*turns, Turn(role="user", content=text)], preset_key, count)
        try:
            question = record()
        except StoreError:
            _cancel(begun)
            raise
        return question, self._begin(question, person_id, begun)

    def retry(self, question: Message, person_id: int, preset_key: str) -> Draft:
        """Begin another reply to a stored question.

        Raises:
            AssistantError: the engine refused; nothing was stored.
            StoreError: the question is not this person's.
        """
        turns = _turns(self._store.conversations.path_to(question.id))
        return self._begin(question, person_id, self._submit(turns, preset_key, 1))[0]

    def _submit(self, turns: list[Turn], preset_key: str, count: int) -> list[tuple[Origin, Reply]]:
        """Start replies; the live adapter is read here, so that a promotion answers the next message."""
        preset = PRESETS.get(preset_key, PRESETS["plain"])
        adapter = self._store.registry.live().adapter_id
        messages = [Turn(role="system", content=preset.system), *turns]
        samplings = [self._draw(seed) for seed in _distinct_seeds(count)]
        replies = self._engine.submit([Request(messages, sampling, adapter) for sampling in samplings])
        origins = [self._origin(adapter, preset, sampling) for sampling in samplings]
        return list(zip(origins, replies, strict=True))

    def _begin(self, question: Message, person_id: int, begun: Sequence[tuple[Origin, Reply]]) -> list[Draft]:
        """Store that these replies are under way."""
        drafts: list[Draft] = []
        try:
            for origin, reply in begun:
                row = self._store.conversations.begin_reply(question.id, person_id, origin)
                drafts.append(Draft(row, reply))
        except StoreError:
            _cancel(begun)
            for draft in drafts:
                self.close(draft)
            raise
        self._running.update((draft.message.id, draft) for draft in drafts)
        threading.Thread(target=self._keep_parts, args=(drafts,), daemon=True).start()
        return drafts

    def close(self, draft: Draft) -> None:
        """Write a reply's end to the store; one still running is stopped and keeps its partial text."""
        reply = draft.reply
        if not reply.done:
            reply.cancel()
        finish: Finish = reply.finish or "cancelled"
        self._running.pop(draft.message.id, None)
        self._store.conversations.finish_reply(draft.message.id, reply.text, _STATES[finish], finish, reply.new_tokens)

    def stop(self, message_id: str) -> None:
        """Ask the reply of that id, or all replies to the question of that id, to stop."""
        for draft in list(self._running.values()):
            if message_id in (draft.message.id, draft.message.parent_id):
                draft.reply.cancel()

    def leave(self, message_id: str) -> None:
        """Stop that reply because its reader went elsewhere: it must not fill the page any more."""
        self._left.add(message_id)
        self.stop(message_id)

    def is_left(self, draft: Draft) -> bool:
        """Whether nobody looks at this reply any more."""
        return draft.message.id in self._left

    def text_so_far(self, message_id: str) -> str | None:
        """The text of a reply under way, or None when it is not running here."""
        draft = self._running.get(message_id)
        return draft.reply.text if draft else None

    def _keep_parts(self, drafts: Sequence[Draft]) -> None:
        """Write down now and then what these replies have said so far; ends when none is under way."""
        while drafts:
            time.sleep(self.keep_every_s)
            drafts = [draft for draft in drafts if draft.message.id in self._running]
            for draft in drafts:
                with contextlib.suppress(StoreError):  # the reply's end is written later, and its failure told
                    self._store.conversations.save_partial(draft.message.id, draft.reply.text)

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


def _cancel(begun: Sequence[tuple[Origin, Reply]]) -> None:
    for _, reply in begun:
        reply.cancel()


def _distinct_seeds(count: int) -> list[int]:
    seeds: set[int] = set()
    while len(seeds) < count:
        seeds.add(secrets.randbelow(SEED_LIMIT))
    return list(seeds)
