"""The store notices what only damage or a bug can cause, and copies of it are whole."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from feedback_store.connection import connect
from feedback_store.errors import BadInput, StoreDamaged, StoreError
from feedback_store.integrity import backup, verify
from feedback_store.store import Store, open_store
from tests.new_store import open_in
from tests.test_store_world import ask, fill

VOTE = "message_id, person_id, value, reasons, comment, version, updated_at"
DAMAGE = {
    "A row of message names a row of conversation": "DELETE FROM conversation",
    "A row of origin names a row of system_prompt": "DELETE FROM system_prompt",
    "There is no local owner": "UPDATE person SET kind = 'account'",
    "A reply does not answer a person's message": (
        "UPDATE message SET parent_id = (SELECT id FROM message WHERE text = '4') WHERE text = '5'"
    ),
    "A reply lacks what produced it": "DELETE FROM origin",
    "not a finished reply": "UPDATE message SET state = 'streaming' WHERE text = '4'",
    "in somebody else's conversation": "UPDATE conversation SET person_id = 2",
    "A vote differs from the end of its history": "UPDATE vote SET value = 1, version = 2",
    "A vote is gone": "DELETE FROM vote",
    "A comparison does not show two replies": "UPDATE comparison SET prompt_message_id = left_message_id",
    "A comparison's choice differs": "DELETE FROM comparison_event",
    "The live pointer is missing or differs": "UPDATE live SET generation = 7",
    "The live pointer is missing": "DELETE FROM live",
    "The live adapter is not one": "UPDATE adapter SET state = 'refused'",
    "A system prompt's text is not the one": "UPDATE system_prompt SET text = 'Obey.'",
    "The table or index vote_person": "DROP INDEX vote_person",
    "The table or index extra": "CREATE TABLE extra(a TEXT)",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store with one of everything and a second person."""
    opened = open_in(tmp_path / "nightschool.db")
    fill(opened)
    opened.people.add("second")
    yield opened
    opened.close()


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damage_is_found_and_named(store: Store, sentence: str) -> None:
    assert verify(store) == []
    db = connect(store.path)
    db.execute("PRAGMA foreign_keys=OFF").fetchall()
    db.execute(DAMAGE[sentence])
    db.close()
    problems = verify(store)
    assert any(sentence in problem for problem in problems), problems


def test_a_damaged_index_is_found(store: Store) -> None:
    db = connect(store.path)
    db.execute("PRAGMA writable_schema=ON").fetchall()
    db.execute(
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'vote_person')"
        " WHERE name = 'rewrite_person'"
    )
    db.execute("PRAGMA schema_version=1000").fetchall()
    db.close()
    assert verify(store)[0].startswith("The file is damaged")


def test_a_backup_made_while_others_write_is_a_whole_store(store: Store, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            ask(store)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        backup(store, tmp_path / "copy.db")
    finally:
        stop.set()
        writer.join()
    assert not list(tmp_path.glob("copy.db?*"))
    copy = open_store(tmp_path / "copy.db", create=False)
    assert verify(copy) == []
    assert list(copy.votes.pairs()) == list(store.votes.pairs())
    copy.close()


def test_a_backup_never_replaces_a_file(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("precious")
    with pytest.raises(BadInput, match="exists already"):
        backup(store, target)
    assert target.read_text() == "precious"
    with pytest.raises(StoreError, match="cannot be written"):
        backup(store, tmp_path / "nowhere" / "copy.db")


def test_a_backup_of_a_damaged_store_is_refused_and_removed(store: Store, tmp_path: Path) -> None:
    with store.connections.write() as db:
        db.execute("UPDATE live SET generation = 7")
    with pytest.raises(StoreDamaged, match="live pointer"):
        backup(store, tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy.db*"))


@pytest.mark.parametrize(
    "nonsense",
    [
        f"INSERT INTO vote({VOTE}) VALUES ((SELECT id FROM message LIMIT 1), 1, 2, '[]', '', 1, '')",
        f"INSERT INTO vote({VOTE}) VALUES ('nobody', 1, 1, '[]', '', 1, '')",
        "UPDATE vote SET reasons = 'no json'",
        "UPDATE vote SET value = 'up'",
        "UPDATE message SET state = 'streaming' WHERE role = 'user'",
        "UPDATE message SET parent_id = NULL WHERE role = 'assistant'",
        "UPDATE message SET conversation_id = 'elsewhere' WHERE role = 'assistant'",
        "UPDATE comparison SET choice = NULL",
        "UPDATE comparison SET right_message_id = left_message_id",
        "UPDATE live SET adapter_id = 'nobody'",
        "INSERT INTO live(slot, generation) VALUES ('other', 0)",
        "DELETE FROM adapter",
        "INSERT INTO person(name, role, kind, created_at) VALUES ('second-owner', 'operator', 'owner', '')",
    ],
)
def test_the_tables_themselves_refuse_nonsense(store: Store, nonsense: str) -> None:
    with pytest.raises(sqlite3.IntegrityError), store.connections.write() as db:
        db.execute(nonsense)
    assert verify(store) == []
