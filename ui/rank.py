"""The rank page: one prompt, four replies from the same settings, put in order by the one who asked.

Handlers above, layout and wiring below. In which order the replies are shown is drawn on the server; what produced them
is not sent to the browser before their order is saved.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import gradio as gr

from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import NotYours, StoreError
from feedback_store.records import Conversation, Message, Ranking
from ui.door import is_limited, visitor
from ui.events import SHORT, STREAMED
from ui.feedback import notice_update, origin_line
from ui.own import NOBODY, own_path, own_versions
from ui.replies import Draft, Replies
from ui.rounds import (
    Card,
    Refused,
    Rounds,
    Writing,
    build_card,
    build_composer,
    fill_page,
    have_ended,
    prompt_html,
    repeated,
)
from ui.texts import Texts
from ui.written import as_written

LETTERS: Final = "ABCD"
"""What the replies of a round are called, one letter each."""
COUNT: Final = len(LETTERS)
PLACES: Final = tuple(str(place) for place in range(1, COUNT + 1))
RECENT: Final = 10
Stage = Literal["same", "empty", "running", "placing", "ranked"]
"""What the page shows; `same`: what it shows already."""


@dataclass(frozen=True)
class RankRound:
    """What the rank page shows at one moment."""

    stage: Stage = "empty"
    prompt: str = ""
    key: str = ""
    """The question's id."""
    texts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    """Of the replies that can be ranked, in the order shown."""
    places: tuple[int, ...] = ()
    """In the same order, of a ranking that stands."""
    revealed: tuple[str, ...] = ()
    none_is_good: bool = False
    notice: str = ""
    keep: str | None = None
    shut_out: bool = False
    """Its reader was erased or disabled; nothing that is stored is shown any more."""
    waiting: bool = False
    """Whether its answers are still being written for another tab."""


