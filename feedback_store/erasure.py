"""Take somebody out of the database file itself, and say what is left of them elsewhere.

Rows go in one transaction with everything that hangs on them. Then the file is written anew, because SQLite leaves
copies of moved rows in the gaps of its pages, and its log is emptied, which waits for everybody who is reading. Text
of theirs in other files of the home folder is blotted out in place; adapters that learned from them are tainted.

Backups are named, never altered: a copy that somebody may need whole is theirs to delete. Does not cover files that
were exported or copied elsewhere, what an adapter has learned, or the free space of the disk.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from feedback_store.connection import Connections, connect, one_row, rows, translated
from feedback_store.errors import StoreError
from feedback_store.opening import MAGIC
from feedback_store.people import find_person
from feedback_store.records import Person, utc_now
from feedback_store.store import Store
from feedback_store.taint import read_unrecorded, record_erasure

WAIT_S = 30.0
_PATIENCE_MS = 200
"""How long one attempt waits: nobody can write meanwhile."""
_SHORTEST_BYTES = 16
"""Shorter texts are in files by chance."""
_LARGEST_FILE_BYTES = 64 * 2**20
_NO_TEXT = frozenset({".safetensors", ".gguf", ".npz", ".pt", ".bin", ".png", ".lock"})
_BLOT = b"x"


@dataclass(frozen=True)
class Erasure:
    """What was removed, and what is left."""

    name: str
    rows: dict[str, int]
    """How many rows went, by table."""
    adapters: tuple[str, ...]
    """Adapters that learned from them, now tainted."""
    live_tainted: bool
    files: tuple[Path, ...]
    """Files beside the database in which their words were blotted out."""
    backups: tuple[Path, ...]
    """Copies of the database that still hold them."""
    clean: bool
    """Whether the database file itself is free of them already."""
    remains: tuple[str, ...]
    """One sentence for each thing that is left, with until when."""


def erase_user(store: Store, name: str, *, wait_s: float = WAIT_S) -> Erasure:
    """Erase a person of any kind: rows, comments, history, sessions and what was learned from them is tainted.

    The local owner is erased likewise, and a new owner with nothing takes the place.

    Args:
        name: of a person, or of an annotator as an imported file has it.
        wait_s: how long to wait for programs that are reading, in seconds.

    Raises:
        BadInput: there is nobody of that name.
        StoreError: the file could not be written; nobody was erased.
    """
    with store.connections.write() as db:
        person = _find(db, name)
        identity = one_row(db, "SELECT id, name, kind, created_at FROM person WHERE id = ?", [person.id])
        assert identity is not None
        words = _words(db, person.id)
        adapters = record_erasure(db, person.id)
        removed = _remove(db, person)
        live = one_row(db, "SELECT adapter_id FROM live")
        unrecorded = read_unrecorded(db)
    clean = purge(store.connections, wait_s=wait_s)
    folder = store.path.parent
    files = tuple(path for path in _text_files(folder, store.path) if _blot_out(path, words))
    backups = tuple(path for path in _copies(store.path) if _holds(path, identity))
    live_tainted = live is not None and live["adapter_id"] in adapters
    remains = _remains(store.path, clean, adapters, unrecorded, live_tainted, backups)
    return Erasure(name, removed, tuple(adapters), live_tainted, files, backups, clean, remains)


def find_erasable(store: Store, name: str) -> Person:
    """Return whom `erase_user` would erase.

    Raises:
        BadInput: there is nobody of that name.
    """
    with store.connections.read() as db:
        return _find(db, name)


def purge(connections: Connections, *, wait_s: float = WAIT_S) -> bool:
    """Write the file anew without the traces of deleted rows, and say whether its log could be emptied too.

    Needs as much room as the file has, for a moment.
    """
    deadline = time.monotonic() + wait_s
    rewritten = False
    while True:
        with contextlib.suppress(StoreError):  # busy, or no room for a copy: the rows are gone, the traces are not
            rewritten = rewritten or _rewrite(connections.path)
            if rewritten and _empty_log(connections.path):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _rewrite(path: Path) -> bool:
    with _opened(path) as db:
        db.execute(f"PRAGMA busy_timeout={_PATIENCE_MS}").fetchall()
        db.execute("VACUUM")
    return True


def _empty_log(path: Path) -> bool:
    with _opened(path) as db:
        db.execute(f"PRAGMA busy_timeout={_PATIENCE_MS}").fetchall()
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return not busy


@contextlib.contextmanager
def _opened(path: Path, options: str = "mode=rw") -> Iterator[Database]:
    db = connect(path, options)
    try:
        with translated(path):
            yield db
    finally:
        db.close()


def _find(db: Database, name: str) -> Person:
    """Find somebody by their own name first, then by an imported file's, which may be no name here."""
    sql = """SELECT person.name FROM annotator JOIN person ON person.id = person_id
        WHERE annotator.name = :name AND NOT EXISTS (SELECT 1 FROM person WHERE name = :name)"""
    row = one_row(db, sql, {"name": name})
    return find_person(db, row["name"] if row else name)


