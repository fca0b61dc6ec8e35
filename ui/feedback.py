"""Votes on replies: handlers above, the panel under the chat below.

A vote names one reply of this person by id. The Chatbot's own thumbs and the panel's buttons end in the same row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import gradio as gr

from feedback_store import Store
from feedback_store.errors import StoreError
from feedback_store.records import REASONS_DOWN, REASONS_UP, Message
from ui.door import visitor
from ui.events import MAX_TYPED, SHORT
from ui.own import own_path
from ui.texts import Texts

# One at a time, and the last click wins.
ORDERED: Final[Mapping[str, Any]] = {**SHORT, "trigger_mode": "always_last"}
Fill = Callable[[int, "Panel", str, bool | None], list[Any]]
"""Fills the page after a vote: for whom, the panel, the last message on screen, and `writing` of `panel_updates`."""
FillPanel = Callable[[int, "Panel", str, str, bool | None], list[Any]]
"""The same, with the reply that the panel showed before the last message on screen."""


@dataclass(frozen=True)
class Panel:
    """What the vote panel shows about one reply."""

    reply: Message | None = None
    place: int = 0
    """Which of the replies on screen it is, from 1."""
    of: int = 0
    value: int = 0
    reasons: tuple[str, ...] = ()
    comment: str = ""
    rewrite: str = ""
    notice: str = ""
    refused: bool = False
    """Whether what was typed could not be stored and must stay."""

    @property
    def selected(self) -> str:
        """Id of the reply voted on, or nothing."""
        return self.reply.id if self.reply else ""

    @property
    def votable(self) -> bool:
        """Whether the reply has ended and holds text."""
        return bool(self.reply and self.reply.text.strip() and self.reply.state in ("done", "stopped"))


class FeedbackDesk:
    """Votes, reasons, comments and better answers, each of the person who asks."""

    def __init__(self, store: Store, texts: Texts) -> None:
        self._store = store
        self._texts = texts

    def panel(self, person: int, selected: str, shown: str) -> Panel:
        """Describe one reply of the path on screen: the selected one, or without a selection the last one."""
        try:
            path = own_path(self._store, person, shown) if shown else []
        except StoreError as error:
            return Panel(notice=self._texts.error(error))
        replies = [message for message in path if message.role == "assistant"]
        if not replies or (selected and selected not in (reply.id for reply in replies)):
            return Panel(notice=self._texts.reload_page if selected else "")
        places = {reply.id: place for place, reply in enumerate(replies, 1)}
        place = places.get(selected, len(replies))
        reply = replies[place - 1]
        vote = self._store.votes.get(reply.id, person)
        rewrite = self._store.votes.get_rewrite(reply.id, person)
        described = Panel(reply, place, len(replies), rewrite=rewrite.text if rewrite else "")
        return replace(described, value=vote.value, reasons=vote.reasons, comment=vote.comment) if vote else described

    def unsaved(self, person: int, selected: str, comment: str, rewrite: str) -> tuple[bool, bool]:
        """Whether the comment and the better answer typed in the panel of a reply are stored nowhere yet."""
        try:
            panel = self.panel(person, selected, selected)
        except StoreError:
            panel = Panel()
        if panel.reply is None:
            return False, False
        commented = bool(panel.value) and comment.strip() != panel.comment.strip()
        return commented, bool(rewrite.strip()) and rewrite not in (panel.rewrite, panel.reply.text)

    def leave(self, person: int, selected: str, comment: str, rewrite: str) -> str:
        """Keep what is typed in the panel of a reply whose reader goes elsewhere.

        A comment is stored. A better answer is not, because the model would learn from half of one.

        Returns:
            What the page keeps of the better answer, for `resume`; nothing when none was being written.
        """
        commented, rewritten = self.unsaved(person, selected, comment, rewrite)
        if commented:
            reasons = self.panel(person, selected, selected).reasons
            self.explain(person, selected, selected, reasons, comment)
        return f"{selected}\n{rewrite}" if rewritten else ""

    def resume(self, person: int, selected: str, shown: str, text: str, kept: str) -> Panel:
        """Open the better answer to a reply with what is being written.

        Args:
            text: in the box; of a closed one the stored answer or nothing.
            kept: what `leave` returned.
        """
        panel = self.panel(person, selected, shown)
        about, _, left = kept.partition("\n")
        if text.strip() and text != panel.rewrite:
            return replace(panel, rewrite=text)
        return replace(panel, rewrite=left) if left and about == panel.selected else panel

    def thumb(self, person: int, selected: str, shown: str, value: int, comment: str | None = None) -> Panel:
        """Vote up (1) or down (-1); a vote that stands already stays, since a double click is no change of mind.

        Args:
            comment: what is typed, saved or not; None keeps what is stored. Reasons of the other side go.
        """
        panel = self.panel(person, selected, shown)
        kept = panel.comment if comment is None else comment
        return self._rate(person, panel, shown, value, panel.reasons if panel.value == value else (), kept)

    def explain(self, person: int, selected: str, shown: str, reasons: Sequence[str], comment: str) -> Panel:
        """Store reasons and comment beside the vote that stands."""
        panel = self.panel(person, selected, shown)
        if not panel.value:
            return replace(panel, notice=panel.notice or self._texts.vote_first)
        allowed = REASONS_UP if panel.value > 0 else REASONS_DOWN
        return self._rate(person, panel, shown, panel.value, [key for key in reasons if key in allowed], comment)

    def retract(self, person: int, selected: str, shown: str) -> Panel:
        """Take the vote back."""
        return self._rate(person, self.panel(person, selected, shown), shown, 0, (), "")

    def liked(self, person: int, shown: str, index: Any, liked: Any, selected: str = "", comment: str = "") -> Panel:
        """Vote from the Chatbot's thumbs: `liked` is True, False, or "" when an active thumb was clicked again.

        Args:
            selected: the reply that the panel shows.
            comment: what is typed about that one.
        """
        try:
            path = own_path(self._store, person, shown) if shown else []
        except StoreError as error:
            return Panel(notice=self._texts.error(error))
        place = index[0] if isinstance(index, list | tuple) else index
        if not isinstance(place, int) or not 0 <= place < len(path) or path[place].role != "assistant":
            return replace(self.panel(person, "", shown), notice=self._texts.reload_page)
        value = {True: 1, False: -1}.get(liked, 0) if isinstance(liked, bool) else 0
        panel = self.panel(person, path[place].id, shown)
        same_side = value == panel.value
        kept = comment if panel.selected == selected else panel.comment
        return self._rate(person, panel, shown, value, panel.reasons if same_side else (), kept if value else "")

    def rewrite(self, person: int, selected: str, shown: str, text: str) -> Panel:
        """Store the person's own better answer."""
        panel = self.panel(person, selected, shown)
        if not panel.reply:
            return replace(panel, rewrite=text, notice=panel.notice or self._texts.not_votable, refused=True)
        try:
            self._store.votes.rewrite(panel.selected, person, text)
        except StoreError as error:
            return replace(panel, rewrite=text, notice=self._texts.error(error), refused=True)
        return replace(self.panel(person, panel.selected, shown), notice=self._texts.rewrite_saved)

    def _rate(self, person: int, panel: Panel, shown: str, value: int, reasons: Sequence[str], comment: str) -> Panel:
        if not panel.votable:
            return replace(panel, notice=panel.notice or self._texts.not_votable)
        try:
            self._store.votes.rate(panel.selected, person, value, reasons, comment)
        except StoreError as error:
            return replace(panel, notice=self._texts.error(error))
        saved = self._texts.vote_saved if value else self._texts.vote_retracted
        return replace(self.panel(person, panel.selected, shown), notice=saved)


