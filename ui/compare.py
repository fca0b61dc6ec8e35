"""The compare page: one prompt, two replies from the same settings, one choice.

Handlers above, layout and wiring below. Which side a reply is shown on is drawn here, on the server; what produced
it is not sent to the browser before the choice.
"""

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import gradio as gr

from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import ChoiceStands, StoreError
from feedback_store.records import Choice, Comparison, Message
from ui.door import is_limited, visitor
from ui.events import SHORT, STREAMED
from ui.feedback import notice_update, origin_line
from ui.own import NOBODY, own_path, own_versions
from ui.replies import Draft, Replies
from ui.rounds import NotBegun, Refused, Rounds, build_card, build_composer, fill_page, prompt_html
from ui.texts import Texts
from ui.written import as_written

RECENT = 50
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
    shut_out: bool = False
    """Its reader was erased or disabled; nothing that is stored is shown any more."""
    waiting: bool = False
    """Whether its answers are still being written for another tab."""


class CompareDesk:
    """What the compare page can do for the person who asks, without the page."""

    def __init__(self, replies: Replies, store: Store, settings: Settings, texts: Texts) -> None:
        self._replies = replies
        self._store = store
        self._texts = texts
        self._rounds = Rounds(replies, store, settings, texts, "compare", count=2)

    def open(self, person: int) -> Round:
        """Show the latest comparison, so that an unanswered one can still be answered and a broken one asked again."""
        comparisons = self._store.votes.comparisons(person, limit=RECENT)
        for latest in self._store.conversations.list(person, limit=1, kind="compare"):
            path = self._store.conversations.thread(latest.id, person)
            if path and path[0].id not in (comparison.prompt_message_id for comparison in comparisons):
                return self._without_choice(person, path, latest.updated_at)
        return self._round(comparisons[0]) if comparisons else Round()

    async def ask(self, person: int, text: str, preset: str, *, limited: bool = True) -> AsyncGenerator[Round]:
        """Stream two replies to one prompt, then offer the choice. Refusals keep the text.

        Args:
            limited: whether this person may have only so many replies under way.
        """
        asked = self._rounds.ask(person, text, preset, _on_sides, limited=limited)
        try:
            async with aclosing(asked) as looks:
                async for look in looks:
                    left, right = look.texts
                    notice = self._texts.waiting(look.waits, look.place)
                    shown = Round("running", look.question.text, left, right, look.question.id, notice=notice)
                    yield replace(shown, keep="" if look.begins else None)
        except NotBegun as failed:
            yield Round(notice=str(failed), keep=text)
        except Refused as refused:
            yield replace(await self._replies.in_thread(partial(self.open, person)), notice=str(refused), keep=text)
        else:
            yield await self._replies.in_thread(partial(self._offer, person, look.question, look.drafts))

    def reopen(self, person: int, key: str | None) -> Round:
        """Show one of the latest comparisons again."""
        for comparison in self._store.votes.comparisons(person, limit=RECENT):
            if comparison.id == key:
                return self._round(comparison)
        return replace(self.open(person), notice=self._texts.reload_page, keep=None)

    def stop(self, person: int, key: str) -> None:
        """Stop both replies."""
        self._replies.stop(key, person)

    def choose(self, person: int, key: str, choice: Choice) -> Round:
        """Store the choice and show what each side was. Who has seen that has no other choice."""
        try:
            comparison = self._store.votes.choose(key, person, choice, named=True)
        except ChoiceStands as error:
            return replace(self.reopen(person, key), notice=self._texts.error(error))
        except StoreError as error:
            return replace(self.open(person), notice=self._texts.error(error), keep=None)
        return replace(self._round(comparison), notice=self._texts.choice_saved)

    def _without_choice(self, person: int, path: list[Message], updated_at: str) -> Round:
        """Tell of a prompt whose two answers were never put side by side."""
        replies, prompt = own_versions(self._store, person, path[-1].id), path[0].text
        if self._rounds.under_way(person, replies, updated_at):
            return Round(prompt=prompt, notice=self._texts.answers_under_way, waiting=True)
        return Round(prompt=prompt, notice=self._texts.broken_off, keep=prompt)

    def _offer(self, person: int, question: Message, drafts: list[Draft]) -> Round:
        if not self._store.people.is_let_in(person):
            return Round(shut_out=True, notice=self._texts.shut_out)
        left, right = drafts
        ended = Round("empty", question.text, left.reply.text, right.reply.text)
        finishes = {left.reply.finish, right.reply.finish}
        if "failed" in finishes:
            return replace(ended, notice=self._texts.failed_reply)
        if "cancelled" in finishes or not left.reply.text.strip() or not right.reply.text.strip():
            return replace(ended, notice=self._texts.no_comparison)
        try:
            comparison = self._store.votes.show_comparison(person, question.id, left.message.id, right.message.id)
            return self._round(comparison)
        except StoreError as error:
            return replace(ended, notice=self._texts.error(error))

    def _round(self, comparison: Comparison) -> Round:
        path = own_path(self._store, comparison.person_id, comparison.left_message_id)
        left, right = path[-1], own_path(self._store, comparison.person_id, comparison.right_message_id)[-1]
        shown = Round("choosing", path[-2].text, left.text, right.text, comparison.id)
        if not comparison.choice:
            return shown
        revealed = (origin_line(left, self._texts), origin_line(right, self._texts))
        return replace(shown, stage="chosen", choice=comparison.choice, revealed=revealed)

    def past(self, person: int) -> list[tuple[str, str]]:
        """Prompts and choices of the latest comparisons that were answered, newest first."""
        latest = self._store.votes.comparisons(person, limit=10)
        return [(self._prompt(comparison), comparison.choice) for comparison in latest if comparison.choice]

    def unanswered(self, person: int) -> list[tuple[str, str]]:
        """Prompts and ids of the latest comparisons that still want a choice, newest first."""
        latest = self._store.votes.comparisons(person, limit=RECENT)
        return [(self._prompt(comparison)[:120], comparison.id) for comparison in latest if not comparison.choice]

    def _prompt(self, comparison: Comparison) -> str:
        return own_path(self._store, comparison.person_id, comparison.prompt_message_id)[-1].text