class RankDesk:
    """What the rank page can do for the person who asks, without the page."""

    def __init__(self, replies: Replies, store: Store, settings: Settings, texts: Texts) -> None:
        self._replies = replies
        self._store = store
        self._texts = texts
        self._rounds = Rounds(replies, store, settings, texts, "rank", COUNT)

    def open(self, person: int) -> RankRound:
        """Show the latest round: to be ranked, ranked, under way, or broken off with its prompt to ask again."""
        for latest in self._store.conversations.list(person, limit=1, kind="rank"):
            return self._round(person, latest)
        return RankRound()

    async def ask(self, person: int, text: str, preset: str, *, limited: bool = True) -> AsyncGenerator[RankRound]:
        """Stream four replies to one prompt, then offer their places. Refusals keep the text and all else.

        Args:
            limited: whether this person may have only so many replies under way.
        """
        asked = self._rounds.ask(person, text, preset, by_id, limited=limited)
        try:
            async with aclosing(asked) as looks:
                async for look in looks:
                    notice = self._texts.waiting(look.waits, look.place)
                    shown = RankRound("running", look.question.text, look.question.id, look.texts, notice=notice)
                    yield replace(shown, keep="" if look.begins else None)
        except Refused as refused:
            yield RankRound("same", notice=str(refused), keep=text)
        else:
            yield await self._replies.in_thread(partial(self._offer, person, look))

    def _offer(self, person: int, look: Writing) -> RankRound:
        if not self._store.people.is_let_in(person):
            return RankRound(shut_out=True, notice=self._texts.shut_out)
        if not have_ended(look.drafts):
            return RankRound(prompt=look.question.text, texts=look.texts, notice=self._texts.no_ranking)
        try:
            return self._round(person, self._store.conversations.get(look.question.conversation_id, person))
        except StoreError as error:
            return RankRound(prompt=look.question.text, texts=look.texts, notice=self._texts.error(error))

    def stop(self, person: int, key: str) -> None:
        """Stop all replies of a round."""
        self._replies.stop(key, person)

    def save(self, person: int, key: str, places: Sequence[int | None], none_is_good: bool) -> RankRound:
        """Store the order and show what each reply was; a later one replaces it.

        Args:
            places: of the replies in the order shown, 1 is best; beyond those that are shown they do not count.
        """
        try:
            ids = self._find(person, key).ids
            given = [place for place in places[: len(ids)] if place is not None]
            if len(given) < len(ids):
                return RankRound("same", notice=self._texts.place_each)
            self._store.votes.rank(key, person, dict(zip(ids, given, strict=True)), none_is_good)
            return replace(self._find(person, key), notice=self._texts.order_saved)
        except StoreError as error:
            return RankRound("same", notice=self._texts.error(error))

    def take_back(self, person: int, key: str) -> RankRound:
        """Take the order back; the replies can be ranked again."""
        try:
            self._find(person, key)
            self._store.votes.retract_ranking(key, person)
            return replace(self._find(person, key), notice=self._texts.order_taken_back)
        except StoreError as error:
            return RankRound("same", notice=self._texts.error(error))

    def reopen(self, person: int, key: str | None) -> RankRound:
        """Show one of the latest rounds again."""
        try:
            return self._find(person, key or "")
        except StoreError:
            return RankRound("same", notice=self._texts.reload_page)

    def past(self, person: int) -> list[tuple[str, str]]:
        """Prompts and keys of the latest rounds that can be ranked or are, newest first."""
        talks = self._store.conversations.list(person, limit=RECENT, kind="rank")
        rounds = [(talk.title, self._round(person, talk)) for talk in talks]
        says = {True: self._texts.ranked, False: self._texts.not_ranked}
        return [(f"{says[bool(shown.places)]} · {title}", shown.key) for title, shown in rounds if shown.key]

    def _find(self, person: int, key: str) -> RankRound:
        """Return the round of a question, to be ranked or ranked.

        Raises:
            NotYours: there is no such question, it is somebody else's, or there is nothing to rank.
        """
        talk = self._store.conversations.get(own_path(self._store, person, key)[-1].conversation_id, person)
        shown = self._round(person, talk) if talk.kind == "rank" else RankRound()
        if shown.key != key:
            raise NotYours
        return shown

    def _round(self, person: int, talk: Conversation) -> RankRound:
        """Read a round; only one that can be ranked has a key."""
        path = self._store.conversations.thread(talk.id, person)
        if not path:
            return RankRound()
        question, replies = path[0], own_versions(self._store, person, path[-1].id)
        ranking = self._store.votes.get_ranking(question.id, person)
        if ranking is None and not (len(replies) >= COUNT and all(reply.state == "done" for reply in replies)):
            if self._rounds.under_way(person, replies, talk.updated_at):
                return RankRound(prompt=question.text, notice=self._texts.rank_under_way, waiting=True)
            return RankRound(prompt=question.text, notice=self._texts.rank_broken_off, keep=question.text)
        return self._whole_round(question, in_order(replies, ranking), ranking)

    def _whole_round(self, question: Message, shown: list[Message], ranking: Ranking | None) -> RankRound:
        texts = tuple(reply.text for reply in shown)
        if len(shown) < 2:
            return RankRound(prompt=question.text, texts=texts, notice=self._texts.alike)
        found = RankRound("placing", question.text, question.id, texts, tuple(reply.id for reply in shown))
        if ranking is None or ranking.retracted:
            return replace(found, notice=self._texts.alike_once if len(shown) < COUNT else "")
        return replace(
            found,
            stage="ranked",
            places=tuple(ranking.ranks.values()),
            none_is_good=ranking.none_is_good,
            revealed=tuple(origin_line(reply, self._texts) for reply in shown),
        )


def by_id(drafts: list[Draft]) -> list[Draft]:
    """Put replies in an order that says nothing of them, and is the same at every look: ids are drawn at random."""
    return sorted(drafts, key=lambda draft: draft.message.id)


