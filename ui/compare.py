"""The compare page: one prompt, two replies from the same settings, one choice.

Handlers above, layout and wiring below. Which side a reply is shown on is drawn here, on the server; what produced
it is not sent to the browser before the choice.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import gradio as gr

from assistant.errors import AssistantError
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import StoreError
from feedback_store.records import Choice, Comparison, Message, as_text
from ui.events import MAX_TYPED, SHORT, STREAMED
from ui.feedback import notice_update, origin_line
from ui.replies import Draft, Replies
from ui.texts import Texts

CURSOR = " ▍"
POLL_S = 1 / 12
RECENT = 50
MOMENT = timedelta(seconds=10)
SHOWN_CHOICES: tuple[Choice, ...] = ("left", "tie", "both-bad", "right")
Stage = Literal["empty", "running", "choosing", "chosen"]


@dataclass(frozen=True)
class Round:
    """What the compare page shows at one moment."""

    stage: Stage = "empty"
    prompt: str = ""
    left: str = ""
    right: str = ""
    key: str = ""
    """While running the question's id, afterwards the comparison's."""
    revealed: tuple[str, str] = ("", "")
    choice: str = ""
    notice: str = ""
    keep: str | None = None
    waiting: bool = False
    """Whether its answers are still being written for another tab."""


class CompareDesk:
    """What the compare page can do, without the page."""

    def __init__(self, replies: Replies, store: Store, settings: Settings, texts: Texts) -> None:
        self._replies = replies
        self._store = store
        self._max_chars = settings.max_message_chars
        self._texts = texts

    def open(self) -> Round:
        """Show the latest comparison, so that an unanswered one can still be answered and a broken one asked again."""
        person = self._store.people.owner().id
        comparisons = self._store.votes.comparisons(person, limit=RECENT)
        for latest in self._store.conversations.list(person, limit=1, kind="compare"):
            path = self._store.conversations.thread(latest.id, person)
            if path and path[0].id not in (comparison.prompt_message_id for comparison in comparisons):
                return self._without_choice(path, latest.updated_at)
        return self._round(comparisons[0]) if comparisons else Round()

    async def ask(self, text: str, preset: str) -> AsyncGenerator[Round]:
        """Stream two replies to one prompt, then offer the choice. Refusals keep the text."""
        if not text.strip() or len(text) > self._max_chars:
            too_long = self._texts.too_long.format(chars=len(text), limit=self._max_chars)
            yield replace(self.open(), notice=too_long if text.strip() else self._texts.empty_message, keep=text)
            return
        person = self._store.people.owner().id
        try:
            question, drafts = self._replies.ask([], text, preset, person, partial(self._record, text), count=2)
        except (AssistantError, StoreError) as error:
            yield Round(notice=self._texts.error(error), keep=text)
            return
        if swap_sides():
            drafts.reverse()
        async with aclosing(self._stream(question, drafts, keep="")) as rounds:
            async for shown in rounds:
                yield shown
        if _same(drafts):
            try:
                drafts = [drafts[0], self._replies.retry(question, person, preset)]
            except (AssistantError, StoreError):
                pass  # two equal replies are still worth showing
            else:
                async with aclosing(self._stream(question, drafts, keep=None)) as rounds:
                    async for shown in rounds:
                        yield shown
        yield self._offer(question, drafts)

    def reopen(self, key: str | None) -> Round:
        """Show one of the latest comparisons again."""
        for comparison in self._store.votes.comparisons(self._store.people.owner().id, limit=RECENT):
            if comparison.id == key:
                return self._round(comparison)
        return replace(self.open(), notice=self._texts.reload_page, keep=None)

    def stop(self, key: str) -> None:
        """Stop both replies."""
        self._replies.stop(key)

    def choose(self, key: str, choice: Choice) -> Round:
        """Store the choice and show what each side was."""
        try:
            comparison = self._store.votes.choose(key, self._store.people.owner().id, choice)
        except StoreError as error:
            return replace(self.open(), notice=self._texts.error(error), keep=None)
        return replace(self._round(comparison), notice=self._texts.choice_saved)

    def _without_choice(self, path: list[Message], updated_at: str) -> Round:
        """Tell of a prompt whose two answers were never put side by side."""
        replies, prompt = self._store.conversations.siblings(path[-1].id), path[0].text
        running = any(self._replies.text_so_far(reply.id) is not None for reply in replies)
        # Between the end of the answers and the choice lies a moment, in which nothing was stopped.
        whole = all(reply.state in ("streaming", "done") for reply in replies)
        if running or (whole and updated_at > as_text(datetime.now(UTC) - MOMENT)):
            return Round(prompt=prompt, notice=self._texts.answers_under_way, waiting=True)
        return Round(prompt=prompt, notice=self._texts.broken_off, keep=prompt)

    def _record(self, text: str) -> Message:
        conversations, person = self._store.conversations, self._store.people.owner().id
        return conversations.add_user_message(conversations.start(person, kind="compare").id, person, text)

    async def _stream(self, question: Message, drafts: list[Draft], keep: str | None) -> AsyncGenerator[Round]:
        left, right = drafts
        shown = Round("running", question.text, key=question.id, keep=keep)
        try:
            async with aclosing(_together(left, right)) as texts:
                async for left_text, right_text in texts:
                    yield replace(shown, left=left_text, right=right_text)
                    shown = replace(shown, keep=None)
        finally:
            for draft in drafts:
                self._replies.close(draft)

    def _offer(self, question: Message, drafts: list[Draft]) -> Round:
        left, right = drafts
        ended = Round("empty", question.text, left.reply.text, right.reply.text)
        finishes = {left.reply.finish, right.reply.finish}
        if "failed" in finishes:
            return replace(ended, notice=self._texts.failed_reply)
        if "cancelled" in finishes or not left.reply.text.strip() or not right.reply.text.strip():
            return replace(ended, notice=self._texts.no_comparison)
        try:
            comparison = self._store.votes.show_comparison(
                self._store.people.owner().id, question.id, left.message.id, right.message.id
            )
        except StoreError as error:
            return replace(ended, notice=self._texts.error(error))
        return self._round(comparison)

    def _round(self, comparison: Comparison) -> Round:
        path = self._store.conversations.path_to(comparison.left_message_id)
        left, right = path[-1], self._store.conversations.path_to(comparison.right_message_id)[-1]
        shown = Round("choosing", path[-2].text, left.text, right.text, comparison.id)
        if not comparison.choice:
            return shown
        revealed = (origin_line(left, self._texts), origin_line(right, self._texts))
        return replace(shown, stage="chosen", choice=comparison.choice, revealed=revealed)

    def past(self) -> list[tuple[str, str]]:
        """Prompts and choices of the latest comparisons that were answered, newest first."""
        latest = self._store.votes.comparisons(self._store.people.owner().id, limit=10)
        return [(self._prompt(comparison), comparison.choice) for comparison in latest if comparison.choice]

    def unanswered(self) -> list[tuple[str, str]]:
        """Prompts and ids of the latest comparisons that still want a choice, newest first."""
        latest = self._store.votes.comparisons(self._store.people.owner().id, limit=RECENT)
        return [(self._prompt(comparison)[:120], comparison.id) for comparison in latest if not comparison.choice]

    def _prompt(self, comparison: Comparison) -> str:
        return self._store.conversations.path_to(comparison.prompt_message_id)[-1].text


def swap_sides() -> bool:
    """Draw whether the second reply is shown on the left."""
    return bool(secrets.randbelow(2))


def _same(drafts: list[Draft]) -> bool:
    left, right = (draft.reply for draft in drafts)
    ended = all(reply.finish in ("stop", "length") for reply in (left, right))
    return ended and left.text.strip() == right.text.strip()


async def _together(left: Draft, right: Draft) -> AsyncGenerator[tuple[str, str]]:
    shown = None
    while True:
        done = left.reply.done and right.reply.done  # before the texts: what is seen as done is seen whole
        texts = (_growing(left), _growing(right))
        if texts != shown:
            shown = texts
            yield texts
        if done:
            return
        await asyncio.sleep(POLL_S)


def _growing(draft: Draft) -> str:
    done = draft.reply.done
    return draft.reply.text if done else draft.reply.text + CURSOR


@dataclass(frozen=True)
class CompareParts:
    """The compare page's components; `outputs` in the order that `round_updates` fills them."""

    key: gr.Textbox
    box: gr.Textbox
    preset: gr.Radio
    ask: gr.Button
    stop: gr.Button
    notice: gr.HTML
    prompt: gr.HTML
    arena: gr.Column
    left: gr.Markdown
    right: gr.Markdown
    left_name: gr.HTML
    right_name: gr.HTML
    choosing: gr.Column
    choices: tuple[gr.Button, ...]
    verdict: gr.HTML
    next: gr.Button
    unanswered: gr.Radio
    past: gr.HTML
    timer: gr.Timer

    @property
    def outputs(self) -> list[Any]:
        """Components that a round fills."""
        return [
            self.key, self.box, self.ask, self.stop, self.notice, self.prompt, self.arena, self.left, self.right,
            self.left_name, self.right_name, self.choosing, *self.choices, self.verdict, self.next, self.unanswered,
            self.past, self.timer,
        ]  # fmt: skip