def swap_sides() -> bool:
    """Draw whether the second reply is shown on the left."""
    return bool(secrets.randbelow(2))


def _on_sides(drafts: list[Draft]) -> list[Draft]:
    return drafts[::-1] if swap_sides() else drafts


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
    preset, box, ask, stop = build_composer(texts, presets, "compare", texts.compare_placeholder, texts.compare_button)
    notice = gr.HTML(elem_id="compare-notice", elem_classes="notice", visible=False)
    prompt = gr.HTML(elem_id="compare-prompt", elem_classes="prompt")
    with gr.Column(visible=False, elem_id="arena") as arena:
        with gr.Row(equal_height=True):
            _, left, left_name = build_card(texts.left, "left")
            _, right, right_name = build_card(texts.right, "right")
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


class ComparePage:
    """Turns rounds into component updates."""

    def __init__(self, desk: CompareDesk, texts: Texts) -> None:
        self._desk = desk
        self._texts = texts

    def updates(self, person: int, shown: Round) -> list[Any]:
        """Fill `CompareParts.outputs`."""
        person = NOBODY if shown.shut_out else person
        texts, running = self._texts, shown.stage == "running"
        verdict = texts.you_chose.format(choice=texts.choices[shown.choice]) if shown.choice else ""
        return [
            shown.key,
            gr.skip() if shown.keep is None else shown.keep,
            gr.update(visible=not running),
            gr.update(visible=running),
            notice_update(shown.notice),
            prompt_html(shown.prompt),
            gr.update(visible=bool(shown.left or shown.right)),
            as_written(shown.left),
            as_written(shown.right),
            texts.escape(shown.revealed[0]),
            texts.escape(shown.revealed[1]),
            gr.update(visible=shown.stage in ("running", "choosing")),
            *[gr.update(interactive=shown.stage == "choosing") for _ in SHOWN_CHOICES],
            f"<strong>{texts.escape(verdict)}</strong>" if verdict else "",
            gr.update(visible=shown.stage == "chosen"),
            self._unanswered(person, shown),
            gr.skip() if running else past_html(self._desk.past(person), texts),
            gr.update(active=shown.waiting),
        ]

    def _unanswered(self, person: int, shown: Round) -> Any:
        if shown.stage == "running":  # its end would push away what was chosen meanwhile
            return gr.update(visible=False)
        waiting = [(prompt, key) for prompt, key in self._desk.unanswered(person) if key != shown.key]
        return gr.update(choices=waiting, value=None, visible=bool(waiting))

    def reopen(self, key: str | None, request: gr.Request) -> list[Any]:
        """Show a comparison that was left without a choice."""
        person = visitor(request).id
        return self.updates(person, self._desk.reopen(person, key))

    def open(self, request: gr.Request) -> list[Any]:
        """Fill the page at load."""
        person = visitor(request).id
        return self.updates(person, self._desk.open(person))

    def look_again(self, text: str, request: gr.Request) -> list[Any]:
        """Look whether the answers of another tab have ended; what is typed meanwhile stays."""
        person = visitor(request).id
        shown = self._desk.open(person)
        return self.updates(person, replace(shown, keep=None) if text.strip() else shown)

    async def ask(self, text: str, preset: str, request: gr.Request) -> AsyncGenerator[list[Any]]:
        """Stream a round into the page."""
        person = visitor(request).id
        rounds = self._desk.ask(person, text, preset, limited=is_limited(request))
        async with aclosing(fill_page(rounds, self.updates, person)) as filled:
            async for update in filled:
                yield update

    def stop(self, key: str, request: gr.Request) -> None:
        """Stop both replies."""
        self._desk.stop(visitor(request).id, key)

    def choose(self, key: str, choice: Choice, request: gr.Request) -> list[Any]:
        """Store a choice and show what each side was."""
        person = visitor(request).id
        return self.updates(person, self._desk.choose(person, key, choice))

    def next(self, request: gr.Request) -> list[Any]:
        """Clear the page for another prompt."""
        return self.updates(visitor(request).id, Round())


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

    def choosing(choice: Choice) -> Callable[[str, gr.Request], list[Any]]:
        def choose(key: str, request: gr.Request) -> list[Any]:  # the framework finds no request in a partial
            return page.choose(key, choice, request)

        return choose

    gr.on([parts.box.submit, parts.ask.click], page.ask, [parts.box, parts.preset], parts.outputs, **STREAMED)
    parts.stop.click(page.stop, [parts.key], None, **SHORT)
    for choice, button in zip(SHOWN_CHOICES, parts.choices, strict=True):
        button.click(choosing(choice), [parts.key], parts.outputs, **SHORT)
    parts.next.click(page.next, None, parts.outputs, **SHORT)
    parts.timer.tick(page.look_again, [parts.box], parts.outputs, **SHORT)
    parts.unanswered.input(page.reopen, [parts.unanswered], parts.outputs, **SHORT)
    return page
