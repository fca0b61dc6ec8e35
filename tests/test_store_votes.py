"""A judgement is one person's, about one's own finished replies; the last one counts and the history stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_store.errors import BadInput, NotYours
from feedback_store.store import Store
from tests.test_store_world import ORIGIN, answer, ask, fill, whole_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(tmp_path / "nightschool.db") as opened:
        yield opened


def events(store: Store) -> list[tuple[int | None, int]]:
    """Return what votes changed from and to, in order."""
    with store.connections.read() as db:
        return [tuple(row) for row in db.execute("SELECT old, new FROM vote_event ORDER BY id")]


def judgements(store: Store) -> int:
    """Return how many rows of judgements there are."""
    tables = ("vote", "vote_event", "comparison", "comparison_event", "rewrite")
    with store.connections.read() as db:
        return sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)


def test_the_last_vote_counts_and_every_change_is_kept(store: Store) -> None:
    reply = answer(store, ask(store), "4")
    first = store.votes.rate(reply.id, 1, 1, ["correct", "clear", "correct"], "  Nice.\n")
    assert (first.value, first.reasons, first.comment, first.version) == (1, ("correct", "clear"), "  Nice.\n", 1)
    assert store.votes.rate(reply.id, 1, -1, ["too_long"]).version == 2
    taken_back = store.votes.rate(reply.id, 1, 0, ["too_long"], "ignored")
    assert (taken_back.value, taken_back.reasons, taken_back.comment, taken_back.version) == (0, (), "", 3)
    assert store.votes.get(reply.id, 1) == taken_back
    assert events(store) == [(None, 1), (1, -1), (-1, 0)]
    assert store.votes.counts()["retracted"] == 1


def test_the_same_vote_again_changes_nothing(store: Store) -> None:
    reply = answer(store, ask(store), "4")
    assert store.votes.rate(reply.id, 1, 1) == store.votes.rate(reply.id, 1, 1)
    assert events(store) == [(None, 1)]


def test_a_repeated_request_changes_nothing_however_late_it_comes(store: Store) -> None:
    reply = answer(store, ask(store), "4")
    store.votes.rate(reply.id, 1, 1, request_id="press-1")
    store.votes.rate(reply.id, 1, 1, request_id="press-2")
    last = store.votes.rate(reply.id, 1, -1, request_id="press-3")
    for late in ("press-1", "press-2"):
        assert store.votes.rate(reply.id, 1, 1, request_id=late) == last
    assert events(store) == [(None, 1), (1, 1), (1, -1)]
    with pytest.raises(BadInput, match="another reply"):
        store.votes.rate(answer(store, ask(store), "5").id, 1, 1, request_id="press-1")


def test_one_persons_request_ids_do_not_use_up_anothers(store: Store) -> None:
    other = store.people.add("other").id
    for person_id in (1, other):
        reply = answer(store, ask(store, person_id=person_id), "4", person_id)
        assert store.votes.rate(reply.id, person_id, 1, request_id="press-1").value == 1


@pytest.mark.parametrize("value", [2, -2, True, False, "", "1", None, 1.0])
def test_only_three_values_are_votes(store: Store, value: object) -> None:
    """A page that un-likes sends an empty text, and one that says False means a thumb down: neither is guessed at."""
    reply = answer(store, ask(store), "4")
    with pytest.raises(BadInput, match="1, -1 or 0"):
        store.votes.rate(reply.id, 1, value)  # type: ignore[arg-type]
    assert judgements(store) == 0


def test_reasons_and_comments_that_may_not_be_stored_are_refused(store: Store) -> None:
    reply = answer(store, ask(store), "4")
    for bad in ({"reasons": ["wrong"]}, {"reasons": "correct"}, {"comment": "x" * 2001}, {"comment": "\x00"}):
        with pytest.raises(BadInput):
            store.votes.rate(reply.id, 1, 1, **bad)  # type: ignore[arg-type]
    with pytest.raises(BadInput):
        store.votes.rate(reply.id, 1, 1, request_id="")
    assert judgements(store) == 0
    assert store.votes.rate(reply.id, 1, 1, comment="x" * 2000).comment == "x" * 2000


def test_only_finished_replies_with_text_can_be_judged(store: Store) -> None:
    question = ask(store)
    talk = store.conversations
    streaming = talk.begin_reply(question.id, 1, ORIGIN)
    failed, empty, stopped = (talk.begin_reply(question.id, 1, ORIGIN) for _ in range(3))
    talk.finish_reply(failed.id, "half", "failed", "error", 1)
    talk.finish_reply(empty.id, " \n", "done", "end", 1)
    talk.finish_reply(stopped.id, "half", "stopped", "stop", 1)
    for message in (question, streaming, failed, empty):
        with pytest.raises(BadInput):
            store.votes.rate(message.id, 1, 1)
        with pytest.raises(BadInput):
            store.votes.rewrite(message.id, 1, "Better.")
    assert judgements(store) == 0
    assert store.votes.rate(stopped.id, 1, 1).value == 1


def test_what_is_absent_and_what_is_somebody_elses_get_the_same_sentence(store: Store) -> None:
    stranger = store.people.add("stranger").id
    liked = fill(store)
    question, other = liked.parent_id or "", store.conversations.siblings(liked.id)[1]
    shown = store.votes.comparisons(1)[0]
    before = judgements(store)
    votes, sentences = store.votes, set()
    for attempt in (
        lambda: votes.rate(liked.id, stranger, -1),
        lambda: votes.rate("0" * 32, 1, -1),
        lambda: votes.rewrite(liked.id, stranger, "Mine."),
        lambda: votes.rewrite("0" * 32, 1, "Mine."),
        lambda: votes.choose(shown.id, stranger, "left"),
        lambda: votes.choose("0" * 32, 1, "left"),
        lambda: votes.show_comparison(stranger, question, liked.id, other.id),
        lambda: votes.show_comparison(1, question, liked.id, "0" * 32),
    ):
        with pytest.raises(NotYours) as raised:
            attempt()
        sentences.add(str(raised.value))
    assert len(sentences) == 1
    assert judgements(store) == before
    assert votes.get(liked.id, stranger) is None and votes.get_rewrite(liked.id, stranger) is None


def test_votes_of_a_page_are_read_at_once(store: Store) -> None:
    liked = fill(store)
    ids = [reply.id for reply in store.conversations.siblings(liked.id)]
    found = store.votes.for_messages([*ids, "unknown", "\ud800"], 1)
    assert {message_id: vote.value for message_id, vote in found.items()} == {ids[0]: 1, ids[1]: -1}
    assert store.votes.for_messages([], 1) == {}


def test_a_comparison_keeps_sides_and_choice_and_the_choice_may_change(store: Store) -> None:
    question = ask(store)
    left, right = answer(store, question, "4"), answer(store, question, "5")
    shown = store.votes.show_comparison(1, question.id, left.id, right.id)
    assert (shown.left_message_id, shown.right_message_id, shown.choice) == (left.id, right.id, None)
    assert store.votes.counts()["unanswered_comparisons"] == 1
    for choice in ("left", "left", "both-bad", "tie"):
        assert store.votes.choose(shown.id, 1, choice).choice == choice  # type: ignore[arg-type]
    with store.connections.read() as db:
        history = db.execute("SELECT old, new FROM comparison_event ORDER BY id").fetchall()
    assert [tuple(row) for row in history] == [(None, "left"), ("left", "both-bad"), ("both-bad", "tie")]
    with pytest.raises(BadInput, match="left, right, tie, both-bad"):
        store.votes.choose(shown.id, 1, "middle")  # type: ignore[arg-type]
    assert [comparison.choice for comparison in store.votes.comparisons(1)] == ["tie"]
    assert list(store.votes.pairs()) == []


def test_a_comparison_needs_two_different_replies_to_its_prompt(store: Store) -> None:
    question = ask(store)
    mine, elsewhere = answer(store, question, "4"), answer(store, ask(store), "5")
    for left, right in ((mine, mine), (mine, elsewhere), (mine, question)):
        with pytest.raises(BadInput, match="two different replies"):
            store.votes.show_comparison(1, question.id, left.id, right.id)
    assert judgements(store) == 0


def test_nothing_is_chosen_before_both_replies_are_finished(store: Store) -> None:
    question = ask(store)
    left, right = answer(store, question, "4"), store.conversations.begin_reply(question.id, 1, ORIGIN)
    shown = store.votes.show_comparison(1, question.id, left.id, right.id)
    with pytest.raises(BadInput, match="finished"):
        store.votes.choose(shown.id, 1, "left")
    store.conversations.finish_reply(right.id, "5", "stopped", "stop", 1)
    assert store.votes.choose(shown.id, 1, "left").choice == "left"


def test_the_last_rewrite_counts(store: Store) -> None:
    reply = answer(store, ask(store), "4")
    for text in ("What is 2 and 2 more?", "Try it with your fingers?"):
        assert store.votes.rewrite(reply.id, 1, text).text == text
    found = store.votes.get_rewrite(reply.id, 1)
    assert found == store.votes.rewrite(reply.id, 1, "Try it with your fingers?")
    with pytest.raises(BadInput):
        store.votes.rewrite(reply.id, 1, " ")


def test_pairs_come_from_choices_opposite_thumbs_and_rewrites(store: Store) -> None:
    liked = fill(store)
    prompt = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is 2 + 2?"})
    pairs = {pair.source: pair for pair in store.votes.pairs()}
    assert {source: (pair.chosen, pair.rejected) for source, pair in pairs.items()} == {
        "thumbs": ("4", "5"),
        "comparison": ("4", "5"),
        "rewrite": ("What do you get when you count on from 2?", "5"),
    }
    assert all(pair.prompt == prompt for pair in pairs.values())
    assert pairs["thumbs"].ids == pairs["comparison"].ids == (liked.id, pairs["rewrite"].ids[0])
    shown = list(store.votes.demonstrations())
    assert [(d.prompt, d.completion, d.ids) for d in shown] == [
        (prompt, "What do you get when you count on from 2?", pairs["rewrite"].ids)
    ]
    keys = [pair.key for pair in store.votes.pairs()]
    assert keys == [pair.key for pair in store.votes.pairs()] and len(set(keys)) == 3


def test_a_prompt_is_the_path_to_the_question_and_an_empty_system_prompt_is_left_out(store: Store) -> None:
    first = answer(store, ask(store, "Hello"), "Hi.", system="Another one.")
    question = store.conversations.add_user_message(first.conversation_id, 1, "What is 2 + 2?", first.id)
    good, bad = answer(store, question, "4", system=""), answer(store, question, "5", system="")
    store.votes.rate(good.id, 1, 1)
    store.votes.rate(bad.id, 1, -1)
    (pair,) = store.votes.pairs()
    assert pair.prompt == (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "What is 2 + 2?"},
    )


def test_thumbs_come_with_what_they_are_on_and_not_when_taken_back_or_kept_from_teaching(store: Store) -> None:
    question = ask(store, "2 + 2?")
    four, five, six = (answer(store, question, text) for text in ("4", "5", "6"))
    for reply, value in ((four, 1), (five, -1), (six, 1)):
        store.votes.rate(reply.id, 1, value)
    store.votes.rate(six.id, 1, 0)
    liked, disliked = store.votes.thumbs()
    assert (liked.completion, liked.up, liked.person_id, liked.ids) == ("4", True, 1, (four.id,))
    assert (disliked.completion, disliked.up, disliked.conversation_id) == ("5", False, question.conversation_id)
    assert liked.prompt[-1] == {"role": "user", "content": "2 + 2?"} and liked.key == four.id
    store.consent.set_conversation(question.conversation_id, 1, "off")
    assert list(store.votes.thumbs()) == []


def test_every_liked_sibling_beats_every_disliked_one(store: Store) -> None:
    question = ask(store)
    texts = {"a": 1, "b": 1, "c": -1, "d": -1, "e": 0}
    for text, value in texts.items():
        store.votes.rate(answer(store, question, text).id, 1, value)
    assert {(pair.chosen, pair.rejected) for pair in store.votes.pairs()} == {
        ("a", "c"),
        ("a", "d"),
        ("b", "c"),
        ("b", "d"),
    }


def test_what_says_nothing_about_preference_is_no_pair(store: Store) -> None:
    """Equal texts; replies to different questions; replies under different system prompts; a vote taken back."""
    question = ask(store)
    same = answer(store, question, "4"), answer(store, question, "4")
    shown = store.votes.show_comparison(1, question.id, *(reply.id for reply in same))
    store.votes.choose(shown.id, 1, "left")
    store.votes.rewrite(same[0].id, 1, "4")
    store.votes.rate(same[0].id, 1, 1)
    store.votes.rate(answer(store, ask(store), "5").id, 1, -1)
    store.votes.rate(answer(store, question, "6", system="Be rude.").id, 1, -1)
    withdrawn = answer(store, question, "7")
    store.votes.rate(withdrawn.id, 1, -1)
    store.votes.rate(withdrawn.id, 1, 0)
    assert list(store.votes.pairs()) == []
    assert store.votes.counts()["pairs"] == 0
    assert len(list(store.votes.demonstrations())) == 1


def test_an_iterator_sees_one_moment_and_writers_do_not_wait_for_it(store: Store) -> None:
    question = ask(store)
    store.votes.rate(answer(store, question, "bad").id, 1, -1)
    for number in range(3):
        store.votes.rate(answer(store, question, str(number)).id, 1, 1)
    walking = store.votes.pairs()
    next(walking)
    store.votes.rate(answer(store, question, "late").id, 1, 1)
    store.conversations.delete(question.conversation_id, 1)
    assert len(list(walking)) == 2
    assert list(store.votes.pairs()) == []
