"""Whose is what: every handler works for the person who asks, and the names of somebody else's things open nothing."""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pytest
from gradio.helpers import special_args
from gradio.routes import App
from httpx import Client
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]
from starlette.routing import Mount

from feedback_store.errors import StoreError
from feedback_store.records import Person
from tests.door_support import Browser, events_of, make_app, open_app, open_live, session_of
from tests.ui_support import World, make_world, play, request_of
from ui.chat import ChatPage, View
from ui.compare import ComparePage
from ui.operate import OperatePage
from ui.rank import RankPage
from ui.replies import Draft
from ui.teaching import GENERAL, TeachDesk, TeachPage
from ui.texts import ENGLISH, KOREAN

SECRET = "the canary of ada"
INVENTED = "0123456789abcdef0123456789abcdef"
OPERATORS = {"refresh", "refresh_1", "tick", "promote", "roll_back", "retrain"}
"""Events that the guard lets no member send."""
UI = Path(__file__).parents[1] / "ui"

pytestmark = pytest.mark.long


class Theirs(NamedTuple):
    """What ada has, by id."""

    conversation: str
    question: str
    reply: str
    version: str
    """A second answer to the same question; both hold the secret."""
    comparison: str
    compared: str
    ranked: str
    """The question of a ranking."""
    running: str
    """A reply under way."""


class Two(NamedTuple):
    """An app's parts with two accounts, ada with a past of her own and ben without."""

    world: World
    ada: Person
    ben: Person
    theirs: Theirs
    draft: Draft


def fill(world: World, person: int) -> tuple[Theirs, Draft]:
    """Let a person chat, vote, rewrite, compare and rank; the last reply is still being written."""
    first = play(world.chat.ask(person, SECRET, "plain", ""))[-1]
    second = play(world.chat.retry(person, "plain", first.shown))[-1]
    world.votes.thumb(person, "", second.shown, 1)
    world.votes.explain(person, "", second.shown, ["clear"], SECRET)
    world.votes.rewrite(person, "", second.shown, SECRET)
    shown = play(world.compare.ask(person, SECRET, "plain"))[-1]
    (comparison,) = world.store.votes.comparisons(person)
    ranked = play(world.rank.ask(person, SECRET, "plain"))[-1].key
    world.rank.save(person, ranked, [1, 2, 3, 4], False)
    world.engine.seconds_per_word = 0.2
    conversation = world.store.conversations.start(person)

    def record() -> Any:
        return world.store.conversations.add_user_message(conversation.id, person, f"{SECRET} " * 500)

    _, [draft] = world.replies.ask([], f"{SECRET} " * 500, "plain", person, record, None)
    world.engine.seconds_per_word = 0
    ids = (first.conversation_id, first.path[0].id, first.shown, second.shown, shown.key)
    return Theirs(*ids, comparison.left_message_id, ranked, draft.message.id), draft


@pytest.fixture
def two(home: Path) -> Iterator[Two]:
    world = make_world(home)
    ada, ben = world.store.people.add("ada"), world.store.people.add("ben")
    theirs, draft = fill(world, ada.id)
    yield Two(world, ada, ben, theirs, draft)
    world.replies.close(draft)
    world.engine.close()
    world.store.close()


def all_rows(world: World) -> dict[str, list[Any]]:
    """Everything that is stored, by table, but for the reply under way, which grows."""
    db = sqlite3.connect(world.settings.database_path)
    try:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        stored = {name: db.execute(f"SELECT * FROM [{name}]").fetchall() for name in tables}
    finally:
        db.close()
    return {name: [row for row in rows if "streaming" not in row] for name, rows in stored.items()}


