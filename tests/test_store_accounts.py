"""Only who should get in gets in: passwords, sessions, tokens, roles, and what the first operator takes over."""

import statistics
import threading
import time
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback_store.accounts import hash_password, password_matches
from feedback_store.errors import BadInput, SamePassword, StoreError
from feedback_store.people import check_name
from feedback_store.sessions import SESSION_IDLE, SESSION_LIFETIME
from feedback_store.store import Store
from tests.test_store_world import ask, fill, whole_store

GOOD, OTHER = "correct horse battery", "another long sentence"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(tmp_path / "nightschool.db") as opened:
        yield opened


@pytest.fixture
def staffed(store: Store) -> Store:
    """A store with an operator, olga, and a member, mina."""
    store.accounts.add("olga", GOOD, "operator")
    store.accounts.add("mina", OTHER)
    return store


def test_nobody_is_operator_until_one_can_log_in(store: Store) -> None:
    assert store.people.owner().role == "operator"
    assert not store.accounts.has_operator() and not store.accounts.has_accounts()
    store.accounts.add("mina", OTHER)
    assert not store.accounts.has_operator() and store.accounts.has_accounts()
    store.accounts.add("olga", GOOD, "operator")
    assert store.accounts.has_operator()


def test_the_first_operator_inherits_what_the_local_owner_had_and_nobody_else_does(store: Store) -> None:
    liked = fill(store)
    olga = store.accounts.add("olga", GOOD, "operator")
    later = store.accounts.add("omar", GOOD, "operator")
    assert store.people.owner() == olga and later.id != olga.id
    vote = store.votes.get(liked.id, olga.id)
    assert vote is not None and vote.value == 1
    assert len(store.conversations.list(olga.id)) == 1 and store.conversations.list(later.id) == []
    assert (olga.teach, later.teach) == ("on", "unanswered")


def test_a_member_who_becomes_the_first_operator_inherits_too_and_keeps_what_was_theirs(store: Store) -> None:
    liked = fill(store)
    mina = store.accounts.add("mina", GOOD)
    token = store.sessions.new_session(mina.id)
    mine = ask(store, "Mine?", mina.id)
    promoted = store.accounts.set_role("mina", "operator")
    assert (promoted.role, promoted.kind, store.accounts.has_operator()) == ("operator", "owner", True)
    assert {talk.title for talk in store.conversations.list(promoted.id)} == {"What is 2 + 2?", "Mine?"}
    assert store.votes.get(liked.id, promoted.id) is not None
    assert store.sessions.person_of_session(token) == promoted
    assert [person.name for person in store.people.all()] == ["mina"]
    assert not store.consent.teaches(mine.conversation_id), "what was not allowed is not allowed by a new role"
    assert store.consent.teaches(liked.conversation_id)


def test_the_first_operator_of_a_fresh_home_is_asked_whether_chats_may_teach(store: Store) -> None:
    """Who set up accounts first took over an owner's yes that nobody had ever been asked for."""
    olga = store.accounts.add("olga", GOOD, "operator")
    question = ask(store, "Mine?", olga.id)
    assert olga.teach == "unanswered" and not store.consent.teaches(question.conversation_id)
    store.consent.set_person(olga.id, "on")
    assert store.consent.teaches(question.conversation_id)


def test_a_local_owner_who_said_no_is_not_turned_into_one_who_is_asked(store: Store) -> None:
    store.consent.set_person(1, "off")
    assert store.accounts.add("olga", GOOD, "operator").teach == "off"


@pytest.mark.parametrize(
    ("owner", "mina", "then"),
    [
        (None, "unanswered", "unanswered"),
        (None, "on", "on"),
        (None, "off", "off"),
        ("on", "unanswered", "on"),
        ("off", "unanswered", "off"),
        ("on", "off", "off"),
        ("off", "on", "on"),
    ],
)
def test_a_new_role_allows_no_chat_that_was_not_allowed_before(
    store: Store, owner: str | None, mina: str, then: str
) -> None:
    """A member who had said no became the first operator, and the owner's yes held for all they said from then on.

    Args:
        owner: the answer of a local owner who chatted; None for one who never did.
    """
    before: dict[str, bool] = {}
    if owner:
        question = ask(store, "The owner's?")
        store.consent.set_person(1, owner)  # type: ignore[arg-type]
        before[question.conversation_id] = owner == "on"
    person = store.accounts.add("mina", GOOD)
    before[ask(store, "Mine?", person.id).conversation_id] = mina == "on"
    if mina != "unanswered":
        store.consent.set_person(person.id, mina)  # type: ignore[arg-type]
    promoted = store.accounts.set_role("mina", "operator")
    assert promoted.teach == then
    after = {conversation: store.consent.teaches(conversation) for conversation in before}
    assert not [conversation for conversation, teaches in after.items() if teaches and not before[conversation]]
    assert not store.consent.teaches(ask(store, "Later?", promoted.id).conversation_id) or then == "on"


