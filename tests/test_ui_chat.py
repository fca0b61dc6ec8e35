"""The chat page's handlers: what is stored, what is shown, what bad input gets."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from assistant.engine import Place, Reply, Request
from assistant.errors import AdapterMissing, EngineBusy, PromptTooLong
from assistant.fake import FakeEngine
from feedback_store.errors import StoreError
from feedback_store.records import Message
from tests.ui_support import RefusingEngine, World, leave_after, make_world, play, request_of, socratic_script
from ui.bubbles import bubbles
from ui.chat import CURSOR, ChatPage
from ui.replies import Draft, Replies
from ui.texts import ENGLISH
from ui.view import View

LONG = " ".join(f"word{number}" for number in range(40))
Make = Callable[..., World]


@pytest.fixture
def make(home: Path) -> Iterator[Make]:
    opened: list[World] = []

    def build(engine: FakeEngine | None = None) -> World:
        opened.append(make_world(home, engine))
        return opened[-1]

    yield build
    for world in opened:
        world.engine.close()
        world.store.close()


def ask(world: World, text: str = "What is 2 + 2?", shown: str = "", preset: str = "plain") -> View:
    return play(world.chat.ask(world.person, text, preset, shown))[-1]


def test_a_reply_grows_and_is_stored_with_what_produced_it(make: Make) -> None:
    world = make(FakeEngine(script=socratic_script, seconds_per_word=0.03))
    views = play(world.chat.ask(world.person, "Help me with fractions, please", "socratic", ""))
    lengths = [len(view.path[-1].text) for view in views if view.busy]
    assert len(set(lengths)) > 2
    assert views[0].keep == ""
    assert all(view.keep is None for view in views[1:])
    reply = world.store.conversations.path_to(views[-1].shown)[-1]
    assert reply.text.startswith("You said: Help me with fractions, please (base, ")
    assert "You are a tutor" in reply.text
    assert (reply.state, reply.finish) == ("done", "stop")
    assert reply.origin is not None
    assert (reply.origin.preset, reply.origin.adapter_id, reply.origin.base_id) == ("socratic", None, "fake")
    assert reply.origin.system.startswith("You are a tutor")


def test_the_model_reads_the_whole_path(make: Make) -> None:
    seen: list[list[str]] = []
    world = make(FakeEngine(script=lambda request: str(seen.append([m["content"] for m in request.messages]))))
    first = ask(world, "one")
    ask(world, "two", first.shown)
    assert seen[1][1:] == ["one", "None", "two"]


def test_a_promotion_answers_the_next_message(make: Make) -> None:
    world = make()
    first = ask(world)
    world.store.registry.register_adapter("night-1", "fake")
    world.store.registry.promote("night-1", 0)
    second = ask(world, "And now?", first.shown)
    assert "(night-1, " in second.path[-1].text
    assert second.path[-1].origin is not None
    assert second.path[-1].origin.adapter_id == "night-1"


def test_stop_keeps_the_partial_text(make: Make) -> None:
    world = make(FakeEngine(seconds_per_word=0.02))
    views = play(
        world.chat.ask(world.person, LONG, "plain", ""),
        lambda view: world.chat.stop(world.person, view.shown) if view.busy else None,
    )
    assert views[-1].path[-1].state == "stopped"
    assert len(views[-1].path[-1].text) < len(LONG)
    assert ENGLISH.note_stopped in bubbles(views[-1].path, ENGLISH)[-1]["content"]


def test_a_conversation_opens_with_the_preset_of_its_last_reply(make: Make) -> None:
    world = make()
    first = ask(world, preset="socratic")
    ask(world)
    assert world.chat.open(world.person, first.conversation_id).preset == "socratic"
    assert world.chat.open(world.person).preset == "plain"


def test_a_closed_tab_keeps_the_partial_text_and_frees_the_model(make: Make) -> None:
    world = make(FakeEngine(seconds_per_word=0.02))
    leave_after(world.chat.ask(world.person, LONG, "plain", ""), 4)
    reply = world.chat.open(world.person).path[-1]
    assert reply.state == "stopped"
    assert reply.text
    assert world.replies.text_so_far(reply.id, world.person) is None


def test_a_reply_under_way_is_written_down_now_and_then(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replies, "keep_every_s", 0.02)
    world = make(FakeEngine(seconds_per_word=0.02))
    stored: list[str] = []

    def look(view: View) -> None:
        if view.busy:
            stored.append(world.store.conversations.path_to(view.shown)[-1].text)

    whole = play(world.chat.ask(world.person, LONG, "plain", ""), look)[-1].path[-1].text
    assert len(set(stored)) > 2
    assert all(whole.startswith(part) for part in stored)


def test_a_reply_whose_stream_is_gone_is_closed_with_the_app(make: Make) -> None:
    """An app that was told to stop left it under way, until the next start."""
    world = make(FakeEngine(seconds_per_word=0.05))
    talk = world.store.conversations.start(world.person)
    asked = partial(world.store.conversations.add_user_message, talk.id, world.person, LONG)
    _, [draft] = world.replies.ask([], LONG, "plain", world.person, asked, None)
    world.replies.close_left()
    assert world.store.conversations.path_to(draft.message.id)[-1].state == "stopped"
    world.replies.close_left()


def test_retry_is_a_sibling_and_every_version_stays_reachable(make: Make) -> None:
    world = make()
    first = ask(world)
    second = play(world.chat.retry(world.person, "plain", first.shown))[-1]
    assert (second.version, second.versions) == (2, 2)
    assert second.path[0].id == first.path[0].id
    assert second.path[1].id != first.path[1].id
    back = world.chat.turn(world.person, second.shown, -1)
    assert (back.shown, back.version) == (first.shown, 1)
    assert world.chat.turn(world.person, back.shown, -1).shown == first.shown
    assert world.chat.open(world.person).shown == second.shown


def test_an_empty_message_gets_a_sentence_and_stores_nothing(make: Make) -> None:
    world = make()
    for text in ("", "   \n"):
        view = ask(world, text)
        assert (view.notice, view.keep) == (ENGLISH.empty_message, text)
    assert world.store.conversations.list(world.person) == []


def test_a_too_long_message_gets_a_sentence_and_stays(make: Make) -> None:
    world = make()
    view = ask(world, "x" * 100_000)
    assert "100,000 characters and 20,000 fit" in view.notice
    assert view.keep == "x" * 100_000
    assert world.store.conversations.list(world.person) == []


@pytest.mark.parametrize("error", [EngineBusy("Too many."), PromptTooLong("Too long."), AdapterMissing("Gone.")])
def test_a_refusal_by_the_engine_is_said_and_loses_nothing(make: Make, error: Exception) -> None:
    world = make(RefusingEngine(error))
    view = ask(world, "Keep me")
    assert (view.notice, view.keep, view.busy) == (str(error), "Keep me", False)
    assert view.path == () and world.store.conversations.list(world.person) == []


def test_a_refused_retry_changes_nothing(make: Make) -> None:
    world = make()
    answered = ask(world)
    refusing = make(RefusingEngine(EngineBusy("Too many.")))
    view = play(refusing.chat.retry(refusing.person, "plain", answered.shown))[-1]
    assert (view.notice, view.path, view.versions) == ("Too many.", answered.path, 1)


def test_a_question_that_cannot_be_stored_starts_no_reply(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(FakeEngine(seconds_per_word=0.02))
    asked: list[Reply] = []
    submit = world.engine.submit
    monkeypatch.setattr(world.engine, "submit", lambda requests: asked.extend(submit(requests)) or asked)

    def full(*_: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(world.store.conversations, "add_user_message", full)
    view = ask(world, LONG)
    assert (view.notice, view.keep) == ("The disk is full.", LONG)
    assert [reply.cancelled for reply in asked] == [True]


def failing(request: object) -> str:
    raise ValueError("planted")


def read_roles(request: Request) -> str:
    return " ".join(f"{message['role']}:{message['content'].split(':')[0]}" for message in request.messages[1:])


def test_a_question_whose_reply_failed_stays_on_the_page_and_the_model_reads_it_no_more(make: Make) -> None:
    """It once gave its place to the next question, and nothing on the page led back to it."""
    world = make(FakeEngine(script=read_roles))
    first = ask(world, "zero")
    world.engine.script = failing
    failed = ask(world, "first", first.shown)
    assert failed.notice == ENGLISH.failed_reply
    world.engine.script = read_roles
    view = ask(world, "second", failed.shown)
    expected = ["zero", "user:zero", "first", "", "second", "user:zero assistant:user user:second"]
    assert [m.text for m in view.path] == expected
    assert [m.text for m in world.chat.open(world.person).path] == expected


def test_retrying_a_failed_reply_makes_a_sibling(make: Make) -> None:
    world = make(FakeEngine(script=failing))
    failed = ask(world, "first")
    world.engine.script = read_roles
    retried = play(world.chat.retry(world.person, "plain", failed.shown))[-1]
    assert [m.text for m in retried.path] == ["first", "user:first"]
    assert (retried.version, retried.versions) == (2, 2)


@pytest.mark.parametrize("act", ["ask", "retry"])
@pytest.mark.parametrize("version", [0, 1])
def test_a_conversation_that_went_on_in_another_tab_is_not_forked(make: Make, act: str, version: int) -> None:
    """A second tab that still showed an earlier reply began a branch, and the other one could not be reached."""
    world = make()
    first = ask(world, "one")
    second = play(world.chat.retry(world.person, "plain", first.shown))[-1]
    newest = ask(world, "two", second.shown)
    stale = (first, second)[version].shown
    view = ask(world, "three", stale) if act == "ask" else play(world.chat.retry(world.person, "plain", stale))[-1]
    assert view.notice == ENGLISH.went_on
    assert view.path == newest.path
    assert view.keep == ("three" if act == "ask" else None)
    assert world.chat.open(world.person).path == newest.path
    assert ask(world, "three", view.shown).path[:4] == newest.path


def test_a_question_that_another_tab_had_answered_is_not_answered_beside_it(make: Make) -> None:
    world = make()
    first = ask(world, "one")
    (question, reply) = first.path
    view = ask(world, "two", question.id)
    assert (view.notice, view.shown) == (ENGLISH.went_on, reply.id)


def test_an_earlier_version_of_the_last_reply_may_be_continued(make: Make) -> None:
    world = make()
    first = ask(world, "one")
    second = play(world.chat.retry(world.person, "plain", first.shown))[-1]
    earlier = world.chat.turn(world.person, second.shown, -1)
    view = ask(world, "two", earlier.shown)
    assert [m.id for m in view.path[:2]] == [m.id for m in first.path]
    assert view.notice == ""


def test_a_second_message_waits_for_the_reply_under_way(make: Make) -> None:
    world = make(FakeEngine(seconds_per_word=0.02))
    early: list[View] = []

    async def ask_meanwhile() -> None:
        async for view in world.chat.ask(world.person, LONG, "plain", ""):
            if view.busy and not early:
                early.extend([one async for one in world.chat.ask(world.person, "too early", "plain", view.shown)])

    asyncio.run(ask_meanwhile())
    assert [(view.notice, view.keep, view.busy) for view in early] == [(ENGLISH.still_writing, "too early", True)]


def test_a_reply_in_line_tells_how_many_are_before_it_and_how_long(make: Make) -> None:
    class BusyEngine(FakeEngine):
        def submit(self, requests: Sequence[Request]) -> list[Reply]:
            reply = Reply()

            def serve() -> None:
                for place in (Place(2, 150.0), Place(0, 8.4), None):
                    reply.wait_at(place)
                    time.sleep(0.2)
                reply.grow("at last")
                reply.end("stop")

            threading.Thread(target=serve).start()
            return [reply]

    world = make(BusyEngine())
    views = play(world.chat.ask(world.person, "hello", "plain", ""))
    shown = [view.path[-1].text.removesuffix(CURSOR) for view in views]
    assert list(dict.fromkeys(shown)) == [
        "Others are being answered, and 2 more before this reply. It begins in about 2 min.",
        "Others are being answered; this reply is the next to begin. It begins in about 8 s.",
        "",
        "at last",
    ]


def test_dropped_turns_are_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class ForgetfulEngine(FakeEngine):
        def submit(self, requests: object) -> list[Reply]:
            replies = super().submit(requests)  # type: ignore[arg-type]
            for reply in replies:
                reply.dropped_turns = 4
            return replies

    view = ask(make(ForgetfulEngine()))
    assert "its 4 earliest turns were left out" in view.notice


def test_a_foreign_or_stale_message_id_gets_a_sentence(make: Make) -> None:
    world = make()
    view = ask(world, "hello", shown="no-such-id")
    assert "nothing of yours" in view.notice
    assert view.keep == "hello"
    other = world.store.people.add("stranger")
    theirs = world.store.conversations.start(other.id)
    message = world.store.conversations.add_user_message(theirs.id, other.id, "secret")
    view = ask(world, "hello", shown=message.id)
    assert "nothing of yours" in view.notice
    assert world.chat.open(world.person, theirs.id).path == ()


def test_reopening_shows_the_newest_branch_with_its_thumbs(make: Make) -> None:
    world = make()
    first = ask(world)
    world.votes.thumb(world.person, "", first.shown, 1)
    play(world.chat.ask(world.person, "another conversation", "plain", ""))
    view = world.chat.open(world.person, first.conversation_id)
    assert view.shown == first.shown
    assert view.votes == ("Like",)


def start(world: World, text: str = LONG) -> Draft:
    """Begin a reply as another page does."""
    record = partial(store_question, world, text)
    question, [draft] = world.replies.ask([], text, "plain", world.person, record, None)
    assert draft.message.parent_id == question.id
    return draft


def store_question(world: World, text: str) -> Message:
    conversations = world.store.conversations
    return conversations.add_user_message(conversations.start(world.person).id, world.person, text)


SIZE = 26


def page_of(world: World) -> ChatPage:
    return ChatPage(world.chat, world.votes, world.store, ENGLISH, SIZE)


def test_a_reply_of_another_page_is_followed_to_its_end(make: Make) -> None:
    """A tab that opened such a reply once showed a fragment of it and Stop for good."""
    world = make(FakeEngine(seconds_per_word=0.01))
    page = page_of(world)
    seen: list[View | None] = []
    ticks: list[list[Any]] = []
    size = len(page.updates(world.person, View()))
    assert size == SIZE

    def look(view: View) -> None:
        if view.busy:
            seen.append(world.chat.follow(world.person, view.shown))
            ticks.append(page.follow(view.shown, "", "", "", request_of(world)))

    ended = play(world.chat.ask(world.person, LONG, "plain", ""), look)[-1]
    assert len({view.path[-1].text for view in seen if view and view.busy}) > 2
    assert all(len(tick) == size for tick in ticks)
    assert world.chat.follow(world.person, ended.shown) == ended
    end = page.follow(ended.shown, "", "", "", request_of(world))
    assert end[5]["visible"] is False
    assert ended.shown in end  # the vote panel is about it
    assert page.follow("", "", "", "", request_of(world)) == [gr.skip()] * size


def test_the_end_of_a_followed_reply_is_shown_only_once_it_is_written_down(make: Make) -> None:
    world = make()
    question = store_question(world, "one")
    first = ask(world, "two")
    assert first.path[-1].origin is not None
    row = world.store.conversations.begin_reply(question.id, world.person, first.path[-1].origin)
    assert world.chat.follow(world.person, row.id) is None
    world.store.conversations.finish_reply(row.id, "whole", "done", "stop", 1)
    ended = world.chat.follow(world.person, row.id)
    assert ended is not None
    assert ended.path[-1].text == "whole"


def test_leaving_a_reply_that_another_page_started_does_not_stop_it(make: Make) -> None:
    world = make(FakeEngine(seconds_per_word=0.05))
    page = page_of(world)
    draft = start(world)
    shown, opened = draft.message.id, page.open("", "", "", "", "", "", request_of(world))
    followed = opened[11]
    assert followed == shown
    page.new(shown, followed, "", "", "", request_of(world))
    page.open("", shown, followed, "", "", "", request_of(world))
    assert not draft.reply.cancelled
    page.new(shown, "", "", "", "", request_of(world))
    assert draft.reply.cancelled
    world.replies.close(draft)


def test_a_refusal_changes_nothing_about_whose_reply_is_on_screen(make: Make) -> None:
    world = make(FakeEngine(seconds_per_word=0.05))
    page = page_of(world)
    draft = start(world)
    [refused] = play(page.ask("too early", "plain", draft.message.id, "", "", "", request_of(world)))
    assert ENGLISH.still_writing in str(refused[2])
    assert refused[11] == gr.skip()
    assert refused[12]["active"]
    world.replies.close(draft)


def test_a_page_s_own_stream_is_not_followed_as_well(make: Make) -> None:
    world = make(FakeEngine(seconds_per_word=0.01))
    pages = play(page_of(world).ask(LONG, "plain", "", "", "", "", request_of(world)))
    for page in (pages[0], pages[-1]):
        assert page[11] == ""
        assert not page[12]["active"]