@dataclass(frozen=True)
class VoteBar:
    """The row of buttons under a reply."""

    row: gr.Row
    up: gr.Button
    down: gr.Button
    open_rewrite: gr.Button


@dataclass(frozen=True)
class FeedbackParts:
    """The panel's components; `outputs` in the order that `panel_updates` fills them."""

    bar: VoteBar
    selected: gr.Textbox
    caption: gr.HTML
    details: gr.Column
    reasons: gr.CheckboxGroup
    comment: gr.Textbox
    save: gr.Button
    retract: gr.Button
    writing: gr.Column
    rewrite: gr.Textbox
    save_rewrite: gr.Button
    kept: gr.Textbox
    """A better answer that its writer left unsaved for another conversation, behind the id of its reply."""

    @property
    def outputs(self) -> list[Any]:
        """Components that a panel fills."""
        return [
            self.selected, self.bar.row, self.caption, self.bar.up, self.bar.down, self.details, self.reasons,
            self.comment, self.writing, self.rewrite,
        ]  # fmt: skip


def build_vote_bar(texts: Texts) -> VoteBar:
    """Lay out the thumbs and the way to a better answer."""
    with gr.Row(visible=False, elem_id="vote-bar") as row:
        up = gr.Button(texts.thumb_up, elem_id="vote-up", size="sm", min_width=40, scale=0)
        down = gr.Button(texts.thumb_down, elem_id="vote-down", size="sm", min_width=40, scale=0)
        open_rewrite = gr.Button(texts.open_rewrite, elem_id="open-rewrite", size="sm", min_width=40, scale=0)
    return VoteBar(row, up, down, open_rewrite)