def test_the_owners_place_is_taken_once_and_unasked_only_in_a_new_home(store: Store) -> None:
    """The operator was gone, and the next account that was added became operator with all the first one's chats."""
    assert store.accounts.role_of_next() == "operator"
    fill(store)
    olga = store.accounts.add("olga", GOOD, "operator")
    assert store.accounts.role_of_next() == "member"
    with store.connections.write() as db:
        db.execute("UPDATE person SET disabled_at = '2026-01-01' WHERE name = 'olga'")
    assert not store.accounts.has_operator() and store.accounts.role_of_next() == "member"
    dan = store.accounts.add("dan", GOOD, "operator")
    assert (dan.kind, dan.role) == ("account", "operator") and store.conversations.list(dan.id) == []
    assert store.people.get("olga").id == olga.id and len(store.conversations.list(olga.id)) == 1


def test_a_member_first_leaves_the_home_without_operator_until_one_is_named(store: Store) -> None:
    store.accounts.add("mina", GOOD)
    assert store.accounts.role_of_next() == "member"


def test_a_password_that_stays_the_same_is_refused_as_no_change(staffed: Store) -> None:
    """Somebody whose password had leaked "changed" it to the same one, and was told that it was changed."""
    session = staffed.sessions.new_session(staffed.people.get("mina").id)
    with pytest.raises(SamePassword, match="until now"):
        staffed.accounts.set_password("mina", OTHER)
    assert staffed.sessions.person_of_session(session) is not None
    staffed.accounts.disable("mina")
    with pytest.raises(SamePassword):
        staffed.accounts.set_password("mina", OTHER)
    staffed.accounts.set_password("mina", GOOD)


def test_a_local_owner_is_no_account_before_there_is_one(store: Store) -> None:
    """`users disable owner` shut out whoever sat at the machine, and `users password owner` made an account unasked."""
    for act in (
        lambda: store.accounts.disable("owner"),
        lambda: store.accounts.set_role("owner", "member"),
        lambda: store.accounts.set_password("owner", GOOD),
        lambda: store.accounts.get("owner"),
    ):
        with pytest.raises(BadInput, match="users add"):
            act()
    assert (store.people.owner().role, store.people.owner().disabled) == ("operator", False)
    assert not store.accounts.has_accounts()


def test_the_right_password_opens_and_nothing_else_does(staffed: Store) -> None:
    found = staffed.accounts.check_password(" Olga ", GOOD)
    assert found is not None and found.name == "olga"
    for name, password in (
        ("olga", OTHER),
        ("mina", GOOD),
        ("olga", ""),
        ("nobody", GOOD),
        ("", ""),
        ("olga\u200b", GOOD),
        ("ol\udc80ga", GOOD),
        ("olga", "\udc80"),
        ("olga' --", GOOD),
        ("olga", GOOD.upper()),
    ):
        assert staffed.accounts.check_password(name, password) is None


def test_an_unknown_name_takes_as_long_as_a_wrong_password(staffed: Store) -> None:
    def seconds(name: str) -> float:
        start = time.thread_time()
        assert staffed.accounts.check_password(name, "a wrong password") is None
        return time.thread_time() - start

    known, unknown = ([seconds(name) for _ in range(9)] for name in ("olga", "nobody"))
    assert 0.5 < statistics.median(known) / statistics.median(unknown) < 2


def test_a_password_is_stored_as_an_argon2id_hash_of_its_own(staffed: Store) -> None:
    staffed.accounts.add("twin", GOOD)
    stored = [staffed.accounts.stored_password(name) for name in ("olga", "twin")]
    assert stored[0] != stored[1] and all(one is not None and one.startswith("$argon2id$") for one in stored)
    assert GOOD.encode() not in staffed.path.read_bytes()
    assert GOOD.encode() not in staffed.path.with_name("nightschool.db-wal").read_bytes()


def test_a_password_is_the_same_however_its_letters_were_composed() -> None:
    composed, decomposed = "\ud55c\uae00 \ube44\ubc00\ubc88\ud638\uc785", "café au lait"
    assert password_matches(hash_password(composed), composed)
    assert password_matches(hash_password(decomposed), "cafe\u0301 au lait")


@pytest.mark.parametrize("password", ["", "seven77", "x" * 1001, "long enough \udc80", "long enough \x00"])
def test_a_password_that_cannot_protect_is_refused(staffed: Store, password: str) -> None:
    with pytest.raises(BadInput):
        staffed.accounts.add("new", password)
    with pytest.raises(BadInput):
        staffed.accounts.set_password("mina", password)
    assert staffed.accounts.check_password("mina", OTHER) is not None
    assert [account.person.name for account in staffed.accounts.list()] == ["olga", "mina"]