def acts(two: Two, person: int, name: str) -> dict[str, Callable[[], Any]]:
    """Every thing that a person can do to something by its id."""
    world = two.world
    chat, votes, compare, rank = world.chat, world.votes, world.compare, world.rank
    own = next((item.id for item in world.store.conversations.list(person)), "")
    shown = chat.open(person, own).shown
    teaching = TeachDesk(world.store, ENGLISH)
    return {
        "open": lambda: chat.open(person, name),
        "ask": lambda: play(chat.ask(person, "mine", "plain", name)),
        "ask nothing": lambda: play(chat.ask(person, " ", "plain", name)),
        "retry": lambda: play(chat.retry(person, "plain", name)),
        "stop": lambda: chat.stop(person, name),
        "leave": lambda: chat.leave(person, name),
        "writing": lambda: chat.writing(person, name),
        "turn": lambda: refusal_of(lambda: chat.turn(person, name, 1)),
        "at": lambda: refusal_of(lambda: chat.at(person, name)),
        "panel": lambda: votes.panel(person, "", name),
        "panel selected": lambda: votes.panel(person, name, shown),
        "thumb": lambda: votes.thumb(person, "", name, 1),
        "thumb selected": lambda: votes.thumb(person, name, shown, -1, "a comment"),
        "explain": lambda: votes.explain(person, "", name, ["clear"], "a comment"),
        "explain selected": lambda: votes.explain(person, name, shown, ["clear"], "a comment"),
        "retract": lambda: votes.retract(person, "", name),
        "retract selected": lambda: votes.retract(person, name, shown),
        "liked": lambda: votes.liked(person, name, 1, True, name, "a comment"),
        "rewrite": lambda: votes.rewrite(person, "", name, "better"),
        "rewrite selected": lambda: votes.rewrite(person, name, shown, "better"),
        "leave typed": lambda: votes.leave(person, name, "a comment", "better"),
        "resume": lambda: votes.resume(person, name, shown, "", ""),
        "compare stop": lambda: compare.stop(person, name),
        "reopen": lambda: compare.reopen(person, name),
        "choose": lambda: compare.choose(person, name, "left"),
        "rank stop": lambda: rank.stop(person, name),
        "rank save": lambda: rank.save(person, name, [1, 2, 3, 4], True),
        "rank take back": lambda: rank.take_back(person, name),
        "rank reopen": lambda: rank.reopen(person, name),
        "teach here": lambda: teaching.answer_here(person, name, "off"),
        "taught here": lambda: teaching.here(person, name),
    }


def refusal_of(act: Callable[[], Any]) -> str:
    """What a handler that refuses by an error says."""
    try:
        return f"shown: {act()}"
    except StoreError as error:
        return str(error)


ACTS = [
    "open", "ask", "ask nothing", "retry", "stop", "leave", "writing", "turn", "at", "panel", "panel selected",
    "thumb", "thumb selected", "explain", "explain selected", "retract", "retract selected", "liked", "rewrite",
    "rewrite selected", "leave typed", "resume", "compare stop", "reopen", "choose", "rank stop", "rank save",
    "rank take back", "rank reopen", "teach here", "taught here",
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_somebody_elses_id_and_an_invented_one_get_the_same_answer_and_change_nothing(two: Two, act: str) -> None:
    world, before = two.world, all_rows(two.world)
    assert list(acts(two, two.ben.id, INVENTED)) == ACTS
    invented = acts(two, two.ben.id, INVENTED)[act]()
    for theirs in two.theirs:
        answer = acts(two, two.ben.id, theirs)[act]()
        assert answer == invented
        assert SECRET not in str(answer)
    assert all_rows(world) == before
    assert not two.draft.reply.cancelled
    assert not world.replies.is_left(two.draft)


def test_the_same_ids_open_everything_to_whom_they_belong(two: Two) -> None:
    """Otherwise the test above would be about nothing."""
    world, ada, theirs = two.world, two.ada.id, two.theirs
    assert world.chat.open(ada, theirs.conversation).shown == theirs.version
    assert SECRET in str(world.chat.at(ada, theirs.running))
    assert world.chat.writing(ada, theirs.running)
    assert world.chat.turn(ada, theirs.version, -1).shown == theirs.reply
    assert world.votes.panel(ada, "", theirs.version).rewrite == SECRET
    assert world.compare.choose(ada, theirs.comparison, "left").stage == "chosen"
    assert world.rank.save(ada, theirs.ranked, [1, 1, 1, 1], True).notice == ENGLISH.order_saved
    world.chat.leave(ada, theirs.running)
    assert two.draft.reply.cancelled
    assert world.replies.is_left(two.draft)


def test_nobody_sees_the_others_lists(two: Two) -> None:
    world, ben = two.world, two.ben.id
    chat = ChatPage(world.chat, world.votes, world.store, ENGLISH, 30)
    compare, rank = ComparePage(world.compare, ENGLISH), RankPage(world.rank, ENGLISH)
    request = request_of(world, two.ben)
    shown = [chat.open("", "", "", "", "", "", request), compare.open(request), compare.next(request)]
    shown += [rank.open(request), rank.next(request), rank.look_again("", request)]
    assert SECRET not in str(shown)
    assert world.compare.past(ben) == world.compare.unanswered(ben) == world.rank.past(ben) == []
    assert world.chat.open(ben) == View()


def test_only_the_door_knows_an_owner_and_messages_are_read_by_id_in_one_place() -> None:
    """A handler that took the owner for whoever asks, or any id for one's own, would open one person's chats to all."""
    asked: dict[str, set[str]] = {}
    for file in UI.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                asked.setdefault(node.attr, set()).add(file.name)
    assert asked["owner"] == {"door.py"}
    assert asked["path_to"] == asked["siblings"] == {"own.py"}


def test_every_handler_is_told_who_asks(home: Path) -> None:
    """The framework finds no request in a partial or a lambda, and would leave it out in silence."""
    world = make_world(home)
    mounted = [route.app for route in make_app(world).routes if isinstance(route, Mount)]
    pages = [app.get_blocks() for app in mounted if isinstance(app, App)]
    world.store.close()
    handlers = [block.fn for page in pages for block in page.fns.values() if block.fn]
    assert len(pages) == 2
    request = object()
    blind = {
        handler.__name__
        for handler in handlers
        if request not in special_args(handler, [None] * 9, request)[0]  # type: ignore[arg-type]
    }
    assert blind == {"tab"}, "which only turns to the chat"


# --- raw over HTTP


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Client, Theirs]]:
    with open_live(tmp_path_factory.mktemp("app") / "home", events_per_minute=10_000) as (world, client):
        theirs, draft = fill(world, world.store.people.get("ada").id)
        yield world, client, theirs
        world.replies.close(draft)


