"""Votes from the page: one row a reply, the last choice wins, nothing on what is not one's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from feedback_store.records import Vote
from tests.ui_support import World, leave_after, make_world, play, request_of
from ui.chat import ChatPage
from ui.feedback import meanwhile_updates, panel_updates, settled_updates
from ui.texts import ENGLISH


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    made = make_world(home)
    yield made
    made.store.close()


@pytest.fixture
def shown(world: World) -> str:
    first = play(world.chat.ask(world.person, "one", "plain", ""))[-1].shown
    return play(world.chat.ask(world.person, "two", "plain", first))[-1].shown


def stored(world: World, message_id: str) -> Vote:
    vote = world.store.votes.get(message_id, world.person)
    assert vote is not None
    return vote


def test_a_thumb_can_be_given_changed_and_taken_back(world: World, shown: str) -> None:
    assert world.votes.thumb(world.person, "", shown, 1).notice == ENGLISH.vote_saved
    assert stored(world, shown).value == 1
    assert world.votes.thumb(world.person, "", shown, -1).value == -1
    assert world.votes.retract(world.person, "", shown).notice == ENGLISH.vote_retracted
    assert stored(world, shown).value == 0


def test_a_double_click_on_a_thumb_leaves_the_vote_as_it_is(world: World, shown: str) -> None:
    world.votes.thumb(world.person, "", shown, 1)
    world.votes.explain(world.person, "", shown, ["clear"], "why")
    assert world.votes.thumb(world.person, "", shown, 1).notice == ENGLISH.vote_saved
    vote = stored(world, shown)
    assert (vote.value, vote.reasons, vote.comment) == (1, ("clear",), "why")


def test_a_comment_that_was_not_saved_survives_the_other_thumb(world: World, shown: str) -> None:
    world.votes.thumb(world.person, "", shown, 1)
    assert world.votes.thumb(world.person, shown, shown, -1, "typed").comment == "typed"
    assert world.votes.liked(world.person, shown, 3, True, shown, "typed again").comment == "typed again"
    assert world.votes.liked(world.person, shown, 1, True, shown, "about the other one").comment == ""


def test_what_is_typed_as_a_better_answer_survives_a_thumb_and_a_refusal(world: World, shown: str) -> None:
    refused = world.votes.rewrite(world.person, "", shown, " ")
    assert refused.refused
    for panel in (refused, world.votes.thumb(world.person, "", shown, 1)):
        assert panel_updates(panel, ENGLISH, writing=None)[-2:] == [gr.skip(), gr.skip()]


def test_reasons_and_comment_belong_to_the_side_of_the_vote(world: World, shown: str) -> None:
    assert world.votes.explain(world.person, "", shown, ["clear"], "why").notice == ENGLISH.vote_first
    world.votes.thumb(world.person, "", shown, 1)
    world.votes.explain(world.person, "", shown, ["clear", "wrong"], "well said")
    assert (stored(world, shown).reasons, stored(world, shown).comment) == (("clear",), "well said")
    world.votes.thumb(world.person, "", shown, -1)
    assert (stored(world, shown).reasons, stored(world, shown).comment) == ((), "well said")


@pytest.mark.parametrize(("liked", "value"), [(True, 1), (False, -1), ("", 0), ("Flag", 0)])
def test_an_unlike_from_the_chatbot_is_no_dislike(world: World, shown: str, liked: object, value: int) -> None:
    """The Chatbot sends an empty text when an active thumb is clicked again."""
    world.votes.liked(world.person, shown, 3, True)
    world.votes.liked(world.person, shown, 3, liked)
    assert stored(world, shown).value == value


def test_the_chatbots_thumbs_name_the_reply_by_its_place(world: World, shown: str) -> None:
    first = world.store.conversations.path_to(shown)[1]
    panel = world.votes.liked(world.person, shown, [1, 0], True)
    assert (panel.selected, panel.place, panel.of) == (first.id, 1, 2)
    assert stored(world, first.id).value == 1
    assert world.store.votes.get(shown, world.person) is None
    for place in (0, 4, -1, "x", None):
        assert world.votes.liked(world.person, shown, place, True).notice == ENGLISH.reload_page
    assert world.store.votes.counts()["thumbs_up"] == 1


def test_a_vote_on_a_stale_id_falls_to_nobody_elses_reply(world: World, shown: str) -> None:
    other = world.store.people.add("stranger")
    theirs = world.store.conversations.start(other.id)
    message = world.store.conversations.add_user_message(theirs.id, other.id, "secret")
    assert "nothing of yours" in world.votes.thumb(world.person, "", message.id, 1).notice
    assert world.votes.thumb(world.person, message.id, shown, 1).notice == ENGLISH.reload_page
    assert world.store.votes.counts()["thumbs_up"] == 0


def test_an_unfinished_reply_cannot_be_voted_on(world: World) -> None:
    world.engine.seconds_per_word = 1.0
    leave_after(world.chat.ask(world.person, "stop at once", "plain", ""), 1)
    shown = world.chat.open(world.person).shown
    assert world.votes.thumb(world.person, "", shown, 1).notice == ENGLISH.not_votable
    assert world.store.votes.get(shown, world.person) is None


def test_a_better_answer_is_stored_beside_the_reply(world: World, shown: str) -> None:
    assert "empty" in world.votes.rewrite(world.person, "", shown, "  ").notice.lower()
    assert world.votes.rewrite(world.person, "", shown, "What do you see?").notice == ENGLISH.rewrite_saved
    assert world.votes.panel(world.person, "", shown).rewrite == "What do you see?"
    assert world.store.votes.counts()["rewrites"] == 1


def test_the_page_offers_only_the_reasons_of_the_side(world: World, shown: str) -> None:
    down = panel_updates(world.votes.thumb(world.person, "", shown, -1), ENGLISH)
    assert ("Told the answer", "told_the_answer") in down[6]["choices"]
    up = panel_updates(world.votes.thumb(world.person, "", shown, 1), ENGLISH)
    assert ("Told the answer", "told_the_answer") not in up[6]["choices"]


def settled(world: World, shown: str, selected: str, comment: str = "", rewrite: str = "") -> list[Any]:
    return settled_updates(world.votes, ENGLISH, world.person, shown, (selected, comment, rewrite))


def test_the_end_of_a_reply_moves_the_panel_unless_something_is_written_there(world: World, shown: str) -> None:
    first = world.store.conversations.path_to(shown)[1]
    world.votes.thumb(world.person, first.id, shown, 1, "")
    for untouched in ("", " ", first.text):
        assert settled(world, shown, first.id, "", untouched)[0] == shown
    for comment, rewrite in (("half a thou", ""), ("", "My own words")):
        assert world.votes.unsaved(world.person, first.id, comment, rewrite) == (bool(comment), bool(rewrite))
        kept = settled(world, shown, first.id, comment, rewrite)
        assert "Reply 1 of 2" in kept.pop(2)
        assert kept == [gr.skip()] * 9
    world.votes.explain(world.person, first.id, shown, [], "half a thou")
    assert settled(world, shown, first.id, "half a thou")[0] == shown


def test_sending_closes_the_panel_unless_something_is_written_there(world: World, shown: str) -> None:
    closed = meanwhile_updates(world.votes, ENGLISH, world.person, shown, True, (shown, "", ""))
    assert closed[8]["visible"] is False
    kept = meanwhile_updates(world.votes, ENGLISH, world.person, shown, True, (shown, "", "My own words"))
    assert kept[:2] + kept[3:] == [gr.skip()] * 9


def test_what_is_written_about_a_reply_outlives_a_retry(world: World, shown: str) -> None:
    world.votes.thumb(world.person, "", shown, -1)
    version = play(world.chat.retry(world.person, "plain", shown))[-1].shown
    moved = settled(world, version, shown, "too long", "My own words")
    assert moved[0] == version
    assert moved[-2:] == [gr.update(visible=True), gr.skip()]
    assert stored(world, shown).comment == "too long"


def test_ids_that_nobody_knows_hold_nothing_unsaved(world: World, shown: str) -> None:
    assert world.votes.unsaved(world.person, "no-such-id", "comment", "answer") == (False, False)
    assert world.votes.unsaved(world.person, "", "comment", "answer") == (False, False)
    assert settled(world, shown, "no-such-id", "comment", "answer")[0] == shown


def page_of(world: World) -> ChatPage:
    """The chat page over the world's desks."""
    return ChatPage(world.chat, world.votes, world.store, ENGLISH, 26)


