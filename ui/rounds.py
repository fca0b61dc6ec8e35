"""What the compare and rank pages share: one prompt, several replies from the same settings, written side by side.

A round is a conversation of its own kind: a question and its replies. What is then said of the replies, and how, is
each page's business. Handlers above, layout below.
"""

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import gradio as gr
from anyio.to_thread import run_sync

from assistant.engine import Place
from assistant.errors import AssistantError
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import StoreError
from feedback_store.records import Message, as_text
from ui.events import MAX_TYPED
from ui.replies import Draft, Replies, TooManyReplies
from ui.texts import Texts

CURSOR = " ▍"
POLL_S = 1 / 12
MOMENT = timedelta(seconds=10)
Arrange = Callable[[list[Draft]], list[Draft]]
"""Puts the replies of a new round in the order in which they are shown."""


class Refused(Exception):
    """No round began; the person who asked sees the sentence."""


class NotBegun(Refused):
    """The engine would not take it, or the database."""


@dataclass(frozen=True)
class Writing:
    """A round under way, at one moment."""

    question: Message
    drafts: list[Draft]
    texts: tuple[str, ...]
    begins: bool = False
    """Whether this is the first sight of it: what was typed is stored by now."""
    waits: bool = False
    """Whether another reply of the same person is written first."""
    place: Place | None = None
    """Where it stands in the engine's line, if it does."""


class Rounds:
    """Begins rounds of one page and streams them."""

    def __init__(
        self,
        replies: Replies,
        store: Store,
        settings: Settings,
        texts: Texts,
        kind: Literal["compare", "rank"],
        count: int,
    ) -> None:
        """Serve one page.

        Args:
            count: how many replies a round has.
        """
        self._replies = replies
        self._store = store
        self._max_chars = settings.max_message_chars
        self._texts = texts
        self._kind: Literal["compare", "rank"] = kind
        self._count = count

    async def ask(
        self, person: int, text: str, preset: str, arrange: Arrange, *, limited: bool
    ) -> AsyncGenerator[Writing]:
        """Stream the replies to a new prompt, once more those that say what one before them says.

        Args:
            limited: whether this person may have only so many replies under way.

        Raises:
            Refused: nothing began.
        """
        with ExitStack() as held:
            begin = partial(self._begin, held, person, text, preset, limited=limited)
            question, drafts = await self._replies.in_thread(begin)
            drafts = arrange(drafts)
            async with aclosing(self._stream(question, drafts, begins=True)) as looks:
                async for look in looks:
                    yield look
            if not have_ended(drafts) or not repeated([draft.reply.text for draft in drafts]):
                return
            redraw = partial(self._redraw, question, drafts, person, preset)
            async with aclosing(self._stream(question, await self._replies.in_thread(redraw))) as looks:
                async for look in looks:
                    yield look

    def _begin(
        self, held: ExitStack, person: int, text: str, preset: str, *, limited: bool
    ) -> tuple[Message, list[Draft]]:
        """Store the prompt and begin its replies; `held` is what a round under way holds."""
        if not text.strip():
            raise Refused(self._texts.empty_message)
        if len(text) > self._max_chars:
            raise Refused(self._texts.too_long.format(chars=len(text), limit=self._max_chars))
        try:
            turn = held.enter_context(self._replies.place(person, limited=limited))
            record = partial(self._record, person, text)
            return self._replies.ask([], text, preset, person, record, turn, count=self._count)
        except TooManyReplies:
            raise Refused(self._texts.too_many_replies) from None
        except (AssistantError, StoreError) as error:
            raise NotBegun(self._texts.error(error)) from error

    def _record(self, person: int, text: str) -> Message:
        conversations = self._store.conversations
        with self._store.connections.write():  # both or neither
            return conversations.add_user_message(conversations.start(person, kind=self._kind).id, person, text)

    def _redraw(self, question: Message, drafts: list[Draft], person: int, preset: str) -> list[Draft]:
        """Begin another reply in the place of each that says what one before it says, where the engine takes them."""
        places = repeated([draft.reply.text for draft in drafts])
        try:
            again = dict(zip(places, self._replies.again(question, person, preset, len(places)), strict=True))
        except (AssistantError, StoreError):
            return drafts  # equal replies are still worth showing
        return [again.get(place, draft) for place, draft in enumerate(drafts)]

    async def _stream(self, question: Message, drafts: list[Draft], *, begins: bool = False) -> AsyncGenerator[Writing]:
        try:
            async with aclosing(_together(drafts)) as texts:
                async for shown in texts:
                    yield Writing(question, drafts, shown, begins, drafts[0].waits, drafts[0].reply.place)
                    begins = False
        finally:
            await self._replies.end(*drafts)

    def under_way(self, person: int, replies: Sequence[Message], updated_at: str) -> bool:
        """Say whether replies are still being written, or ended so lately that what comes of them is not stored yet.

        Args:
            updated_at: when their conversation was last written to.
        """
        if any(self._replies.text_so_far(reply.id, person) is not None for reply in replies):
            return True
        whole = all(reply.state in ("streaming", "done") for reply in replies)  # nothing was stopped
        return whole and updated_at > as_text(datetime.now(UTC) - MOMENT)