def build_compare(texts: Texts, presets: list[tuple[str, str]]) -> CompareParts:
    """Lay out the compare page."""
    key = gr.Textbox(visible=False, elem_id="comparison")
    gr.HTML(f"<p class='lead'>{texts.escape(texts.compare_intro)}</p>")
    with gr.Column(elem_id="compare-composer", elem_classes="composer"):
        preset = gr.Radio(
            presets, value="plain", label=texts.preset_label, elem_id="compare-preset", container=False,
            elem_classes="segments",
        )  # fmt: skip
        with gr.Row(elem_classes="tight"):
            box = gr.Textbox(
                placeholder=texts.compare_placeholder, label=texts.message_label, show_label=False, lines=1,
                max_lines=8, elem_id="compare-message", container=False, scale=8, max_length=MAX_TYPED,
            )  # fmt: skip
            ask = gr.Button(
                texts.compare_button, variant="primary", elem_id="compare-ask", size="md", min_width=80, scale=0
            )
            stop = gr.Button(
                texts.stop, variant="stop", elem_id="compare-stop", size="md", min_width=80, scale=0, visible=False
            )
    notice = gr.HTML(elem_id="compare-notice", elem_classes="notice", visible=False)
    prompt = gr.HTML(elem_id="compare-prompt")
    with gr.Column(visible=False, elem_id="arena") as arena:
        with gr.Row(equal_height=True):
            left, left_name = _side(texts.left, "left")
            right, right_name = _side(texts.right, "right")
        with gr.Column(elem_id="choosing") as choosing:
            gr.HTML(f"<p class='lead'>{texts.escape(texts.choice_question)}</p>")
            with gr.Row(elem_classes="tight", elem_id="choices"):
                choices = tuple(
                    gr.Button(
                        texts.choices[choice], elem_id=f"choose-{choice}", size="md", min_width=120, interactive=False
                    )
                    for choice in SHOWN_CHOICES
                )
        with gr.Row(elem_classes="tight"):
            verdict = gr.HTML(elem_id="verdict")
            following = gr.Button(
                texts.next_round,
                variant="primary",
                elem_id="compare-next",
                size="md",
                min_width=80,
                scale=0,
                visible=False,
            )
    unanswered = gr.Radio(
        [], label=texts.reopen_comparison, elem_id="unanswered", elem_classes="titles", container=False, visible=False
    )
    past = gr.HTML(elem_id="past-comparisons")
    timer = gr.Timer(1.0, active=False)
    return CompareParts(
        key, box, preset, ask, stop, notice, prompt, arena, left, right, left_name, right_name, choosing, choices,
        verdict, following, unanswered, past, timer,
    )  # fmt: skip


