"""The compare page's handlers: two replies, sides drawn here, nothing revealed before the choice."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import gradio as gr
import pytest

from assistant.errors import EngineBusy
from feedback_store.errors import ChoiceStands, StoreError
from tests.ui_support import RefusingEngine, World, fixed_script, leave_after, make_world, play, request_of
from ui.compare import ComparePage, Round
from ui.texts import ENGLISH


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    made = make_world(home)
    yield made
    made.store.close()


def ask(world: World, text: str = "Which is better?") -> Round:
    return play(world.compare.ask(world.person, text, "plain"))[-1]


def test_two_replies_differ_in_nothing_but_the_seed(world: World) -> None:
    world.engine.script = fixed_script("one", "two")
    shown = ask(world)
    assert shown.stage == "choosing"
    assert {shown.left, shown.right} == {"one", "two"}
    (comparison,) = world.store.votes.comparisons(world.person)
    left = world.store.conversations.path_to(comparison.left_message_id)[-1]
    right = world.store.conversations.path_to(comparison.right_message_id)[-1]
    assert (left.text, right.text) == (shown.left, shown.right)
    assert left.origin is not None
    assert right.origin is not None
    assert left.origin.seed != right.origin.seed
    assert left.origin.__dict__ | {"seed": 0} == right.origin.__dict__ | {"seed": 0}
    assert world.store.conversations.list(world.person) == []
    assert len(world.store.conversations.list(world.person, kind="compare")) == 1


def test_nothing_tells_what_a_side_is_before_the_choice(world: World) -> None:
    world.store.registry.register_adapter("secret-adapter", "fake")
    world.store.registry.promote("secret-adapter", 0)
    world.engine.script = fixed_script("one", "two")
    page = ComparePage(world.compare, ENGLISH)
    rounds = play(world.compare.ask(world.person, "Which?", "plain"))
    assert "secret-adapter" not in str([page.updates(world.person, shown) for shown in rounds])
    chosen = world.compare.choose(world.person, rounds[-1].key, "right")
    assert chosen.stage == "chosen"
    assert all("secret-adapter" in name for name in chosen.revealed)


@pytest.mark.parametrize("choice", ["left", "right", "tie", "both-bad"])
def test_every_choice_is_stored(world: World, choice: str) -> None:
    world.engine.script = fixed_script("one", "two")
    shown = world.compare.choose(world.person, ask(world).key, choice)  # type: ignore[arg-type]
    assert (shown.choice, shown.notice) == (choice, ENGLISH.choice_saved)
    assert world.store.votes.comparisons(world.person)[0].choice == choice
    assert world.compare.past(world.person) == [("Which is better?", choice)]


def test_who_has_seen_what_the_sides_were_chooses_no_other(world: World) -> None:
    """The page offers no second choice, but its event could be sent; nothing told that it was not blind."""
    world.engine.script = fixed_script("one", "two")
    first = world.compare.choose(world.person, ask(world).key, "left")
    again = world.compare.choose(world.person, first.key, "right")
    assert (again.stage, again.choice, again.notice) == ("chosen", "left", str(ChoiceStands()))
    assert world.compare.choose(world.person, first.key, "left").notice == ENGLISH.choice_saved
    assert world.store.votes.comparisons(world.person)[0].choice == "left"


def test_sides_are_drawn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for swapped in (False, True):
        monkeypatch.setattr("ui.compare.swap_sides", lambda swapped=swapped: swapped)
        ask(world)
        comparison = world.store.votes.comparisons(world.person)[0]
        began = [reply.id for reply in world.store.conversations.siblings(comparison.left_message_id)]
        assert (began.index(comparison.left_message_id) > 0) == swapped


def test_equal_replies_are_redrawn_once(world: World) -> None:
    world.engine.script = fixed_script("same", "same", "other")
    shown = ask(world)
    assert {shown.left, shown.right} == {"same", "other"}
    world.engine.script = fixed_script("same")
    shown = ask(world)
    assert shown.stage == "choosing"
    assert (shown.left, shown.right) == ("same", "same")


def test_the_choice_waits_for_both_ends(world: World) -> None:
    world.engine.seconds_per_word = 0.02
    page = ComparePage(world.compare, ENGLISH)
    rounds = play(world.compare.ask(world.person, "Which of these words?", "plain"))
    for shown in rounds:
        buttons = page.updates(world.person, shown)[12:16]
        assert all(button["interactive"] == (shown.stage == "choosing") for button in buttons)
    assert sum(shown.stage == "running" for shown in rounds) > 2


def test_a_stopped_round_offers_no_choice(world: World) -> None:
    world.engine.seconds_per_word = 0.02
    shown = play(
        world.compare.ask(world.person, "a " * 50, "plain"), lambda shown: world.compare.stop(world.person, shown.key)
    )[-1]
    assert (shown.stage, shown.notice) == ("empty", ENGLISH.no_comparison)
    assert world.store.votes.comparisons(world.person) == []


def test_a_closed_tab_ends_both_replies(world: World) -> None:
    world.engine.seconds_per_word = 0.02
    leave_after(world.compare.ask(world.person, "a " * 50, "plain"), 3)
    (conversation,) = world.store.conversations.list(world.person, kind="compare")
    last = world.store.conversations.thread(conversation.id, world.person)[-1]
    assert [reply.state for reply in world.store.conversations.siblings(last.id)] == ["stopped", "stopped"]


def test_bad_input_gets_a_sentence_and_keeps_the_text(world: World) -> None:
    assert ask(world, " ").notice == ENGLISH.empty_message
    shown = ask(world, "x" * 100_000)
    assert "100,000 characters" in shown.notice
    assert shown.keep == "x" * 100_000
    assert "nothing of yours" in world.compare.choose(world.person, "no-such-id", "left").notice
    assert world.store.conversations.list(world.person, kind="compare") == []


def test_a_busy_engine_is_said(home: Path) -> None:
    world = make_world(home, RefusingEngine(EngineBusy("Too many are waiting.")))
    shown = ask(world)
    assert (shown.notice, shown.keep) == ("Too many are waiting.", "Which is better?")
    assert world.store.conversations.list(world.person, kind="compare") == []
    world.store.close()


def test_an_unanswered_comparison_is_there_after_a_reload(world: World) -> None:
    world.engine.script = fixed_script("one", "two")
    shown = ask(world)
    assert world.compare.open(world.person) == shown


def test_an_unanswered_comparison_can_be_reopened_and_answered_later(world: World) -> None:
    world.engine.script = fixed_script("one", "two")
    first, second = ask(world, "first"), ask(world, "second")
    assert world.compare.unanswered(world.person) == [("second", second.key), ("first", first.key)]
    assert world.compare.reopen(world.person, first.key) == first
    world.compare.choose(world.person, first.key, "tie")
    assert world.compare.unanswered(world.person) == [("second", second.key)]
    assert world.compare.past(world.person) == [("first", "tie")]
    for key in (None, "no-such-id"):
        assert world.compare.reopen(world.person, key).notice == ENGLISH.reload_page


def test_a_comparison_that_was_broken_off_is_told_at_the_next_opening(world: World) -> None:
    """It once vanished without a word."""
    ask(world, "an earlier one")
    world.engine.seconds_per_word = 0.02
    leave_after(world.compare.ask(world.person, "a " * 50, "plain"), 3)
    shown = world.compare.open(world.person)
    assert (shown.stage, shown.prompt, shown.keep) == ("empty", "a " * 50, "a " * 50)
    assert shown.notice == ENGLISH.broken_off
    assert world.compare.choose(world.person, "no-such-id", "left").keep is None
    world.engine.seconds_per_word = 0
    assert ask(world, shown.prompt) == world.compare.open(world.person)


def test_a_comparison_under_way_in_another_tab_is_waited_for(world: World) -> None:
    world.engine.script = fixed_script("one of many words", "another of many words")
    world.engine.seconds_per_word = 0.02
    page = ComparePage(world.compare, ENGLISH)
    opened: list[Round] = []
    ended = play(
        world.compare.ask(world.person, "Which?", "plain"),
        lambda shown: opened.append(world.compare.open(world.person)),
    )[-1]
    assert {(shown.waiting, shown.keep, shown.notice) for shown in opened[:-1]} == {
        (True, None, ENGLISH.answers_under_way)
    }
    assert page.updates(world.person, opened[0])[-1]["active"]
    assert world.compare.open(world.person) == ended
    assert not page.look_again("", request_of(world))[-1]["active"]


def test_answers_that_have_just_ended_were_not_broken_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(world.store.votes, "show_comparison", full)
    assert ask(world).notice == "The disk is full."
    assert world.compare.open(world.person).waiting
    monkeypatch.setattr("ui.rounds.MOMENT", timedelta(0))
    assert world.compare.open(world.person).notice == ENGLISH.broken_off


def test_a_prompt_that_comes_back_replaces_nothing_that_is_typed(world: World) -> None:
    world.engine.seconds_per_word = 0.02
    leave_after(world.compare.ask(world.person, "a " * 50, "plain"), 3)
    page = ComparePage(world.compare, ENGLISH)
    assert page.look_again("typed", request_of(world))[1] == gr.skip()
    assert page.look_again(" ", request_of(world))[1] == "a " * 50