@pytest.mark.parametrize("goes", ["open", "new"])
def test_what_is_typed_outlives_another_conversation(world: World, shown: str, goes: str) -> None:
    """It was dropped: the comment is stored now, and the page keeps the better answer until it is opened again."""
    page, request = page_of(world), request_of(world)
    world.votes.thumb(world.person, "", shown, -1)
    world.votes.explain(world.person, "", shown, ["wrong"], "so far")
    typed = (shown, "so far and further", "Half an ans")
    if goes == "open":
        kept = page.open("", shown, "", *typed, request)[-1]
    else:
        kept = page.new(shown, "", *typed, request)[-1]
    assert (stored(world, shown).reasons, stored(world, shown).comment) == (("wrong",), "so far and further")
    assert world.store.votes.get_rewrite(shown, world.person) is None
    other = world.store.conversations.path_to(shown)[1].id
    opened = world.votes.resume(world.person, shown, shown, "", kept)
    assert panel_updates(opened, ENGLISH, writing=True)[-1] == "Half an ans"
    assert world.votes.resume(world.person, other, shown, "", kept).rewrite == ""
    assert world.votes.resume(world.person, shown, shown, "typed since", kept).rewrite == "typed since"
    # leaving again without a word keeps what was kept
    assert page.open("", shown, "", shown, "so far and further", "", request)[-1] == gr.skip()


def test_a_stored_better_answer_is_shown_unless_another_was_left_unsaved(world: World, shown: str) -> None:
    world.votes.rewrite(world.person, "", shown, "Stored.")
    assert world.votes.resume(world.person, shown, shown, "Stored.", "").rewrite == "Stored."
    kept = world.votes.leave(world.person, shown, "", "Stored. And more")
    assert world.votes.resume(world.person, shown, shown, "Stored.", kept).rewrite == "Stored. And more"


def test_what_is_typed_outlives_a_step_to_another_version(world: World, shown: str) -> None:
    page, request = page_of(world), request_of(world)
    version = play(world.chat.retry(world.person, "plain", shown))[-1].shown
    world.votes.thumb(world.person, "", version, 1)
    back = page.before(version, version, "not saved yet", "My own words", request)
    assert stored(world, version).comment == "not saved yet"
    assert back[1] == back[13] == shown
    assert back[21:23] == [gr.update(visible=True), gr.skip()]
    assert page.after(shown, shown, "", "My own words", request)[13] == version
    assert page.after(shown, shown, "", "", request)[21] == gr.update(visible=False)
