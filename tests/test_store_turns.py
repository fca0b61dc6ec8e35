"""Writers take turns: who has waited longest is next, nobody waits for ever, and no vote is lost to a busy file."""

import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from bench.store import Offered, offer_votes
from feedback_store.integrity import verify
from feedback_store.store import Store
from feedback_store.turns import FairLock
from tests.new_store import open_in
from tests.test_store_world import ask


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An open store whose connection in this thread waits 50 ms for its turn."""
    opened = open_in(tmp_path / "nightschool.db")
    with opened.connections.read() as db:
        db.execute("PRAGMA busy_timeout=50").fetchall()
    return opened


def wait_until(condition: object) -> None:
    """Wait for something that other threads do."""
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_lock_goes_to_who_has_waited_longest() -> None:
    lock, order = FairLock(), []
    assert lock.acquire(0)

    def work(number: int) -> None:
        assert lock.acquire(10)
        order.append(number)
        lock.release()

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=work, args=[number]))
        threads[-1].start()
        wait_until(lambda number=number: len(lock._waiting) == number + 1)
    lock.release()
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    assert lock.acquire(0)


def test_who_gives_up_waiting_holds_nobody_up() -> None:
    lock = FairLock()
    assert lock.acquire(0)
    assert not lock.acquire(0.01)
    lock.release()
    assert lock.acquire(0)
    lock.release()


def test_the_lock_is_never_held_twice() -> None:
    lock, inside, together = FairLock(), [], []

    def work() -> None:
        for turn in range(200):
            if lock.acquire(0.0005 if turn % 3 else 10):
                inside.append(1)
                together.append(len(inside))
                inside.pop()
                lock.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == {1}
    assert lock.acquire(0)


def test_a_program_that_keeps_its_turn_holds_others_up_no_longer_than_they_would_wait(store: Store) -> None:
    """SQLite's own lock is what keeps two writers apart; the queue only says who is next."""
    with FileLock(store.path.with_name(f"{store.path.name}.turn.lock")):
        waiting = threading.Thread(target=ask, args=[store])  # with ten seconds of patience
        waiting.start()
        time.sleep(0.1)
        began = time.monotonic()
        store.people.add("ada")  # with fifty milliseconds, behind the other thread
        assert 0.05 <= time.monotonic() - began < 5 and waiting.is_alive()
    waiting.join()
    assert len(store.conversations.list(1)) == 1 and verify(store) == []
    store.close()


def test_where_no_file_can_be_locked_people_vote_all_the_same(store: Store) -> None:
    store.path.with_name(f"{store.path.name}.turn.lock").mkdir()
    ask(store)
    assert len(store.conversations.list(1)) == 1
    store.close()


def test_a_connection_keeps_its_patience_after_waiting(store: Store) -> None:
    ask(store)
    with store.connections.read() as db:
        assert db.execute("PRAGMA busy_timeout").fetchone()[0] == 50
    store.close()


def check(path: Path, offered: Offered, votes: int) -> None:
    """Check that no vote was lost or refused, and that pairs were read meanwhile."""
    assert (offered.sent, offered.stored, offered.refused) == (votes, votes, ())
    assert offered.times_read > 0
    store = open_in(path)
    with store.connections.read() as db:
        assert db.execute("SELECT count(*), max(version) FROM vote").fetchone() == (votes, 1)
        assert db.execute("SELECT count(*) FROM vote_event").fetchone()[0] == votes
    assert verify(store) == []
    store.close()


@pytest.mark.long
def test_what_eight_writers_in_two_processes_offer_is_stored_while_a_night_reads(tmp_path: Path) -> None:
    path = tmp_path / "nightschool.db"
    check(path, offer_votes(path, seconds=4), votes=400)


@pytest.mark.slow
def test_for_half_a_minute_nobody_waits_long_for_a_vote(tmp_path: Path) -> None:
    path = tmp_path / "nightschool.db"
    offered = offer_votes(path, seconds=30)
    check(path, offered, votes=3000)
    assert offered.p99_ms < 50 and offered.max_ms < 1000, offered
