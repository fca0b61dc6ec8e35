"""A full disk refuses what cannot be written, whole and in words; reading goes on, and everything does afterwards."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from sqlite_utils import Database

from feedback_store.connection import connect
from feedback_store.errors import DiskFull, StoreError
from feedback_store.integrity import verify
from feedback_store.store import Store, open_store
from tests.test_store_world import answer, ask, fill

COMMENT = "밤" * 2000
ROOM = 2**31


@contextmanager
def no_room(store: Store) -> Iterator[None]:
    """Let the database file grow no more, on every connection of the store: those still to come too."""
    with store.connections.read() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]

    def limited(path: Path, options: str = "mode=rw") -> Database:
        db = connect(path, options)
        db.execute(f"PRAGMA max_page_count={pages}").fetchall()
        return db

    with patch("feedback_store.connection.connect", limited):
        _limit(store, pages)
        yield
    _limit(store, ROOM)


def _limit(store: Store, pages: int) -> None:
    for slot in list(store.connections._slots):
        with slot.in_use:
            slot.db.execute(f"PRAGMA max_page_count={pages}").fetchall()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A filled store, found whole after each test."""
    opened = open_store(tmp_path / "nightschool.db")
    fill(opened)
    yield opened
    assert verify(opened) == []
    opened.close()


def everything(store: Store) -> list[str]:
    """Return every row of every table."""
    with store.connections.read() as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return [repr(row) for table in sorted(tables) for row in db.execute(f"SELECT * FROM {table}")]


def test_a_vote_is_refused_in_words_then_taken_when_there_is_room_again(store: Store) -> None:
    question = ask(store)
    replies = [answer(store, question, f"Answer {number}").id for number in range(40)]
    with no_room(store):
        taken = 0
        with pytest.raises(DiskFull) as refused:
            for reply in replies:
                before = everything(store)
                store.votes.rate(reply, 1, 1, ["correct"], COMMENT)
                taken += 1
        assert everything(store) == before and store.votes.get(replies[taken], 1) is None
        sentence = str(refused.value)
        assert "no room" in sentence and sentence.endswith(".") and "\n" not in sentence
        assert len(store.votes.for_messages(replies, 1)) == taken
        assert len(store.conversations.thread(question.conversation_id, 1)) == 2
        assert len(list(store.votes.pairs())) == 3 and verify(store) == []
    assert [store.votes.rate(reply, 1, 1, ["correct"], COMMENT).version for reply in replies] == [1] * 40


@pytest.mark.parametrize("kind", ["chat", "choose", "rank", "retract", "rewrite", "people"])
def test_every_kind_of_write_is_whole_or_absent(store: Store, kind: str) -> None:
    question = ask(store)
    conversation = store.conversations.get(question.conversation_id, 1)
    replies = [answer(store, question, f"Answer {number}").id for number in range(9)]
    shown = store.votes.show_comparison(1, question.id, *replies[:2])
    writes: dict[str, Callable[[int], object]] = {
        "chat": lambda turn: ask(store, COMMENT, within=conversation),
        "choose": lambda turn: store.votes.choose(shown.id, 1, ("left", "right")[turn % 2]),  # type: ignore[arg-type]
        "rank": lambda turn: store.votes.rank(question.id, 1, dict.fromkeys(replies, 1), bool(turn % 2)),
        "retract": lambda turn: (
            store.votes.rank(question.id, 1, dict.fromkeys(replies, 1)),
            store.votes.retract_ranking(question.id, 1),
        ),
        "rewrite": lambda turn: store.votes.rewrite(replies[turn % 9], 1, COMMENT * (1 + turn // 9 % 20)),
        "people": lambda turn: store.people.add(f"person-{turn}"),
    }
    with no_room(store), pytest.raises(DiskFull):
        for turn in range(2000):
            writes[kind](turn)
    assert verify(store) == []
    writes[kind](2001)


def test_threads_that_come_while_the_disk_is_full_are_refused_alike(store: Store) -> None:
    question = ask(store)
    said: list[str] = []

    def write() -> None:
        for _ in range(20):
            try:
                answer(store, question, COMMENT)
            except StoreError as error:
                said.append(type(error).__name__)

    with no_room(store):
        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(said) == {"DiskFull"}
    store.conversations.interrupt_unfinished()
    answer(store, question, COMMENT)