def _side(title: str, name: str) -> tuple[gr.Markdown, gr.HTML]:
    with gr.Column(elem_classes="card side", min_width=280):
        gr.HTML(f"<h3>{title}</h3>")
        text = gr.Markdown(elem_id=f"reply-{name}", elem_classes="reply", min_height=80)
        revealed = gr.HTML(elem_id=f"revealed-{name}", elem_classes="muted")
    return text, revealed


class ComparePage:
    """Turns rounds into component updates."""

    def __init__(self, desk: CompareDesk, texts: Texts) -> None:
        self._desk = desk
        self._texts = texts

    def updates(self, shown: Round) -> list[Any]:
        """Fill `CompareParts.outputs`."""
        texts, running = self._texts, shown.stage == "running"
        verdict = texts.you_chose.format(choice=texts.choices[shown.choice]) if shown.choice else ""
        prompt = f"<blockquote>{texts.escape(shown.prompt)}</blockquote>" if shown.prompt else ""
        return [
            shown.key,
            gr.skip() if shown.keep is None else shown.keep,
            gr.update(visible=not running),
            gr.update(visible=running),
            notice_update(shown.notice),
            prompt,
            gr.update(visible=bool(shown.left or shown.right)),
            shown.left,
            shown.right,
            texts.escape(shown.revealed[0]),
            texts.escape(shown.revealed[1]),
            gr.update(visible=shown.stage in ("running", "choosing")),
            *[gr.update(interactive=shown.stage == "choosing") for _ in SHOWN_CHOICES],
            f"<strong>{texts.escape(verdict)}</strong>" if verdict else "",
            gr.update(visible=shown.stage == "chosen"),
            self._unanswered(shown),
            gr.skip() if running else past_html(self._desk.past(), texts),
            gr.Timer(active=shown.waiting),
        ]

    def _unanswered(self, shown: Round) -> Any:
        if shown.stage == "running":  # its end would push away what was chosen meanwhile
            return gr.update(visible=False)
        waiting = [(prompt, key) for prompt, key in self._desk.unanswered() if key != shown.key]
        return gr.update(choices=waiting, value=None, visible=bool(waiting))

    def reopen(self, key: str | None) -> list[Any]:
        """Show a comparison that was left without a choice."""
        return self.updates(self._desk.reopen(key))

    def open(self) -> list[Any]:
        """Fill the page at load."""
        return self.updates(self._desk.open())

    def tick(self, text: str) -> list[Any]:
        """Look whether the answers of another tab have ended; what is typed meanwhile stays."""
        shown = self._desk.open()
        return self.updates(replace(shown, keep=None) if text.strip() else shown)

    async def ask(self, text: str, preset: str) -> AsyncGenerator[list[Any]]:
        """Stream a round into the page."""
        async with aclosing(self._desk.ask(text, preset)) as rounds:
            async for shown in rounds:
                yield self.updates(shown)

    def choose(self, key: str, choice: Choice) -> list[Any]:
        """Store a choice and show what each side was."""
        return self.updates(self._desk.choose(key, choice))

    def next(self) -> list[Any]:
        """Clear the page for another prompt."""
        return self.updates(Round())