def repeated(texts: Sequence[str]) -> list[int]:
    """Return the places of the texts that say what one before them says."""
    said = [text.strip() for text in texts]
    return [place for place, text in enumerate(said) if text in said[:place]]


def have_ended(drafts: Sequence[Draft]) -> bool:
    """Say whether all replies ended by themselves, neither stopped nor failed."""
    return all(draft.reply.finish in ("stop", "length") for draft in drafts)


async def _together(drafts: Sequence[Draft]) -> AsyncGenerator[tuple[str, ...]]:
    shown = None
    while True:
        done = all(draft.reply.done for draft in drafts)  # before the texts: what is seen as done is seen whole
        texts = tuple(_growing(draft) for draft in drafts)
        now = (texts, drafts[0].waits, drafts[0].reply.place)
        if now != shown:
            shown = now
            yield texts
        if done:
            return
        await asyncio.sleep(POLL_S)


def _growing(draft: Draft) -> str:
    done = draft.reply.done
    return draft.reply.text if done else draft.reply.text + CURSOR


class Staged(Protocol):
    """What a page shows at one moment."""

    @property
    def stage(self) -> str:
        """`running` while its replies are being written."""


Shown = TypeVar("Shown", bound=Staged)


async def fill_page(
    rounds: AsyncGenerator[Shown], updates: Callable[[int, Shown], list[Any]], person: int
) -> AsyncGenerator[list[Any]]:
    """Stream what changes of a round into a page; but for what is running, `updates` looks things up in a thread."""
    last: list[Any] = []
    async with aclosing(rounds) as shown_rounds:
        async for shown in shown_rounds:
            running = shown.stage == "running"
            update = updates(person, shown) if running else await run_sync(updates, person, shown)
            before, last = last, copy.deepcopy(update)  # the framework takes an update's value out of it
            yield [gr.skip() if before and value == before[i] else value for i, value in enumerate(update)]


class Composer(NamedTuple):
    """Where a prompt is written."""

    preset: gr.Radio
    box: gr.Textbox
    ask: gr.Button
    stop: gr.Button


def build_composer(texts: Texts, presets: list[tuple[str, str]], page: str, placeholder: str, button: str) -> Composer:
    """Lay out a page's composer; the ids of its parts begin with the page's name."""
    with gr.Column(elem_id=f"{page}-composer", elem_classes="composer"):
        preset = gr.Radio(
            presets, value="plain", label=texts.preset_label, elem_id=f"{page}-preset", container=False,
            elem_classes="segments",
        )  # fmt: skip
        with gr.Row(elem_classes="tight"):
            box = gr.Textbox(
                placeholder=placeholder, label=texts.message_label, show_label=False, lines=1,
                max_lines=8, elem_id=f"{page}-message", container=False, scale=8, max_length=MAX_TYPED,
            )  # fmt: skip
            ask = gr.Button(button, variant="primary", elem_id=f"{page}-ask", size="md", min_width=80, scale=0)
            stop = gr.Button(
                texts.stop, variant="stop", elem_id=f"{page}-stop", size="md", min_width=80, scale=0, visible=False
            )
    return Composer(preset, box, ask, stop)


class Card(NamedTuple):
    """One reply of a round."""

    column: gr.Column
    text: gr.Markdown
    revealed: gr.HTML


def build_card(title: str, name: str) -> Card:
    """Lay out one reply, with room for what it turns out to be."""
    with gr.Column(elem_classes="card side", min_width=280) as column:
        gr.HTML(f"<h3>{title}</h3>")
        text = gr.Markdown(elem_id=f"reply-{name}", elem_classes="reply", min_height=80)
        revealed = gr.HTML(elem_id=f"revealed-{name}", elem_classes="muted")
    return Card(column, text, revealed)


def prompt_html(prompt: str) -> str:
    """Show the prompt of a round, if there is one."""
    return f"<blockquote>{Texts.escape(prompt)}</blockquote>" if prompt else ""