def in_order(replies: Sequence[Message], ranking: Ranking | None) -> list[Message]:
    """Return what there is to rank of a round, in the order in which it is shown.

    Args:
        replies: oldest first; those beyond the first four stand in the places of replies that said the same.
        ranking: where there is one, it tells.
    """
    if ranking is not None:
        known = {reply.id: reply for reply in replies}
        return [known[message_id] for message_id in ranking.ranks]
    shown = sorted(replies[:COUNT], key=lambda reply: reply.id)
    for place, again in zip(repeated([reply.text for reply in shown]), replies[COUNT:], strict=False):
        shown[place] = again
    alike = repeated([reply.text for reply in shown])
    return [reply for place, reply in enumerate(shown) if reply.text.strip() and place not in alike]


class Answer(NamedTuple):
    """One of the replies on the page, and its place."""

    card: Card
    place: gr.Radio


@dataclass(frozen=True)
class RankParts:
    """The rank page's components; `outputs` in the order that `RankPage.updates` fills them."""

    key: gr.Textbox
    box: gr.Textbox
    preset: gr.Radio
    ask: gr.Button
    stop: gr.Button
    notice: gr.HTML
    prompt: gr.HTML
    answers: tuple[Answer, ...]
    placing: gr.Column
    none_is_good: gr.Checkbox
    save: gr.Button
    take_back: gr.Button
    next: gr.Button
    past: gr.Radio
    timer: gr.Timer

    @property
    def outputs(self) -> list[Any]:
        """Components that a round fills."""
        answers = [part for answer in self.answers for part in (*answer.card, answer.place)]
        return [
            self.notice, self.box, self.key, self.ask, self.stop, self.prompt, *answers, self.placing,
            self.none_is_good, self.save, self.take_back, self.next, self.past, self.timer,
        ]  # fmt: skip


OUTPUTS: Final = 13 + 4 * COUNT
"""How many they are."""


def build_rank(texts: Texts, presets: list[tuple[str, str]]) -> RankParts:
    """Lay out the rank page."""
    key = gr.Textbox(visible=False, elem_id="rank-key")
    gr.HTML(f"<p class='lead'>{texts.escape(texts.rank_intro)}</p>")
    preset, box, ask, stop = build_composer(texts, presets, "rank", texts.rank_placeholder, texts.rank_button)
    notice = gr.HTML(elem_id="rank-notice", elem_classes="notice", visible=False)
    prompt = gr.HTML(elem_id="rank-prompt", elem_classes="prompt")
    with gr.Row(elem_id="rank-answers"):
        answers = tuple(_build_answer(texts, letter) for letter in LETTERS)
    with gr.Column(visible=False, elem_id="placing") as placing:
        none_is_good = gr.Checkbox(label=texts.none_is_good, elem_id="none-is-good", container=False)
        with gr.Row(elem_classes="tight"):
            save = _button(texts.save_order, "rank-save", "primary")
            take_back = _button(texts.take_order_back, "rank-take-back", "secondary")
            following = _button(texts.next_round, "rank-next", "secondary")
    past = gr.Radio(
        [], label=texts.past_rankings, elem_id="past-rankings", elem_classes="titles", container=False, visible=False
    )
    timer = gr.Timer(1.0, active=False)
    return RankParts(
        key, box, preset, ask, stop, notice, prompt, answers, placing, none_is_good, save, take_back, following, past,
        timer,
    )  # fmt: skip


def _build_answer(texts: Texts, letter: str) -> Answer:
    card = build_card(texts.answer.format(letter=letter), letter)
    with card.column:
        place = gr.Radio(
            list(PLACES), label=texts.place.format(letter=letter), elem_id=f"place-{letter}", container=False,
            elem_classes="segments places",
        )  # fmt: skip
    return Answer(card, place)


def _button(label: str, name: str, variant: Literal["primary", "secondary"]) -> gr.Button:
    return gr.Button(label, variant=variant, elem_id=name, size="md", min_width=80, scale=0)


