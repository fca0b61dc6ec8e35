"""Votes as raw requests to the running app: what may not be voted on is refused alike, and a repeated press is one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from httpx import Client

from feedback_store.errors import BadInput, NotYours
from feedback_store.integrity import verify
from tests.door_support import Browser, events_of, open_live, session_of
from tests.test_ui_persons import INVENTED, SECRET, all_rows, told_by
from tests.ui_support import World, play
from ui.replies import Draft
from ui.texts import ENGLISH, KOREAN, Texts

pytestmark = pytest.mark.long

AT_ONCE = 100
VOTES = ("thumb_up", "thumb_down", "liked", "explain", "give_reasons", "retract", "rewrite")
CHOICES = ("choose", "choose_1", "choose_2", "choose_3")
"""One button each."""
PAGES: list[tuple[str, Texts]] = [("", ENGLISH), ("/ko", KOREAN)]


class Own(NamedTuple):
    """What one person has, by id."""

    question: str
    reply: str
    compared: str
    """A side of a comparison."""
    comparison: str
    streaming: str
    """A reply under way."""
    asked: str
    """Its question."""


class Served(NamedTuple):
    """An app on a socket with two members who have each chatted and compared."""

    world: World
    client: Client
    ada: Own
    ben: Own


def live_a_day(world: World, person: int, drafts: list[Draft]) -> Own:
    """Let a person ask, compare, and leave one reply under way."""
    shown = play(world.chat.ask(person, SECRET, "plain", ""))[-1]
    compared = play(world.compare.ask(person, SECRET, "plain"))[-1]
    (comparison,) = world.store.votes.comparisons(person)
    world.engine.seconds_per_word = 0.2
    talk = world.store.conversations.start(person)
    text = f"{SECRET} " * 500
    question, begun = world.replies.ask(
        [], text, "plain", person, lambda: world.store.conversations.add_user_message(talk.id, person, text), None
    )
    world.engine.seconds_per_word = 0
    drafts += begun
    ids = (shown.path[0].id, shown.shown, comparison.left_message_id, compared.key, begun[0].message.id)
    return Own(*ids, asked=question.id)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("app") / "home"
    with open_live(home, events_per_minute=100_000, requests_at_once=10 * AT_ONCE) as (world, client):
        drafts: list[Draft] = []
        ada, ben = (live_a_day(world, world.store.people.get(name).id, drafts) for name in ("ada", "ben"))
        yield Served(world, client, ada, ben)
        for draft in drafts:
            world.replies.close(draft)


@dataclass
class Pressing:
    """A person's browser on a page, and the page's events by the names of their handlers."""

    browser: Browser
    mount: str = ""

    def __post_init__(self) -> None:
        self.events = {event["api_name"]: event for event in events_of(self.browser, self.mount)}

    def send(self, name: str, data: list[Any], **beside: Any) -> str:
        """Send an event; returns all that comes back."""
        return told_by(self.browser, self.events[name], data, self.mount, **beside)

    def vote(self, name: str, selected: str, shown: str, place: int = 1) -> str:
        """Send one kind of vote as the page does.

        Args:
            place: on screen, by which the Chatbot's own thumbs name a reply.
        """
        typed: dict[str, list[Any]] = {
            "explain": [["other"], "a comment"],
            "give_reasons": [["other"], "a comment"],
            "retract": [],
        }
        beside = {"event_data": {"index": place, "value": "x", "liked": True}} if name == "liked" else {}
        return self.send(name, [selected, shown, *typed.get(name, ["a comment"])], **beside)


@pytest.mark.parametrize(("mount", "texts"), PAGES)
@pytest.mark.parametrize("what", Own._fields)
def test_a_vote_on_another_persons_message_is_refused_as_one_on_none(
    served: Served, mount: str, texts: Texts, what: str
) -> None:
    world, client, ada, ben = served
    page = Pressing(session_of(world, client, "ben"), mount)
    theirs, before = getattr(ada, what), all_rows(world)
    for name in VOTES:
        for selects in (False, True):
            foreign, invented = (page.vote(name, one if selects else "", one) for one in (theirs, INVENTED))
            assert foreign == invented
            assert texts.error(NotYours()) in foreign
        if name != "liked":  # which names its reply by its place
            foreign, invented = (page.vote(name, one, ben.reply) for one in (theirs, INVENTED))
            assert foreign == invented
            assert texts.reload_page in foreign
    assert all_rows(world) == before


@pytest.mark.parametrize(("mount", "texts"), PAGES)
@pytest.mark.parametrize("what", ["question", "streaming", "asked"])
def test_ones_own_message_and_a_reply_still_being_written_are_not_voted_on(
    served: Served, mount: str, texts: Texts, what: str
) -> None:
    world, client, _, ben = served
    page = Pressing(session_of(world, client, "ben"), mount)
    own, before = getattr(ben, what), all_rows(world)
    unfinished = BadInput("Only a finished reply can be judged; wait for its end or ask again.")
    refusals = (texts.not_votable, texts.reload_page, texts.vote_first, texts.error(unfinished))
    for name in VOTES:
        for selected, shown in (("", own), (own, own), (own, ben.reply)):
            answer = page.vote(name, selected, shown, place=0 if shown == ben.reply else 1)
            assert sum(says in answer for says in refusals) == 1, (name, selected, shown)
    assert all_rows(world) == before


@pytest.mark.parametrize(("mount", "texts"), PAGES)
def test_a_choice_between_sides_that_were_not_shown_is_refused_as_one_between_none(
    served: Served, mount: str, texts: Texts
) -> None:
    """Another's comparison, replies and questions in a comparison's place, a round whose sides are being written."""
    world, client, ada, ben = served
    page, before = Pressing(session_of(world, client, "ben"), mount), all_rows(world)
    for name in CHOICES:
        invented = page.send(name, [INVENTED])
        assert texts.error(NotYours()) in invented
        not_shown = (*ada, *(one for one in ben if one != ben.comparison), "", "left")
        assert {page.send(name, [key]) for key in not_shown} == {invented}
        for data in ([], [ben.comparison, "middle"], [["left"]], [{"choice": "left"}], [1], [True]):
            assert page.browser.event(page.events[name]["id"], data, mount=mount).status_code == 422
    assert all_rows(world) == before


def test_what_was_refused_above_is_taken_where_it_fits(served: Served) -> None:
    """Otherwise the tests above would be about nothing."""
    world, client, ada, _ = served
    page, person = Pressing(session_of(world, client, "ada")), world.store.people.get("ada").id
    for name in VOTES:
        page.vote(name, "", ada.reply)
    assert world.store.votes.get_rewrite(ada.reply, person)
    page.send("choose", [ada.comparison])
    written = {name: len(all_rows(world)[name]) for name in ("vote", "vote_event", "comparison_event", "rewrite")}
    assert written == {"vote": 1, "vote_event": 5, "comparison_event": 1, "rewrite": 1}


def at_once(page: Pressing, name: str, data: list[Any], **beside: Any) -> None:
    """Press the same button so many times at one moment."""
    gate = threading.Barrier(AT_ONCE)

    def press() -> int:
        gate.wait()
        return page.browser.event(page.events[name]["id"], data, **beside).status_code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert {one.result() for one in [pool.submit(press) for _ in range(AT_ONCE)]} == {200}


REPEATS: dict[str, tuple[str, list[Any], int]] = {
    "thumb": ("thumb_up", [""], 0),
    "thumb beside a comment": ("thumb_down", ["typed"], 0),
    "the Chatbot's thumb": ("liked", ["typed"], 0),
    "changed thumb": ("thumb_down", ["typed"], 1),
    "comment": ("explain", [["clear"], "a comment"], 1),
    "reasons": ("give_reasons", [["clear", "correct"], ""], 1),
    "retraction": ("retract", [], 1),
}
"""What is pressed, what goes with it besides the reply, and how many steps of history there are before."""


@pytest.mark.parametrize("what", REPEATS)
def test_a_hundred_presses_at_once_are_one_vote_and_one_step_of_its_history(served: Served, what: str) -> None:
    """A thumb beside a typed comment was two: the first left the comment out, the others added it."""
    world, client, *_ = served
    page, person = Pressing(session_of(world, client, "ben")), world.store.people.get("ben").id
    reply = play(world.chat.ask(person, what, "plain", ""))[-1].shown
    name, typed, steps = REPEATS[what]
    if steps:
        page.send("thumb_up", ["", reply, ""])
    beside = {"event_data": {"index": 1, "value": "x", "liked": True}} if name == "liked" else {}
    at_once(page, name, [reply, reply, *typed], **beside)
    rows, given = all_rows(world), world.store.votes.get(reply, person)
    assert sum(reply in row for row in rows["vote"]) == 1
    assert sum(reply in row for row in rows["vote_event"]) == steps + 1
    assert given and given.version == steps + 1
    assert given.comment == ("" if name == "retract" else typed[-1])
    assert verify(world.store) == []


def test_a_hundred_choices_at_once_are_one_choice_and_one_step_of_its_history(served: Served) -> None:
    world, client, _, ben = served
    page, person = Pressing(session_of(world, client, "ben")), world.store.people.get("ben").id
    at_once(page, "choose_3", [ben.comparison])
    assert sum(ben.comparison in row for row in all_rows(world)["comparison_event"]) == 1
    (comparison,) = world.store.votes.comparisons(person)
    assert comparison.choice == "right"
    assert verify(world.store) == []


def test_a_hundred_better_answers_at_once_are_one(served: Served) -> None:
    world, client, *_ = served
    page, person = Pressing(session_of(world, client, "ben")), world.store.people.get("ben").id
    reply = play(world.chat.ask(person, "rewritten", "plain", ""))[-1].shown
    page.send("rewrite", ["", reply, "First words."])
    at_once(page, "rewrite", ["", reply, "Better words."])
    assert sum(reply in row for row in all_rows(world)["rewrite"]) == 1
    stored = world.store.votes.get_rewrite(reply, person)
    assert stored and stored.text == "Better words."
    assert verify(world.store) == []
