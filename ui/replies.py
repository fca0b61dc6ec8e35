"""From a stored question to stored replies: the one place of the web app that starts and ends them.

A reply's row exists before its first token and is closed whatever happens: finished, stopped, failed, tab closed.
Knows nothing about pages.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assistant.engine import Engine, Finish, Reply, Request, Sampling
from assistant.engine import Message as Turn
from assistant.presets import PRESETS, Preset
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import StoreError
from feedback_store.records import Message, MessageState, Origin

SEED_LIMIT = 2**31
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

    def start(self, question: Message, person_id: int, preset_key: str, count: int = 1) -> list[Draft]:
        """Begin `count` replies to one stored question, from the same settings and different seeds.

        The live adapter is read here, so that a promotion answers the next message.

        Raises:
            AssistantError: the engine refused; the rows are closed as failed before this leaves.
            StoreError: the question is not this person's.
        """
        preset = PRESETS.get(preset_key, PRESETS["plain"])
        adapter = self._store.registry.live().adapter_id
        turns = prompt_turns(self._store.conversations.path_to(question.id), preset.system)
        samplings = [self._draw(seed) for seed in _distinct_seeds(count)]
        rows: list[Message] = []
        replies: list[Reply] = []
        try:
            for sampling in samplings:
                origin = self._origin(adapter, preset, sampling)
                rows.append(self._store.conversations.begin_reply(question.id, person_id, origin))
            replies = self._engine.submit([Request(turns, sampling, adapter) for sampling in samplings])
        finally:
            if not replies:
                for row in rows:
                    self._store.conversations.finish_reply(row.id, "", "failed", "failed", 0)
        drafts = [Draft(row, reply) for row, reply in zip(rows, replies, strict=True)]
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


def prompt_turns(path: Sequence[Message], system: str) -> list[Turn]:
    """What the model reads: the system prompt, then every turn of the path that holds text."""
    turns = [Turn(role=message.role, content=message.text) for message in path if message.text.strip()]
    return [Turn(role="system", content=system), *turns]


def _distinct_seeds(count: int) -> list[int]:
    seeds: set[int] = set()
    while len(seeds) < count:
        seeds.add(secrets.randbelow(SEED_LIMIT))
    return list(seeds)