def told_by(browser: Browser, event: dict[str, Any], data: list[Any], mount: str = "", **more: Any) -> str:
    """Send an event as a page does and return all that comes back of it."""
    answer = browser.event(event["id"], data, queued=event["queue"], mount=mount, **more)
    assert answer.status_code == 200, f"{event['api_name']}: {answer.text[:300]}"
    if not event["queue"]:
        return json.dumps(answer.json()["data"], ensure_ascii=False)
    lines = []
    headers = {"cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
    path = f"{mount}/gradio_api/queue/data?session_hash={browser.page}"
    with browser.client.stream("GET", path, headers=headers) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if "process_completed" in line:
                assert json.loads(line.removeprefix("data:"))["success"], line
                break
    return "\n".join(lines)


def sent_with(event: dict[str, Any], kinds: dict[int, str], name: str) -> list[Any]:
    """The data of a page that names this in every box."""
    values = {"textbox": name, "radio": None, "dropdown": None, "checkboxgroup": [], "checkbox": False}
    return [values[kinds[part]] for part in event["inputs"]]


@pytest.mark.parametrize("mount", ["", "/ko"])
@pytest.mark.parametrize("which", Theirs._fields)
def test_no_event_shows_or_changes_what_is_somebody_elses(
    served: tuple[World, Client, Theirs], mount: str, which: str
) -> None:
    world, client, theirs = served
    ben = session_of(world, client, "ben")
    config = ben.get(f"{mount}/config").json()
    kinds = {part["id"]: part["type"] for part in config["components"]}
    handled = [event for event in config["dependencies"] if event["backend_fn"]]
    # they take no ids, and what they store is ben's own
    own = {"ask_1", "ask_2", "teach_on", "teach_off"}
    name = getattr(theirs, which)
    before = all_rows(world)
    count = 0
    for event in handled:
        if event["api_name"] in own | OPERATORS:
            continue
        told = {"index": 1, "value": "x", "liked": True} if event["targets"][0][1] == "like" else None
        answer = told_by(ben, event, sent_with(event, kinds, name), mount, event_data=told)
        assert SECRET not in answer, event["api_name"]
        count += 1
    assert count > 20
    assert all_rows(world) == before


def test_each_kind_of_event_works_for_whom_it_comes_from(served: tuple[World, Client, Theirs]) -> None:
    world, client, theirs = served
    ada = session_of(world, client, "ada")
    events = {event["api_name"]: event for event in events_of(ada)}
    assert SECRET in told_by(ada, events["fill"], [theirs.conversation])  # first: what may be chosen comes with it
    assert SECRET in told_by(ada, events["open_rewrite"], ["", theirs.version, "", ""])
    assert SECRET in told_by(ada, events["open"], [theirs.conversation, "", "", "", "", ""])
    liked = told_by(
        ada, events["liked"], ["", theirs.version, ""], event_data={"index": 1, "value": "x", "liked": False}
    )
    assert ENGLISH.vote_saved in liked
    ben = session_of(world, client, "ben")
    answered = told_by(ben, events["ask"], ["whose is it", "plain", "", "", "", ""])
    assert "You said: whose is it" in answered
    person = world.store.people.get("ben").id
    assert [item.title for item in world.store.conversations.list(person)] == ["whose is it"]


def load(browser: Browser, mount: str = "") -> dict[str, Any]:
    """What the load event fills, by the component's id in the page or its kind."""
    config = browser.get(f"{mount}/config").json()
    event = next(event for event in config["dependencies"] if event["api_name"] == "fill")
    parts = {part["id"]: part["props"].get("elem_id") or part["type"] for part in config["components"]}
    values = browser.event(event["id"], [""], mount=mount).json()["data"]
    return dict(zip([parts[number] for number in event["outputs"]], values, strict=True))


def test_the_page_says_who_is_logged_in_and_shows_members_no_operate_tab(
    served: tuple[World, Client, Theirs],
) -> None:
    world, client, _ = served
    for name, operates in (("ada", False), ("olga", True)):
        shown = load(session_of(world, client, name))
        assert shown["tab-operate"]["visible"] is operates
        assert shown["account"]["visible"] is True
        for words in (name, "href='/password'", "href='/consent'", "<form method='post' action='/logout'>"):
            assert words in shown["account"]["value"]
    config = session_of(world, client, "ada").get("/config").json()
    tab = next(part for part in config["components"] if part["props"].get("elem_id") == "tab-operate")
    assert tab["props"]["visible"] is False


def test_the_owner_of_an_app_without_accounts_is_shown_no_way_to_log_out(home: Path) -> None:
    with open_app(home, accounts=False) as (_, client):
        for mount, texts in (("", ENGLISH), ("/ko", KOREAN)):
            shown = load(Browser(client), mount)
            assert shown["account"]["visible"] is False
            assert shown["tab-operate"]["visible"] is True
            assert shown["teach-says"] == texts.teach_on


# --- operators


def test_the_operate_handlers_refuse_members_whatever_let_them_through(two: Two) -> None:
    world, page = two.world, OperatePage(two.world.operate, ENGLISH)
    member = request_of(world, two.ben)
    answers = [act(member) for act in (page.refresh, page.retrain)]
    answers += [page.tick("", member), page.roll_back("0", member), page.promote("base", "0", member)]
    for answer in answers:
        assert answer[:7] == [gr.skip()] * 7
        assert ENGLISH.operators_only in answer[7]["value"]
    assert not world.nights.running
    assert world.nights.started_at == ""
    assert "<h3>" in page.refresh(request_of(world))[0]


# --- teaching


def page_of(world: World) -> TeachPage:
    return TeachPage(TeachDesk(world.store, ENGLISH), ENGLISH)


def test_the_local_owner_teaches_is_told_so_and_can_turn_it_off_and_on(two: Two) -> None:
    world, page = two.world, page_of(two.world)
    owner = request_of(world)
    assert page.switch(world.person)[0] == ENGLISH.teach_on
    told = page.teach_off("", owner)
    assert ENGLISH.teach_answered["off"] in told[0]["value"]
    assert told[1] == ENGLISH.teach_off
    assert (told[2]["visible"], told[3]["visible"]) == (False, True)
    assert world.store.consent.of_person(world.person) == "off"
    assert page.teach_on("", owner)[1] == ENGLISH.teach_on
    assert world.store.consent.of_person(world.person) == "on"


def test_somebody_who_was_not_asked_is_told_that_nothing_is_taught(two: Two) -> None:
    assert page_of(two.world).switch(two.ada.id)[0] == ENGLISH.teach_off


def test_a_conversation_may_differ_from_what_its_person_says_in_general(two: Two) -> None:
    world, page, shown = two.world, page_of(two.world), two.theirs.reply
    ada = request_of(world, two.ada)
    assert page.here(two.ada.id, "")["visible"] is False
    assert page.here(two.ada.id, shown)["value"] == GENERAL
    page.teach_on(shown, ada)
    for choice, teaches in (("off", False), (GENERAL, True), ("on", True)):
        told = page.teach_here(choice, shown, ada)
        assert ENGLISH.teach_here_answered[choice] in told[0]["value"]
        assert told[1]["value"] == choice
        assert world.store.consent.teaches(two.theirs.conversation) is teaches
    told = page.teach_off(shown, ada)
    assert told[-1]["value"] == GENERAL, "no in general takes every single yes back"
    assert not world.store.consent.teaches(two.theirs.conversation)
    page.teach_here("on", shown, ada)
    assert world.store.consent.teaches(two.theirs.conversation)
    assert page.teach_here("perhaps", shown, ada)[1]["value"] == "on"
    assert page.teach_here(None, shown, ada)[1]["value"] == "on"


def test_both_languages_have_words_for_every_answer() -> None:
    for texts in (ENGLISH, KOREAN):
        assert set(texts.teach_answered) == {"on", "off"}
        assert list(texts.teach_here) == list(texts.teach_here_answered) == [GENERAL, "on", "off"]


def test_a_comparison_keeps_what_was_hidden_and_how_long_the_choice_took(two: Two) -> None:
    (before,) = two.world.store.votes.comparisons(two.ada.id)
    assert (before.hidden, before.decided_s) == (("adapter", "seed"), None)
    two.world.compare.choose(two.ada.id, before.id, "tie")
    (after,) = two.world.store.votes.comparisons(two.ada.id)
    assert after.decided_s is not None
    assert after.decided_s > 0