class RankPage:
    """Turns rounds into component updates."""

    def __init__(self, desk: RankDesk, texts: Texts) -> None:
        self._desk = desk
        self._texts = texts

    def updates(self, person: int, shown: RankRound) -> list[Any]:
        """Fill `RankParts.outputs`."""
        person = NOBODY if shown.shut_out else person
        told = [notice_update(shown.notice), gr.skip() if shown.keep is None else shown.keep]
        if shown.stage == "same":
            return [*told, *[gr.skip()] * (OUTPUTS - len(told))]
        running, whole = shown.stage == "running", shown.stage in ("placing", "ranked")
        return [
            *told,
            shown.key,
            gr.update(visible=not running),
            gr.update(visible=running),
            prompt_html(shown.prompt),
            *[part for number in range(COUNT) for part in self._answer(shown, number)],
            gr.update(visible=running or whole),
            gr.update(value=shown.none_is_good, interactive=whole),
            gr.update(interactive=whole),
            gr.update(visible=shown.stage == "ranked"),
            gr.update(visible=shown.stage == "ranked"),
            gr.update(visible=False) if running else self._past(person, shown.key),
            gr.update(active=shown.waiting),
        ]

    def _answer(self, shown: RankRound, number: int) -> list[Any]:
        """Fill one card: the reply, what it was, and its place."""
        text, revealed, place = (
            values[number] if number < len(values) else ""
            for values in (shown.texts, shown.revealed, [str(place) for place in shown.places])
        )
        whole = shown.stage in ("placing", "ranked")
        return [
            gr.update(visible=number < len(shown.texts)),
            as_written(text),
            self._texts.escape(revealed),
            gr.update(value=place or None, interactive=whole, visible=whole or shown.stage == "running"),
        ]

    def _past(self, person: int, key: str) -> Any:
        rounds = self._desk.past(person)
        known = any(value == key for _, value in rounds)
        return gr.update(choices=rounds, value=key if known else None, visible=bool(rounds))

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
        """Stop all replies."""
        self._desk.stop(visitor(request).id, key)

    def save(
        self, key: str, a: str | None, b: str | None, c: str | None, d: str | None, none_is_good: bool | None,
        request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        """Store the places and show what each reply was."""
        person = visitor(request).id
        places = [int(place) if place in PLACES else None for place in (a, b, c, d)]
        return self.updates(person, self._desk.save(person, key, places, bool(none_is_good)))

    def take_back(self, key: str, request: gr.Request) -> list[Any]:
        """Take the places back."""
        person = visitor(request).id
        return self.updates(person, self._desk.take_back(person, key))

    def reopen(self, key: str | None, request: gr.Request) -> list[Any]:
        """Show a round of before."""
        person = visitor(request).id
        return self.updates(person, self._desk.reopen(person, key))

    def next(self, request: gr.Request) -> list[Any]:
        """Clear the page for another prompt."""
        return self.updates(visitor(request).id, RankRound())


def wire_rank(parts: RankParts, desk: RankDesk, texts: Texts) -> RankPage:
    """Connect the components to the handlers."""
    page, outputs = RankPage(desk, texts), parts.outputs
    assert len(outputs) == OUTPUTS
    places = [answer.place for answer in parts.answers]
    gr.on([parts.box.submit, parts.ask.click], page.ask, [parts.box, parts.preset], outputs, **STREAMED)
    parts.stop.click(page.stop, [parts.key], None, **SHORT)
    parts.save.click(page.save, [parts.key, *places, parts.none_is_good], outputs, **SHORT)
    parts.take_back.click(page.take_back, [parts.key], outputs, **SHORT)
    parts.next.click(page.next, None, outputs, **SHORT)
    parts.timer.tick(page.look_again, [parts.box], outputs, **SHORT)
    parts.past.input(page.reopen, [parts.past], outputs, **SHORT)
    return page