def build_feedback(texts: Texts, bar: VoteBar) -> FeedbackParts:
    """Lay out reasons, comment and the better answer."""
    selected = gr.Textbox(visible=False, elem_id="selected-reply")
    caption = gr.HTML(elem_id="reply-caption")
    with gr.Column(visible=False, elem_id="vote-details", elem_classes="card") as details:
        reasons = gr.CheckboxGroup([], label=texts.reasons_label, elem_id="vote-reasons", container=False)
        with gr.Row(elem_classes="tight"):
            comment = gr.Textbox(
                placeholder=texts.comment_placeholder, label=texts.comment_label, show_label=False, max_lines=3,
                max_length=2000, elem_id="vote-comment", container=False, scale=4,
            )  # fmt: skip
            save = gr.Button(texts.save_comment, elem_id="vote-save", size="sm", min_width=60, scale=0)
            retract = gr.Button(texts.retract, elem_id="vote-retract", size="sm", min_width=60, scale=0)
    with gr.Column(visible=False, elem_id="rewrite-panel", elem_classes="card") as writing:
        rewrite = gr.Textbox(
            label=texts.rewrite_label, info=texts.rewrite_info, lines=3, max_lines=12, elem_id="rewrite-text",
            container=False, max_length=MAX_TYPED,
        )  # fmt: skip
        save_rewrite = gr.Button(
            texts.save_rewrite, variant="primary", elem_id="rewrite-save", size="sm", min_width=60, scale=0
        )
    kept = gr.Textbox(visible=False, elem_id="kept-rewrite")
    return FeedbackParts(
        bar, selected, caption, details, reasons, comment, save, retract, writing, rewrite, save_rewrite, kept
    )


def panel_updates(panel: Panel, texts: Texts, writing: bool | None = False) -> list[Any]:
    """Fill `FeedbackParts.outputs`; `writing` opens or closes the better answer, None leaves it with what is typed."""
    keys = REASONS_DOWN if panel.value < 0 else REASONS_UP
    choices = [(texts.reasons[key], key) for key in keys]
    label = texts.reasons_label_down if panel.value < 0 else texts.reasons_label
    return [
        panel.selected,
        gr.update(visible=panel.votable),
        caption_html(panel, texts),
        gr.update(variant="primary" if panel.value > 0 else "secondary"),
        gr.update(variant="primary" if panel.value < 0 else "secondary"),
        gr.update(visible=bool(panel.value) and panel.votable),
        gr.update(choices=choices, value=list(panel.reasons), label=label),
        panel.comment,
        gr.skip() if writing is None else gr.update(visible=writing and panel.votable),
        gr.skip() if writing is None else panel.rewrite or (panel.reply.text if panel.reply and writing else ""),
    ]


def meanwhile_updates(
    votes: FeedbackDesk, texts: Texts, person: int, shown: str, busy: bool, typed: Sequence[str]
) -> list[Any]:
    """Fill `FeedbackParts.outputs` at a stream's beginning and end: what is being written there stays.

    Args:
        typed: the panel's reply, comment and better answer when the stream began; the end may find more, so it is
            left to `settled_updates`.
    """
    if busy and not any(votes.unsaved(person, *typed)):
        return panel_updates(Panel(), texts)
    panel = votes.panel(person, typed[0], shown)
    return [gr.skip(), gr.skip(), caption_html(panel, texts) if panel.reply else gr.skip(), *[gr.skip()] * 7]


def settled_updates(
    votes: FeedbackDesk, texts: Texts, person: int, shown: str, typed: tuple[str, str, str]
) -> list[Any]:
    """Bring the panel to the last reply, unless something is being written about another one.

    Args:
        typed: the panel's reply, comment and better answer as they are now.
    """
    selected, comment, rewrite = typed
    last = votes.panel(person, "", shown)
    if last.reply and last.reply.state == "streaming":
        last = Panel()
    commented, rewritten = votes.unsaved(person, *typed)
    if not commented and not rewritten:
        return panel_updates(last, texts)
    before = votes.panel(person, selected, selected)
    versions = last.reply and before.reply and last.reply.parent_id == before.reply.parent_id
    if not versions or selected == last.selected:
        return meanwhile_updates(votes, texts, person, shown, False, typed)
    if commented:  # another version took the place of the one that it is about
        votes.explain(person, selected, selected, before.reasons, comment)
    if not rewritten:
        return panel_updates(last, texts)
    # A better answer is one to the question, and serves beside this version as well.
    return [*panel_updates(last, texts)[:-2], gr.update(visible=last.votable), gr.skip()]