def past_html(rows: list[tuple[str, str]], texts: Texts) -> str:
    """List past prompts with what was chosen."""
    if not rows:
        return ""
    items = "".join(
        f"<li><span>{texts.escape(prompt[:120])}</span>"
        f"<em>{texts.escape(texts.choices.get(choice, texts.unanswered))}</em></li>"
        for prompt, choice in rows
    )
    return f"<h3>{texts.escape(texts.past_comparisons)}</h3><ul class='past'>{items}</ul>"


def wire_compare(parts: CompareParts, desk: CompareDesk, texts: Texts) -> ComparePage:
    """Connect the components to the handlers."""
    page = ComparePage(desk, texts)
    gr.on([parts.box.submit, parts.ask.click], page.ask, [parts.box, parts.preset], parts.outputs, **STREAMED)
    parts.stop.click(desk.stop, [parts.key], None, **SHORT)
    for choice, button in zip(SHOWN_CHOICES, parts.choices, strict=True):
        button.click(partial(page.choose, choice=choice), [parts.key], parts.outputs, **SHORT)
    parts.next.click(page.next, None, parts.outputs, **SHORT)
    parts.timer.tick(page.tick, [parts.box], parts.outputs, **SHORT)
    parts.unanswered.input(page.reopen, [parts.unanswered], parts.outputs, **SHORT)
    return page
