"""Whether chats may teach the assistant, asked where people chat: a switch for all of them, a choice for the one shown.

Handlers above, layout and wiring below. What an answer does is the store's to say.
"""

from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from feedback_store import Store
from feedback_store.errors import StoreError
from ui.door import visitor
from ui.events import SHORT
from ui.feedback import notice_update
from ui.own import own_path
from ui.texts import Texts

Answer = Literal["on", "off"]
GENERAL = "general"
"""The choice for a conversation that goes by what its person says of all."""


class TeachDesk:
    """What people can say about teaching."""

    def __init__(self, store: Store, texts: Texts) -> None:
        self._store = store
        self._texts = texts

    def teaches(self, person: int) -> bool:
        """Say whether this person's chats may teach where a conversation says nothing else; unasked means no."""
        return self._store.consent.of_person(person) == "on"

    def here(self, person: int, shown: str) -> str | None:
        """Return the choice for the conversation on screen: `general`, `on` or `off`; None where there is none.

        Args:
            shown: id of the last message on screen, or nothing.
        """
        try:
            path = own_path(self._store, person, shown) if shown else []
            return self._store.consent.of_conversation(path[-1].conversation_id, person) or GENERAL if path else None
        except StoreError:
            return None

    def answer(self, person: int, answer: Answer) -> str:
        """Store what holds for all chats of a person; returns what to tell."""
        try:
            self._store.consent.set_person(person, answer)
        except StoreError as error:
            return self._texts.error(error)
        return self._texts.teach_answered[answer]

    def answer_here(self, person: int, shown: str, choice: str | None) -> str:
        """Store what holds for the conversation on screen; returns what to tell.

        Args:
            choice: of the three.
        """
        if choice not in (GENERAL, "on", "off"):
            return self._texts.reload_page
        answer: Answer | None = "on" if choice == "on" else "off" if choice == "off" else None
        try:
            conversation_id = own_path(self._store, person, shown)[-1].conversation_id
            self._store.consent.set_conversation(conversation_id, person, answer)
        except StoreError as error:
            return self._texts.error(error)
        return self._texts.teach_here_answered[choice]


@dataclass(frozen=True)
class TeachParts:
    """The switch and the choice."""

    says: gr.HTML
    turn_off: gr.Button
    turn_on: gr.Button
    here: gr.Radio
    elsewhere: tuple[gr.HTML, gr.HTML]
    """Say on the compare and rank pages, which have no switch, what holds there; those pages render them."""

    @property
    def switch(self) -> list[Any]:
        """Components that `TeachPage.switch` fills."""
        return [self.says, self.turn_off, self.turn_on, *self.elsewhere]


def build_teaching(texts: Texts) -> TeachParts:
    """Lay out one quiet line."""
    with gr.Row(elem_id="teaching", elem_classes="tight"):
        says = gr.HTML(elem_id="teach-says")
        turn_off = gr.Button(texts.teach_turn_off, elem_id="teach-off", size="sm", scale=0, visible=False)
        turn_on = gr.Button(texts.teach_turn_on, elem_id="teach-on", size="sm", scale=0, visible=False)
        # no menu: one that is tabbed through stays open over the message box, and the next Enter chooses in it
        here = gr.Radio(
            [(words, key) for key, words in texts.teach_here.items()], value=GENERAL, label=texts.teach_here_label,
            show_label=False, container=False, elem_id="teach-here", elem_classes="segments", scale=0, visible=False,
        )  # fmt: skip
    on_compare = gr.HTML(elem_id="teach-compare", elem_classes="muted", render=False)
    on_rank = gr.HTML(elem_id="teach-rank", elem_classes="muted", render=False)
    return TeachParts(says, turn_off, turn_on, here, (on_compare, on_rank))


class TeachPage:
    """Turns answers into component updates."""

    def __init__(self, desk: TeachDesk, texts: Texts) -> None:
        self._desk = desk
        self._texts = texts

    def switch(self, person: int) -> list[Any]:
        """Fill `TeachParts.switch`."""
        teaches = self._desk.teaches(person)
        says = self._texts.teach_on if teaches else self._texts.teach_off
        elsewhere = self._texts.escape(f"{says} {self._texts.teach_elsewhere}")
        return [
            self._texts.escape(says),
            gr.update(visible=teaches),
            gr.update(visible=not teaches),
            elsewhere,
            elsewhere,
        ]

    def here(self, person: int, shown: str) -> Any:
        """Fill the choice; there is none before a conversation begins."""
        choice = self._desk.here(person, shown)
        return gr.update(visible=False) if choice is None else gr.update(value=choice, visible=True)

    def teach_on(self, shown: str, request: gr.Request) -> list[Any]:
        """Let a person's chats teach."""
        return self._answered(visitor(request).id, shown, "on")

    def teach_off(self, shown: str, request: gr.Request) -> list[Any]:
        """Keep a person's chats from teaching, those too that were allowed one by one."""
        return self._answered(visitor(request).id, shown, "off")

    def teach_here(self, choice: str | None, shown: str, request: gr.Request) -> list[Any]:
        """Store the choice for the conversation on screen."""
        person = visitor(request).id
        notice = self._desk.answer_here(person, shown, choice)
        return [notice_update(notice), self.here(person, shown)]

    def _answered(self, person: int, shown: str, answer: Answer) -> list[Any]:
        notice = self._desk.answer(person, answer)
        return [notice_update(notice), *self.switch(person), self.here(person, shown)]


def wire_teaching(parts: TeachParts, page: TeachPage, shown: gr.Textbox, notice: gr.HTML) -> None:
    """Connect the switch and the choice."""
    outputs = [notice, *parts.switch, parts.here]
    parts.turn_on.click(page.teach_on, [shown], outputs, **SHORT)
    parts.turn_off.click(page.teach_off, [shown], outputs, **SHORT)
    parts.here.input(page.teach_here, [parts.here, shown], [notice, parts.here], **SHORT)