def caption_html(panel: Panel, texts: Texts) -> str:
    """Say which reply the panel is about and what produced it."""
    if not panel.reply:
        return ""
    parts = [texts.about_reply.format(place=panel.place, of=panel.of)] if panel.place < panel.of else []
    parts.append(origin_line(panel.reply, texts))
    if panel.rewrite:
        parts.append(texts.has_rewrite)
    return " · ".join(texts.escape(part) for part in parts if part)


def origin_line(reply: Message, texts: Texts) -> str:
    """Name the adapter, preset and seed of a reply."""
    origin = reply.origin
    if origin is None:
        return ""
    adapter = texts.adapter_name(origin.adapter_id)
    return f"{adapter} · {texts.presets.get(origin.preset, origin.preset)} · {texts.seed} {origin.seed}"


def notice_update(notice: str) -> Any:
    """Show a sentence that screen readers announce, or nothing."""
    return gr.update(value=f"<div role='status'>{Texts.escape(notice)}</div>", visible=bool(notice))


def wire_votes(
    parts: FeedbackParts, chatbot: gr.Chatbot, shown: gr.Textbox, notice: gr.HTML, desk: FeedbackDesk, fill: Fill
) -> None:
    """Connect thumbs, reasons, comment, retraction and better answers."""
    outputs = [chatbot, notice, *parts.outputs]
    chosen = [parts.selected, shown]

    def filled(person: int, panel: Panel, selected: str, shown: str, writing: bool | None) -> list[Any]:
        updates = fill(person, panel, shown, writing)
        if panel.value and panel.selected == selected:
            updates[outputs.index(parts.comment)] = gr.skip()  # its writer may have typed on since the click
        return updates

    def thumb_up(selected: str, shown: str, typed: str, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        return filled(person, desk.thumb(person, selected, shown, 1, typed), selected, shown, None)

    def thumb_down(selected: str, shown: str, typed: str, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        return filled(person, desk.thumb(person, selected, shown, -1, typed), selected, shown, None)

    def liked(selected: str, shown: str, comment: str, event: gr.LikeData, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        panel = desk.liked(person, shown, event.index, event.liked, selected, comment)
        return filled(person, panel, selected, shown, None if panel.selected == selected else False)

    def give_reasons(selected: str, shown: str, reasons: list[str], comment: str, request: gr.Request) -> Any:
        return notice_update(desk.explain(visitor(request).id, selected, shown, reasons, comment).notice)

    def explain(selected: str, shown: str, reasons: list[str], comment: str, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        return filled(person, desk.explain(person, selected, shown, reasons, comment), selected, shown, None)

    def retract(selected: str, shown: str, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        return fill(person, desk.retract(person, selected, shown), shown, None)

    typed = [*chosen, parts.comment]
    parts.bar.up.click(thumb_up, typed, outputs, **ORDERED)
    parts.bar.down.click(thumb_down, typed, outputs, **ORDERED)
    chatbot.like(liked, typed, outputs, **ORDERED)
    explained = [*chosen, parts.reasons, parts.comment]
    parts.reasons.input(give_reasons, explained, [notice], **ORDERED)
    gr.on([parts.save.click, parts.comment.submit], explain, explained, outputs, **ORDERED)
    parts.retract.click(retract, chosen, outputs, **ORDERED)
    wire_rewrites(parts, [*chosen, parts.rewrite], outputs, desk, filled)


def wire_rewrites(
    parts: FeedbackParts, written: list[Any], outputs: list[Any], desk: FeedbackDesk, filled: FillPanel
) -> None:
    """Connect the better answers."""

    def open_rewrite(selected: str, shown: str, text: str, kept: str, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        return filled(person, desk.resume(person, selected, shown, text, kept), selected, shown, True)

    def rewrite(selected: str, shown: str, text: str, request: gr.Request) -> list[Any]:
        person = visitor(request).id
        panel = desk.rewrite(person, selected, shown, text)
        updates = filled(person, panel, selected, shown, None if panel.refused else False)
        return [*updates, gr.skip() if panel.refused else ""]

    parts.bar.open_rewrite.click(open_rewrite, [*written, parts.kept], outputs, **ORDERED)
    parts.save_rewrite.click(rewrite, written, [*outputs, parts.kept], **ORDERED)
