"""A file is created whole, recognised, migrated with a copy kept, or refused untouched."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlite_utils import Database

from feedback_store import open_store
from feedback_store.connection import connect
from feedback_store.errors import NewerStore, NotOurFile, StoreBusy, StoreDamaged, StoreError
from feedback_store.integrity import verify
from feedback_store.opening import wal_is_safe
from feedback_store.schema import APPLICATION_ID, STEPS, VERSION, migrations
from tests.test_store_world import ask, fill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store would be."""
    return tmp_path / "home" / "nightschool.db"


def dump(path: Path) -> dict[str, list[object]]:
    """Return every table, index and row in the file, by name."""
    db = connect(path)
    try:
        schema = db.execute("SELECT name, type, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        tables = [name for name, kind, _ in schema if kind == "table"]
        return {
            **{name: sorted(map(repr, db.execute(f"SELECT * FROM {name}"))) for name in tables},
            "CREATE": sorted(sql for _, _, sql in schema),
        }
    finally:
        db.close()


def old_store(path: Path, steps: int) -> None:
    """Make a file as a program with fewer steps would have left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = Database(path, execute_plugins=False)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    migrations().apply(db, stop_before=STEPS[steps].__name__)
    db.execute(f"PRAGMA user_version={steps}")
    db.close()


def refused(path: Path, error: type[StoreError]) -> str:
    """Check that opening fails with one sentence and leaves the file as it was; return the sentence."""
    before = path.read_bytes()
    with pytest.raises(error) as raised:
        open_store(path)
    assert path.read_bytes() == before
    sentence = str(raised.value)
    assert sentence.endswith(".") and "\n" not in sentence and str(path) in sentence
    return sentence


def test_a_new_store_has_an_owner_and_is_readable_by_its_owner_only(path: Path) -> None:
    store = open_store(path)
    owner = store.people.owner()
    assert (owner.name, owner.role, owner.kind) == ("owner", "operator", "owner")
    assert path.stat().st_mode & 0o077 == 0
    store.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["nightschool.db", "nightschool.db.lock"]


def test_every_connection_gets_the_same_pragmas(path: Path) -> None:
    store = open_store(path)
    found: list[dict[str, object]] = []

    def look() -> None:
        names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "trusted_schema", "secure_delete")
        with store.connections.read() as db:
            found.append({name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in names})

    for look_in in (threading.Thread(target=look), threading.Thread(target=look)):
        look_in.start()
        look_in.join()
    look()
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 10_000,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "secure_delete": 1,
    }
    assert found == [expected] * 3
    store.close()


def test_every_table_is_strict(path: Path) -> None:
    store = open_store(path)
    with store.connections.read() as db:
        listed = db.execute("SELECT name, strict FROM pragma_table_list WHERE type = 'table'").fetchall()
    loose = {name for name, strict in listed if not strict and not name.startswith("sqlite_")}
    assert loose == {"_sqlite_migrations"}
    store.close()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_wal_is_used_only_where_sqlite_does_not_corrupt_it(version: tuple[int, ...], safe: bool) -> None:
    assert wal_is_safe(version) is safe


def test_opening_again_changes_nothing(path: Path) -> None:
    store = open_store(path)
    fill(store)
    store.close()
    before, bytes_before = dump(path), path.read_bytes()
    for _ in range(2):
        open_store(path).close()
    assert path.read_bytes() == bytes_before
    assert dump(path) == before


def test_an_older_store_is_migrated_and_a_copy_of_it_kept(path: Path) -> None:
    old_store(path, 3)
    db = connect(path)
    db.execute("INSERT INTO person(name, role, kind, created_at) VALUES ('ada', 'member', 'account', '')")
    db.close()
    before = dump(path)
    store = open_store(path)
    assert store.people.get("ada").kind == "account"
    assert store.votes.counts()["thumbs_up"] == 0
    store.close()
    assert dump(path.with_name(f"nightschool.db.before-v{VERSION}")) == before


def test_a_migration_keeps_each_conversation_its_page_and_its_messages(path: Path) -> None:
    """The step that let in a third page makes the column anew, in a table that messages and votes name."""
    old_store(path, 12)
    db = connect(path)
    for kind in ("chat", "compare"):
        db.execute(
            "INSERT INTO conversation(id, person_id, title, kind, created_at, updated_at) VALUES (?, 1, '', ?, '', '')",
            [kind, kind],
        )
        db.execute(
            "INSERT INTO message(id, conversation_id, role, text, state, created_at)"
            " VALUES (?, ?, 'user', 'hello', 'done', '')",
            [f"in {kind}", kind],
        )
    db.close()
    store = open_store(path)
    store.conversations.start(1, kind="rank")
    for kind in ("chat", "compare"):
        assert [kept.id for kept in store.conversations.list(1, kind=kind)] == [kind]
        assert [message.id for message in store.conversations.thread(kind, 1)] == [f"in {kind}"]
    assert len(store.conversations.list(1, kind="rank")) == 1
    store.close()


@pytest.mark.parametrize("steps", range(1, VERSION))
def test_a_migrated_store_has_the_tables_of_a_new_one(path: Path, tmp_path: Path, steps: int) -> None:
    old_store(path, steps)
    new = tmp_path / "new.db"
    schemas = []
    for place in (path, new):
        open_store(place).close()
        schemas.append(dump(place)["CREATE"])
    assert schemas[0] == schemas[1]


def test_another_programs_database_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    db = Database(path, execute_plugins=False)
    db.execute("CREATE TABLE bookmark(url TEXT)")
    db.close()
    assert "another program" in refused(path, NotOurFile)
    assert [file.name for file in path.parent.iterdir()] == ["nightschool.db"]


def test_another_programs_database_is_not_touched_even_with_a_log_beside_it(path: Path) -> None:
    path.parent.mkdir()
    theirs = Database(path, execute_plugins=False)
    theirs.enable_wal()
    theirs.execute("CREATE TABLE bookmark(url TEXT)")
    log = path.with_name("nightschool.db-wal")
    before = log.stat().st_size
    with pytest.raises(NotOurFile):
        open_store(path)
    assert log.stat().st_size == before > 0
    theirs.close()


def test_votes_still_in_the_log_of_a_killed_program_are_there_at_the_next_opening(path: Path) -> None:
    """The file and its log, copied while in use, are what a killed program leaves."""
    store = open_store(path)
    liked = fill(store)
    after = path.with_name("after")
    after.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        subprocess.run(["cp", path.with_name(name), after], check=True)
    store.close()
    again = open_store(after / path.name, create=False)
    assert again.votes.get(liked.id, 1) is not None
    assert verify(again) == []
    again.close()


def test_a_home_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%41 밤" / "nightschool.db"
    store = open_store(path)
    ask(store)
    store.close()
    assert path.is_file()


def test_a_newer_store_is_refused_untouched(path: Path) -> None:
    open_store(path).close()
    db = connect(path)
    db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    assert "newer" in refused(path, NewerStore)


def test_a_store_with_an_unknown_migration_is_refused_untouched(path: Path) -> None:
    open_store(path).close()
    db = connect(path)
    db.execute("INSERT INTO _sqlite_migrations(migration_set, name) VALUES ('feedback_store', 'from_the_future')")
    db.close()
    assert "newer" in refused(path, NewerStore)


def test_a_store_whose_header_contradicts_its_tables_is_refused(path: Path) -> None:
    open_store(path).close()
    db = connect(path)
    db.execute("PRAGMA user_version=1")
    db.close()
    refused(path, StoreDamaged)


def test_random_bytes_are_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(os.urandom(8192))
    assert "not a Nightschool database" in refused(path, NotOurFile)


@pytest.mark.parametrize("keep", [0, 1, 50, 100, 4096, 20_000, -4096, -1])
def test_a_truncated_store_is_refused_and_never_replaced_by_an_empty_one(path: Path, keep: int) -> None:
    store = open_store(path)
    fill(store)
    store.close()
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, StoreDamaged)


def test_a_store_with_overwritten_pages_is_refused(path: Path) -> None:
    store = open_store(path)
    fill(store)
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    path.write_bytes(content)
    refused(path, StoreDamaged)


def test_a_missing_file_beside_its_log_is_not_replaced_by_an_empty_one(path: Path) -> None:
    path.parent.mkdir()
    log = path.with_name("nightschool.db-wal")
    log.write_bytes(b"votes not yet in the file")
    with pytest.raises(StoreDamaged):
        open_store(path)
    assert not path.exists() and log.read_bytes() == b"votes not yet in the file"


def test_what_a_killed_creation_left_is_cleared_away(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("nightschool.db.creating").write_bytes(b"half")
    path.with_name("nightschool.db.creating-journal").write_bytes(b"half")
    open_store(path).close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["nightschool.db", "nightschool.db.lock"]


def test_an_absent_store_is_not_created_when_nobody_asked(path: Path) -> None:
    with pytest.raises(StoreError, match="no database"):
        open_store(path, create=False)
    assert not path.parent.exists()


def test_a_folder_or_a_path_through_a_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotOurFile):
        open_store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        open_store(tmp_path / "file" / "nightschool.db")


def test_a_file_removed_under_a_running_program_is_not_made_anew(path: Path) -> None:
    store = open_store(path)
    path.unlink()
    with pytest.raises(StoreError, match="cannot be opened"):
        store.people.owner()
    assert not path.exists()
    store.close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = open_store(path)
    store.people.owner()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.people.owner()
    with pytest.raises(StoreError, match="closed"):
        list(store.votes.pairs())


def test_a_write_lock_held_too_long_becomes_a_sentence(path: Path) -> None:
    store = open_store(path)
    other = connect(path)
    other.execute("BEGIN IMMEDIATE")
    with store.connections.read() as db:
        db.execute("PRAGMA busy_timeout=50").fetchall()
    with pytest.raises(StoreBusy, match="try again"):
        ask(store)
    other.execute("ROLLBACK")
    other.close()
    ask(store)
    store.close()


def test_importing_the_package_loads_no_database_and_no_torch() -> None:
    program = "import sys, feedback_store; sys.exit(bool({'torch', 'sqlite_utils', 'gradio'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0
    program = "import sys; from feedback_store import open_store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0
