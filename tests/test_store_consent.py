"""What may not teach never leaves the store as an example, and what learned from it is not used any more."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feedback_store.errors import BadInput, NotYours, TaintedAdapter, Withdrawn
from feedback_store.records import TrainItem
from feedback_store.store import Store
from tests.test_store_world import answer, ask, whole_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(tmp_path / "nightschool.db") as opened:
        yield opened


def choose(store: Store, person_id: int) -> str:
    """Let a person choose between two replies and rewrite one, and return the conversation."""
    question = ask(store, f"Mine? I am {person_id}.", person_id)
    left, right = (answer(store, question, text, person_id) for text in ("yes", "no"))
    shown = store.votes.show_comparison(person_id, question.id, left.id, right.id)
    store.votes.choose(shown.id, person_id, "left")
    store.votes.rewrite(right.id, person_id, "maybe")
    return question.conversation_id


def teaching(store: Store) -> set[str]:
    """Return the conversations that examples come from, the same for pairs and demonstrations."""
    pairs = {pair.conversation_id for pair in store.votes.pairs()}
    assert pairs == {shown.conversation_id for shown in store.votes.demonstrations()}
    counts = store.votes.counts()
    assert (counts["pairs"], counts["demonstrations"]) == (2 * len(pairs), len(pairs))
    return pairs


def train(store: Store, run_id: str, adapter_id: str) -> None:
    """Make an adapter of everything that may teach."""
    store.registry.start_run(run_id)
    items = [TrainItem(pair.person_id, pair.ids) for pair in store.votes.pairs()]
    store.registry.record_training(run_id, items)
    store.registry.register_adapter(adapter_id, "base-1", run_id)


def end(store: Store, *run_ids: str) -> None:
    """Let nights go by that replace nothing."""
    for run_id in run_ids:
        store.registry.start_run(run_id)
        store.registry.finish_run(run_id, "skipped")


def test_the_local_owner_starts_with_on_and_accounts_with_unanswered_which_is_off(store: Store) -> None:
    member = store.accounts.add("mina", "correct horse")
    rater = store.people.add("rater", kind="simulated")
    assert store.people.owner().teach == "on" and store.consent.of_person(member.id) == "unanswered"
    owners, members, raters = (choose(store, person) for person in (1, member.id, rater.id))
    assert teaching(store) == {owners, raters}
    store.consent.set_person(member.id, "on")
    assert teaching(store) == {owners, members, raters}
    store.consent.set_person(1, "off")
    store.consent.set_person(1, "off")
    assert teaching(store) == {members, raters} and store.people.owner().teach == "off"


def test_a_conversations_own_answer_stands_before_its_persons(store: Store) -> None:
    one, other = choose(store, 1), choose(store, 1)
    store.consent.set_conversation(one, 1, "off")
    assert teaching(store) == {other} and not store.consent.teaches(one) and store.consent.teaches(other)
    assert (store.consent.of_conversation(one, 1), store.consent.of_conversation(other, 1)) == ("off", None)
    store.consent.set_person(1, "off")
    store.consent.set_conversation(one, 1, "on")
    assert teaching(store) == {one}
    store.consent.set_conversation(one, 1, None)
    assert teaching(store) == set()


def test_who_withdraws_withdraws_what_was_allowed_singly_too(store: Store) -> None:
    one = choose(store, 1)
    store.consent.set_conversation(one, 1, "on")
    store.consent.set_person(1, "off")
    assert teaching(store) == set()
    store.consent.set_person(1, "on")
    assert teaching(store) == {one}


def test_only_its_owner_answers_for_a_conversation(store: Store) -> None:
    one, stranger = choose(store, 1), store.people.add("stranger").id
    for conversation in (one, "nowhere"):
        with pytest.raises(NotYours):
            store.consent.set_conversation(conversation, stranger, "off")
        with pytest.raises(NotYours):
            store.consent.of_conversation(conversation, stranger)
    with pytest.raises(BadInput):
        store.consent.set_person(99, "on")
    with pytest.raises(BadInput):
        store.consent.of_person(99)
    for act in (lambda: store.consent.set_person(1, "unanswered"), lambda: store.consent.set_conversation(one, 1, "")):  # type: ignore[arg-type]
        with pytest.raises(BadInput):
            act()
    assert teaching(store) == {one}


def test_an_adapter_that_learned_from_withdrawn_chats_is_neither_promoted_nor_rolled_back_to(store: Store) -> None:
    choose(store, 1)
    train(store, "one", "a")
    store.registry.register_adapter("b", "base-1")
    store.registry.promote("a", 0)
    store.registry.promote("b", 1)
    assert store.registry.tainted("a") == ()
    store.consent.set_person(1, "off")
    assert len(store.registry.tainted("a")) == 1 and store.registry.tainted("b") == ()
    for act in (store.registry.rollback, lambda: store.registry.promote("a", 2)):
        with pytest.raises(TaintedAdapter, match="withdrawn"):
            act()
    assert store.registry.live().adapter_id == "b"
    store.consent.set_person(1, "on")
    assert store.registry.tainted("a") == () and store.registry.rollback().adapter_id == "a"


def test_one_conversation_taints_as_a_person_does_but_others_may_stay_off(store: Store) -> None:
    kept = choose(store, 1)
    store.consent.set_conversation(kept, 1, "off")
    other = choose(store, 1)
    train(store, "one", "a")
    assert store.registry.tainted("a") == ()
    store.consent.set_conversation(other, 1, "off")
    assert len(store.registry.tainted("a")) == 1
    with pytest.raises(TaintedAdapter):
        store.registry.promote("a", 0)


def test_a_run_cannot_record_what_may_not_teach(store: Store) -> None:
    choose(store, 1)
    pair = next(store.votes.pairs())
    stranger = store.people.add("stranger").id
    store.registry.start_run("one")
    store.consent.set_person(1, "off")
    for item in (TrainItem(1, pair.ids), TrainItem(stranger, pair.ids), TrainItem(1, ("nowhere",))):
        with pytest.raises(Withdrawn):
            store.registry.record_training("one", [item])
    store.consent.set_person(1, "on")
    with pytest.raises(BadInput, match="no run"):
        store.registry.record_training("two", [TrainItem(1, pair.ids)])
    assert store.registry.record_training("one", [TrainItem(1, pair.ids)] * 2) == 2
    assert store.registry.record_training("one", [TrainItem(1, pair.ids)]) == 2
    with store.connections.read() as db:
        assert db.execute("SELECT count(*) FROM train_item").fetchone()[0] == 2


def test_a_deleted_chat_leaves_the_record_that_its_person_was_learned_from(store: Store) -> None:
    conversation = choose(store, 1)
    train(store, "one", "a")
    store.conversations.delete(conversation, 1)
    assert store.registry.tainted("a") == ()
    store.consent.set_person(1, "off")
    assert len(store.registry.tainted("a")) == 1


def test_a_live_tainted_adapter_gives_way_to_the_base_after_three_nights_and_not_before(store: Store) -> None:
    choose(store, 1)
    train(store, "one", "a")
    store.registry.promote("a", 0)
    end(store, "before")
    assert store.registry.retire_tainted() is None
    store.consent.set_person(1, "off")
    end(store, "two", "three")
    store.registry.start_run("four")
    assert store.registry.retire_tainted() is None, "the third night is not over"
    store.registry.finish_run("four", "refused")
    live = store.registry.retire_tainted()
    assert live is not None and live.adapter_id is None
    assert store.registry.history()[0].why == "withdrawn"
    assert store.registry.retire_tainted() is None
    with pytest.raises(TaintedAdapter):
        store.registry.rollback()


def test_it_gives_way_after_three_days_where_no_night_runs(store: Store) -> None:
    choose(store, 1)
    train(store, "one", "a")
    store.registry.promote("a", 0)
    store.consent.set_person(1, "off")
    now = datetime.now(UTC)
    assert store.registry.retire_tainted(now=now + timedelta(days=2, hours=23)) is None
    assert store.registry.retire_tainted(now=now + timedelta(days=3, hours=1)) is not None


def test_consent_that_cannot_be_stored_is_not_believed(store: Store) -> None:
    """A person who turned it off and got an error must find it as it was, not half done."""
    one = choose(store, 1)
    store.consent.set_conversation(one, 1, "on")
    with store.connections.write() as db:
        db.execute("CREATE TEMP TRIGGER refuse BEFORE UPDATE ON conversation BEGIN SELECT raise(ABORT, 'no'); END")
    with pytest.raises(Exception, match="no"):
        store.consent.set_person(1, "off")
    with store.connections.write() as db:
        db.execute("DROP TRIGGER refuse")
    assert store.consent.of_person(1) == "on"