@settings(deadline=None, max_examples=300)
@given(name=st.text(max_size=40) | st.from_regex(r"[a-z0-9][a-zA-Z0-9_.\-\u200b\u0430\u017f]{1,31}"))
def test_no_two_names_look_alike(name: str) -> None:
    try:
        check_name(name)
    except BadInput:
        return
    assert name.isascii() and name == unicodedata.normalize("NFKC", name).casefold().strip()


@pytest.mark.parametrize("name", ["Olga", "olga\u200b", "оlga", "o", "-olga", "olga ", "x" * 33, "olga\n", "olga"])
def test_names_that_look_alike_are_refused(staffed: Store, name: str) -> None:
    with pytest.raises(BadInput):
        staffed.accounts.add(name, GOOD)


def test_a_session_is_its_persons_until_it_is_revoked(staffed: Store) -> None:
    mina = staffed.people.get("mina")
    first, second = staffed.sessions.new_session(mina.id), staffed.sessions.new_session(mina.id)
    assert first != second and staffed.sessions.person_of_session(first) == mina
    staffed.sessions.revoke_session(first)
    staffed.sessions.revoke_session(first)
    assert staffed.sessions.person_of_session(first) is None
    assert staffed.sessions.person_of_session(second) == mina
    third = staffed.sessions.new_session(mina.id)
    assert staffed.sessions.revoke_sessions(mina.id, keep=third) == 1
    assert (staffed.sessions.person_of_session(second), staffed.sessions.person_of_session(third)) == (None, mina)


@pytest.mark.parametrize("token", ["", "x", "\udc80", "' OR 1=1 --", "\x00" * 10_000])
def test_an_invented_token_opens_nothing(staffed: Store, token: str) -> None:
    staffed.sessions.new_session(staffed.people.get("mina").id)
    assert staffed.sessions.person_of_session(token) is None
    assert staffed.sessions.person_of_token(token) is None


def test_only_the_hash_of_a_token_is_stored(staffed: Store) -> None:
    mina = staffed.people.get("mina").id
    tokens = (staffed.sessions.new_session(mina), staffed.sessions.new_token(mina))
    stored = staffed.path.read_bytes() + staffed.path.with_name("nightschool.db-wal").read_bytes()
    assert not any(token.encode() in stored for token in tokens)
    with staffed.connections.read() as db:
        hashes = [value for (value,) in db.execute("SELECT token_hash FROM access")]
    assert all(staffed.sessions.person_of_session(value) is None for value in hashes)


def test_a_session_ends_after_idleness_and_after_its_lifetime(staffed: Store) -> None:
    sessions, start, minute = staffed.sessions, datetime.now(UTC), timedelta(minutes=1)
    mina = staffed.people.get("mina")
    idle, used = sessions.new_session(mina.id, start), sessions.new_session(mina.id, start)
    assert sessions.person_of_session(idle, start + SESSION_IDLE - minute) == mina
    idle = sessions.new_session(mina.id, start)
    assert sessions.person_of_session(idle, start + SESSION_IDLE) is None
    moment = start
    while moment + SESSION_IDLE / 2 < start + SESSION_LIFETIME:
        moment += SESSION_IDLE / 2
        assert sessions.person_of_session(used, moment) == mina
    assert sessions.person_of_session(used, start + SESSION_LIFETIME) is None
    sessions.new_session(mina.id, start + 2 * SESSION_LIFETIME)
    with staffed.connections.read() as db:
        assert db.execute("SELECT count(*) FROM access").fetchone()[0] == 1, "what has ended is removed at a login"


def test_a_role_and_a_shut_door_count_from_the_next_request_on(staffed: Store) -> None:
    staffed.accounts.set_role("mina", "operator")
    mina = staffed.people.get("mina").id
    session, token = staffed.sessions.new_session(mina), staffed.sessions.new_token(mina)
    before = staffed.sessions.person_of_session(session)
    assert before is not None and before.role == "operator"
    staffed.accounts.set_role("mina", "member")
    after = staffed.sessions.person_of_session(session)
    assert after is not None and after.role == "member"
    staffed.accounts.disable("mina")
    assert staffed.sessions.person_of_session(session) is None and staffed.sessions.person_of_token(token) is None
    assert staffed.accounts.check_password("mina", OTHER) is None
    with pytest.raises(BadInput, match="disabled"):
        staffed.sessions.new_session(mina)
    staffed.accounts.enable("mina")
    assert staffed.sessions.person_of_session(session) is None, "sessions end for good"
    assert staffed.sessions.person_of_token(token) == staffed.accounts.check_password("mina", OTHER)