def _words(db: Database, person_id: int) -> set[str]:
    """Return every text that the person wrote or was answered with."""
    sql = """
        SELECT text FROM message JOIN conversation ON conversation.id = conversation_id WHERE person_id = :person
        UNION SELECT comment FROM vote_event WHERE person_id = :person
        UNION SELECT text FROM rewrite WHERE person_id = :person"""
    return {row["text"] for row in rows(db, sql, {"person": person_id})}


def _remove(db: Database, person: Person) -> dict[str, int]:
    before = _sizes(db)
    db.execute("DELETE FROM person WHERE id = ?", [person.id])
    db.execute("DELETE FROM system_prompt WHERE id NOT IN (SELECT system_id FROM origin)")
    after = _sizes(db)
    if person.kind == "owner":
        now = utc_now()
        db.execute(
            "INSERT INTO person(name, role, kind, created_at, teach, teach_at)"
            " VALUES ('owner', 'operator', 'owner', ?, 'on', ?)",
            [now, now],
        )
    return {table: before[table] - after[table] for table in before if before[table] > after[table]}


def _sizes(db: Database) -> dict[str, int]:
    tables = [row["name"] for row in rows(db, "SELECT name FROM sqlite_schema WHERE type = 'table'")]
    kept = [table for table in tables if not table.startswith(("sqlite_", "_sqlite"))]
    return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in sorted(kept)}


def _text_files(folder: Path, database: Path) -> Iterator[Path]:
    """Yield the files of the home folder that may quote people, the database and its copies left out."""
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(database.name) or path.suffix in _NO_TEXT or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size <= _LARGEST_FILE_BYTES and not _is_database(path):
            yield path


def _blot_out(path: Path, words: set[str]) -> bool:
    """Overwrite texts in a file, also where they are cut off; in place, so that who is writing to it goes on."""
    forms = {form for text in words for form in _forms(text) if len(form) >= _SHORTEST_BYTES}
    by_start: dict[bytes, list[bytes]] = {}
    for form in forms:
        by_start.setdefault(form[:_SHORTEST_BYTES], []).append(form)
    with path.open("rb") as file:
        data = file.read()
    found = []
    at = 0
    while at <= len(data) - _SHORTEST_BYTES:
        texts = by_start.get(data[at : at + _SHORTEST_BYTES])
        length = max(_common(data, at, text) for text in texts) if texts else 0
        if length:
            found.append((at, length))
        at += length or 1
    if found:
        with path.open("r+b") as file:
            for at, length in found:
                file.seek(at)
                file.write(_BLOT * length)
    return bool(found)


def _forms(text: str) -> set[bytes]:
    """Return how a text may stand in a file: as it is, or as part of JSON."""
    whole = text.encode()
    return {whole, json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()}


def _common(data: bytes, at: int, text: bytes) -> int:
    length = min(len(text), len(data) - at)
    while data[at : at + length] != text[:length]:
        length -= 1
    return length


def _copies(database: Path) -> Iterator[Path]:
    """Yield the copies of the database in its folder, whatever they are called."""
    own = {database.with_name(f"{database.name}{ending}") for ending in ("", "-wal", "-shm", "-journal")}
    for path in sorted(database.parent.rglob("*")):
        if path in own or path.suffix == ".lock" or path.is_symlink() or not path.is_file():
            continue
        if path.name.startswith(f"{database.name}.") or _is_database(path):
            yield path


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _holds(path: Path, identity: dict[str, object]) -> bool:
    """Say whether a copy of the database knows the person; one that cannot be read may."""
    sql = """SELECT 1 FROM person WHERE (id = :id AND created_at = :created_at)
        OR (name = :name AND kind = :kind AND kind <> 'owner')"""
    try:
        with _opened(path, "mode=ro&immutable=1") as db:
            if one_row(db, "SELECT 1 FROM sqlite_schema WHERE name = 'person'") is None:
                return False
            return one_row(db, sql, identity) is not None
    except StoreError:
        return True


def _remains(
    path: Path,
    clean: bool,
    adapters: list[str],
    unrecorded: list[str],
    live_tainted: bool,
    backups: tuple[Path, ...],
) -> tuple[str, ...]:
    sentences = []
    if not clean:
        sentences.append(
            f"Traces stay in {path}, which is in use or lacks room to be rewritten: run `erase-user --finish` again."
        )
    for backup in backups:
        sentences.append(f"The backup {backup} still holds this person until that file is deleted.")
    if adapters:
        sentences.append(f"What {', '.join(adapters)} learned stays in those adapters, which are not promoted again.")
    if live_tainted:
        sentences.append("One of them is live until a night replaces it or, after three nights, the base does.")
    if unrecorded:
        sentences.append(
            f"Nobody recorded what {', '.join(unrecorded)} learned from; retire them unless you know it otherwise."
        )
    sentences.append("Files that were exported, and backups kept elsewhere, are not looked at; delete them yourself.")
    return tuple(sentences)
