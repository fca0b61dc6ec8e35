"""Two to nine replies in order, by the one who was shown them; ties are kept, the last order counts, history stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback_store.connection import connect
from feedback_store.errors import BadInput, NotYours
from feedback_store.exporters import export_lines
from feedback_store.integrity import verify
from feedback_store.store import Store
from tests.test_store_world import ORIGIN, answer, ask, whole_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store."""
    with whole_store(tmp_path / "nightschool.db") as opened:
        yield opened


def rankings(store: Store) -> int:
    """Count the rankings and their history."""
    with store.connections.read() as db:
        return int(
            db.execute("SELECT (SELECT count(*) FROM ranking) + (SELECT count(*) FROM ranking_event)").fetchone()[0]
        )


def test_a_ranking_keeps_order_shown_ties_and_whether_any_is_good(store: Store) -> None:
    question = ask(store)
    a, b, c = (answer(store, question, text) for text in "abc")
    ranked = store.votes.rank(question.id, 1, {b.id: 5, a.id: 2, c.id: 5}, none_is_good=True)
    assert (list(ranked.ranks.items()), ranked.none_is_good, ranked.version) == (
        [(b.id, 2), (a.id, 1), (c.id, 2)],
        True,
        1,
    )
    assert store.votes.get_ranking(question.id, 1) == ranked
    (example,) = store.votes.rankings()
    assert (example.completions, example.ranks, example.ids) == (("b", "a", "c"), (2, 1, 2), (b.id, a.id, c.id))
    assert example.prompt[-1] == {"role": "user", "content": "What is 2 + 2?"} and example.none_is_good
    assert list(store.votes.pairs()) == []


def test_the_last_order_counts_and_the_same_again_changes_nothing(store: Store) -> None:
    question = ask(store)
    a, b, c = (answer(store, question, text) for text in "abc")
    first = store.votes.rank(question.id, 1, {a.id: 1, b.id: 2})
    assert store.votes.rank(question.id, 1, {a.id: 1, b.id: 2}) == first
    second = store.votes.rank(question.id, 1, {c.id: 1, a.id: 2, b.id: 2})
    assert (second.id, second.version, dict(second.ranks)) == (first.id, 2, {c.id: 1, a.id: 2, b.id: 2})
    assert rankings(store) == 1 + 2
    assert [example.ranks for example in store.votes.rankings()] == [(1, 2, 2)]


def test_a_ranking_taken_back_teaches_nothing_and_keeps_its_history(store: Store) -> None:
    question = ask(store)
    a, b = (answer(store, question, text) for text in "ab")
    first = store.votes.rank(question.id, 1, {a.id: 1, b.id: 2}, none_is_good=True)
    back = store.votes.retract_ranking(question.id, 1)
    assert (back.retracted, back.version, back.ranks, first.retracted) == (True, 2, first.ranks, False)
    assert store.votes.retract_ranking(question.id, 1) == back == store.votes.get_ranking(question.id, 1)
    assert list(store.votes.rankings()) == [] and list(export_lines(store, "rankings")) == []
    assert store.votes.counts()["rankings"] == 0 and rankings(store) == 1 + 2
    again = store.votes.rank(question.id, 1, {a.id: 1, b.id: 2}, none_is_good=True)
    assert (again.retracted, again.version, again.id) == (False, 3, first.id)
    assert len(list(store.votes.rankings())) == 1 and rankings(store) == 1 + 3


def test_a_ranking_is_taken_back_by_who_gave_it_only(store: Store) -> None:
    stranger = store.people.add("stranger").id
    question = ask(store)
    a, b = (answer(store, question, text) for text in "ab")
    for prompt, person_id in ((question.id, 1), (question.id, stranger), ("invented", 1)):
        with pytest.raises(NotYours):
            store.votes.retract_ranking(prompt, person_id)
    store.votes.rank(question.id, 1, {a.id: 1, b.id: 2})
    with pytest.raises(NotYours):
        store.votes.retract_ranking(question.id, stranger)
    assert len(list(store.votes.rankings())) == 1


def test_only_ones_own_finished_replies_to_one_message_are_ranked(store: Store) -> None:
    stranger = store.people.add("stranger").id
    question, another = ask(store), ask(store)
    a, b = (answer(store, question, text) for text in "ab")
    elsewhere = answer(store, another, "c")
    streaming = store.conversations.begin_reply(question.id, 1, ORIGIN)
    for ranks in ({a.id: 1, elsewhere.id: 2}, {a.id: 1, streaming.id: 2}, {a.id: 1, question.id: 2}):
        with pytest.raises(BadInput):
            store.votes.rank(question.id, 1, ranks)
    for person_id, ranks in ((stranger, {a.id: 1, b.id: 2}), (1, {a.id: 1, "invented": 2})):
        with pytest.raises(NotYours):
            store.votes.rank(question.id, person_id, ranks)
    assert rankings(store) == 0
    store.conversations.finish_reply(streaming.id, "d", "done", "end", 1)


def test_a_ranking_has_two_to_nine_replies_and_ranks_from_one_to_nine(store: Store) -> None:
    question = ask(store)
    ids = [answer(store, question, str(number)).id for number in range(10)]
    bad: list[dict[str, Any]] = [{}, {ids[0]: 1}, dict.fromkeys(ids, 1)]
    bad += [{ids[0]: 1, ids[1]: rank} for rank in (0, 10, True, "2", None, 1.0)]
    for ranks in bad:
        with pytest.raises(BadInput):
            store.votes.rank(question.id, 1, ranks)
    nine = store.votes.rank(question.id, 1, {message_id: place for place, message_id in enumerate(ids[:9], 1)})
    assert list(nine.ranks.values()) == list(range(1, 10))


def test_replies_under_different_system_prompts_are_no_example(store: Store) -> None:
    question = ask(store)
    a, b = answer(store, question, "a"), answer(store, question, "b", system="Be rude.")
    store.votes.rank(question.id, 1, {a.id: 1, b.id: 2})
    assert list(store.votes.rankings()) == []


def test_a_ranking_goes_with_its_conversation(store: Store) -> None:
    question = ask(store)
    a, b = (answer(store, question, text) for text in "ab")
    store.votes.rank(question.id, 1, {a.id: 1, b.id: 2})
    store.conversations.delete(question.conversation_id, 1)
    assert rankings(store) == 0


@pytest.mark.parametrize(
    ("damage", "repair", "sentence"),
    [
        ("UPDATE ranked_reply SET rank = 3 - rank", "UPDATE ranked_reply SET rank = 3 - rank", "end of its history"),
        ("UPDATE ranked_reply SET rank = rank * 2", "UPDATE ranked_reply SET rank = rank / 2", "2 to 9 replies"),
        ("UPDATE ranking SET retracted = 1", "UPDATE ranking SET retracted = 0", "end of its history"),
        ("UPDATE ranking SET person_id = 2", "UPDATE ranking SET person_id = 1", "in its person's conversation"),
    ],
)
def test_a_damaged_ranking_is_named(store: Store, damage: str, repair: str, sentence: str) -> None:
    store.people.add("second")
    question = ask(store)
    a, b = (answer(store, question, text) for text in "ab")
    store.votes.rank(question.id, 1, {a.id: 1, b.id: 2})
    db = connect(store.path)
    db.execute(damage)
    problems = verify(store)
    assert any(sentence in problem for problem in problems) and any("was changed by" in p for p in problems)
    db.execute(repair)
    db.close()