def test_a_new_password_ends_every_session_and_the_old_password(staffed: Store) -> None:
    mina = staffed.people.get("mina")
    sessions = [staffed.sessions.new_session(mina.id) for _ in range(3)]
    kept = staffed.sessions.new_session(staffed.people.get("olga").id)
    staffed.accounts.set_password("mina", GOOD)
    assert [staffed.sessions.person_of_session(token) for token in sessions] == [None] * 3
    assert staffed.sessions.person_of_session(kept) is not None
    assert staffed.accounts.check_password("mina", OTHER) is None
    assert staffed.accounts.check_password("mina", GOOD) == mina


def test_the_only_operator_cannot_be_shut_out(staffed: Store) -> None:
    for act in (lambda: staffed.accounts.disable("olga"), lambda: staffed.accounts.set_role("olga", "member")):
        with pytest.raises(BadInput, match="only operator"):
            act()
    staffed.accounts.set_role("mina", "operator")
    staffed.accounts.disable("olga")
    with pytest.raises(BadInput, match="only operator"):
        staffed.accounts.disable("mina")


def test_people_who_never_log_in_are_no_accounts(staffed: Store) -> None:
    staffed.people.add("rater", kind="simulated")
    for act in (
        lambda: staffed.accounts.set_password("rater", GOOD),
        lambda: staffed.accounts.set_role("rater", "operator"),
        lambda: staffed.accounts.disable("rater"),
        lambda: staffed.accounts.disable("nobody"),
    ):
        with pytest.raises(BadInput):
            act()
    assert [account.person.name for account in staffed.accounts.list()] == ["olga", "mina"]


def test_an_api_token_works_until_revoked_and_is_no_session(staffed: Store) -> None:
    mina = staffed.people.get("mina")
    token = staffed.sessions.new_token(mina.id, "laptop")
    session = staffed.sessions.new_session(mina.id)
    assert staffed.sessions.person_of_token(token) == mina
    assert staffed.sessions.person_of_session(token) is None and staffed.sessions.person_of_token(session) is None
    (listed,) = staffed.sessions.tokens(mina.id)
    assert listed.label == "laptop" and listed.seen_at is not None
    staffed.sessions.revoke_session(token)
    assert staffed.sessions.person_of_token(token) == mina
    with pytest.raises(BadInput, match="no token"):
        staffed.sessions.revoke_token(staffed.people.get("olga").id, listed.id)
    staffed.sessions.revoke_token(mina.id, listed.id)
    assert staffed.sessions.person_of_token(token) is None
    with pytest.raises(BadInput, match="no token"):
        staffed.sessions.revoke_token(mina.id, listed.id)


def test_of_several_tokens_one_can_be_revoked_or_all_and_no_list_tells_them(staffed: Store) -> None:
    """Nobody could see which tokens there were, so one that leaked could only be revoked by guessing its label."""
    mina, olga = staffed.people.get("mina").id, staffed.people.get("olga").id
    laptop, phone, again = (staffed.sessions.new_token(mina, label) for label in ("laptop", "phone", "phone"))
    kept = staffed.sessions.new_token(olga)
    session = staffed.sessions.new_session(mina)
    listed = staffed.sessions.tokens(mina)
    assert [one.label for one in listed] == ["laptop", "phone", "phone"] and len({one.id for one in listed}) == 3
    assert [one.seen_at for one in listed] == [None] * 3, "none was used so far"
    assert not any(one.id in token for one in listed for token in (laptop, phone, again))
    assert staffed.sessions.person_of_token(phone) is not None
    assert [one.seen_at is None for one in staffed.sessions.tokens(mina)] == [True, False, True]
    staffed.sessions.revoke_token(mina, listed[1].id)
    opened = [staffed.sessions.person_of_token(token) is not None for token in (laptop, phone, again)]
    assert opened == [True, False, True]
    assert staffed.sessions.revoke_tokens(mina) == 2 and staffed.sessions.tokens(mina) == []
    assert staffed.sessions.person_of_token(kept) is not None
    assert staffed.sessions.person_of_session(session) is not None


def test_a_file_that_cannot_be_written_shuts_nobody_out(staffed: Store) -> None:
    token = staffed.sessions.new_session(staffed.people.get("mina").id)
    with staffed.connections.read() as db:
        db.execute("PRAGMA query_only=ON").fetchall()
    later = datetime.now(UTC) + timedelta(days=1)
    assert staffed.sessions.person_of_session(token, later) is not None
    with pytest.raises(StoreError):
        staffed.sessions.revoke_session(token)


def test_of_two_first_operators_at_once_one_becomes_the_owner(store: Store) -> None:
    def add(name: str) -> None:
        store.accounts.add(name, GOOD, "operator")

    threads = [threading.Thread(target=add, args=(name,)) for name in ("olga", "omar")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(person.kind for person in store.people.all()) == ["account", "owner"]
