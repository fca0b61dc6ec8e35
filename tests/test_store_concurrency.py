"""Many threads and processes write at once; a process killed in the middle leaves whole rows only."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from feedback_store.connection import connect
from feedback_store.integrity import verify
from feedback_store.store import open_store
from tests.test_store_world import answer, ask, fill

THREADS = 4
VOTES_EACH = 20
WRITER = """
import json, pathlib, sys, threading
sys.path.insert(0, sys.argv[2])
from tests.test_store_world import answer, ask
from feedback_store import open_store

store = open_store(pathlib.Path(sys.argv[1]))
sent = {}

def work(number):
    question = ask(store, f"Question {number}")
    for turn in range(int(sys.argv[4])):
        reply = answer(store, question, f"Answer {number}-{turn}")
        store.votes.rate(reply.id, 1, -1)
        sent[reply.id] = store.votes.rate(reply.id, 1, 1 if turn % 3 else 0, request_id=f"{reply.id}").value

threads = [threading.Thread(target=work, args=[number]) for number in range(int(sys.argv[3]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
store.close()
sys.stdout.write(json.dumps(sent))
"""
VICTIM = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from tests.test_store_world import answer, ask
from feedback_store import open_store

store = open_store(pathlib.Path(sys.argv[1]))
question = ask(store, "Committed")
with store.connections.write() as db:
    reply = answer(store, question, "Half " * 20_000)
    store.votes.rate(reply.id, 1, 1)
    db.execute("PRAGMA cache_spill=ON").fetchall()
    sys.stdout.write("in the middle\\n")
    sys.stdout.flush()
    time.sleep(60)
"""
HERE = str(Path(__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(HERE).parent)}


@pytest.mark.long
def test_what_two_processes_of_four_threads_send_is_what_is_stored(tmp_path: Path) -> None:
    """Both begin before there is a file, so they also race to create it."""
    path = tmp_path / "home" / "nightschool.db"
    command = [sys.executable, "-c", WRITER, str(path), HERE, str(THREADS), str(VOTES_EACH)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)]
    sent: dict[str, int] = {}
    for writer in writers:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        sent |= json.loads(output)
    assert len(sent) == 2 * THREADS * VOTES_EACH
    store = open_store(path)
    stored = store.votes.for_messages(list(sent), 1)
    assert {message_id: vote.value for message_id, vote in stored.items()} == sent
    assert {vote.version for vote in stored.values()} == {2}
    assert store.votes.counts()["replies"] == len(sent)
    assert len(store.people.all()) == 1
    assert verify(store) == []
    store.close()


def test_a_writer_killed_in_mid_transaction_leaves_whole_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "nightschool.db"
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(path), HERE], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "in the middle\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    store = open_store(path)
    counts = store.votes.counts()
    assert (counts["conversations"], counts["replies"], counts["thumbs_up"]) == (1, 0, 0)
    assert [conversation.title for conversation in store.conversations.list(1)] == ["Committed"]
    assert verify(store) == []
    fill(store)
    store.close()


@pytest.mark.parametrize("kind", ["rate", "rate with a request id", "retract", "choose", "rank", "rewrite"])
def test_a_hundred_identical_requests_at_once_are_one_row_and_one_step_of_its_history(
    tmp_path: Path, kind: str
) -> None:
    store = open_store(tmp_path / "nightschool.db")
    question = ask(store)
    replies = [answer(store, question, text).id for text in ("4", "5", "6")]
    shown = store.votes.show_comparison(1, question.id, *replies[:2])
    ranks = dict(zip(replies, (1, 2, 2), strict=True))
    if kind == "retract":
        store.votes.rank(question.id, 1, ranks)
    send: dict[str, Callable[[], object]] = {
        "rate": lambda: store.votes.rate(replies[0], 1, 1, ["correct"], "Short."),
        "rate with a request id": lambda: store.votes.rate(replies[0], 1, 1, request_id="press-1"),
        "retract": lambda: store.votes.retract_ranking(question.id, 1),
        "choose": lambda: store.votes.choose(shown.id, 1, "left"),
        "rank": lambda: store.votes.rank(question.id, 1, ranks),
        "rewrite": lambda: store.votes.rewrite(replies[0], 1, "Four."),
    }
    gate, answers = threading.Barrier(20), []

    def press() -> None:
        gate.wait()
        answers.extend([send[kind]() for _ in range(5)])

    threads = [threading.Thread(target=press) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 100 and all(found == answers[0] for found in answers)
    table = {"rate": "vote", "choose": "comparison", "rank": "ranking", "retract": "ranking"}.get(kind.split()[0])
    with store.connections.read() as db:
        if table is None:
            assert db.execute("SELECT count(*) FROM rewrite").fetchone()[0] == 1
        else:
            rows, steps = f"(SELECT count(*) FROM {table})", f"(SELECT count(*) FROM {table}_event)"
            assert db.execute(f"SELECT {rows}, {steps}").fetchone() == (1, 2 if kind == "retract" else 1)
    assert verify(store) == []
    store.close()


def test_a_failed_block_leaves_no_trace_and_a_nested_one_undoes_only_itself(tmp_path: Path) -> None:
    store = open_store(tmp_path / "nightschool.db")
    with pytest.raises(ZeroDivisionError), store.connections.write():
        ask(store, "Undone")
        raise ZeroDivisionError
    with store.connections.write():
        ask(store, "Kept")
        with pytest.raises(ZeroDivisionError), store.connections.write() as db:
            db.table("conversation").insert({"id": "x"}, ignore=True)
            ask(store, "Undone")
            raise ZeroDivisionError
    assert [conversation.title for conversation in store.conversations.list(1)] == ["Kept"]
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = open_store(tmp_path / "nightschool.db")
    other = connect(store.path)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM person")
    began = time.monotonic()
    assert store.people.owner().name == "owner"
    assert time.monotonic() - began < 1
    other.close()
    store.close()


def test_opening_a_second_time_in_one_process_keeps_the_first_ones_locks(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops the process's locks on it, unless SQLite itself opened it.

    Looking at the header with open() did that; another program could then take itself for the last user and delete
    the log in use. Source: https://www.sqlite.org/howtocorrupt.html section 2.2
    """
    locks = Path("/proc/locks")
    if not locks.exists():
        pytest.skip("this system does not list its locks")
    store = open_store(tmp_path / "nightschool.db")
    ask(store)
    mine = f":{store.path.stat().st_ino} "
    before = [line for line in locks.read_text().splitlines() if mine in line]
    open_store(store.path).close()
    after = [line for line in locks.read_text().splitlines() if mine in line]
    assert len(before) == len(after) == 1
    store.close()


def test_a_thread_that_ends_leaves_no_connection_behind(tmp_path: Path) -> None:
    store = open_store(tmp_path / "nightschool.db")
    store.people.owner()

    def open_files() -> int:
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        return names.count(str(store.path))

    before = open_files()
    for _ in range(5):
        visitor = threading.Thread(target=store.people.owner)
        visitor.start()
        visitor.join()
    gc.collect()
    # SQLite keeps a closed connection's descriptor until the process holds no lock on the file
    assert open_files() <= before + 1
    store.close()
    assert open_files() == 0


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
