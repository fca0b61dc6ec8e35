"""Take somebody out of the database file itself, and say what is left of them elsewhere.

A name may stand for two people: somebody here, and an annotator whom an imported file calls so. An erasure means both
unless it is told which.

Rows go in one transaction with everything that hangs on them. Then the file is written anew, because SQLite leaves
copies of moved rows in the gaps of its pages, and its log is emptied, which waits for everybody who is reading. Text
of theirs in other files of the home folder is blotted out in place; adapters that learned from them are tainted.

Backups are named, never altered: a copy that somebody may need whole is theirs to delete. Does not cover files that
were exported or copied elsewhere, what an adapter has learned, or the free space of the disk.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from feedback_store.accounts import check_not_last
from feedback_store.blotting import LARGEST_FILE_BYTES, SHORTEST_BYTES, Words, may_quote
from feedback_store.connection import Connections, connect, one_row, rows, translated
from feedback_store.errors import BadInput, StoreError
from feedback_store.opening import MAGIC
from feedback_store.people import find_person, person_from
from feedback_store.records import Person, PersonKind, utc_now
from feedback_store.store import Store
from feedback_store.taint import read_unrecorded, record_erasure

WAIT_S = 30.0
_PATIENCE_MS = 200
"""How long one attempt waits: nobody can write meanwhile."""


@dataclass(frozen=True)
class Erasure:
    """What was removed, and what is left."""

    name: str
    persons: tuple[Person, ...]
    """Who it was: everybody of that name, or of one kind."""
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


def erase_user(store: Store, name: str, kind: PersonKind | None = None, *, wait_s: float = WAIT_S) -> Erasure:
    """Erase everybody of a name: rows, comments, history, sessions and what was learned from them is tainted.

    The local owner is erased likewise, and a new owner with nothing takes the place.

    Args:
        name: of a person, or of an annotator as an imported file has it.
        kind: of whom to erase, where two have the name and only one of them is meant.
        wait_s: how long to wait for programs that are reading, in seconds.

    Raises:
        BadInput: there is nobody of that name and kind, or others would be left without an operator.
        StoreError: the file could not be written; nobody was erased.
    """
    with store.connections.write() as db:
        persons = _find(db, name, kind)
        for person in persons:
            _check_leaves_operator(db, person)
        identities = list(rows(db, f"SELECT id, name, kind, created_at FROM person WHERE id IN ({_ids(persons)})"))
        words = Words(_written(db, persons), _answered(db, persons))
        adapters = sorted({adapter for person in persons for adapter in record_erasure(db, person.id)})
        removed = _remove(db, persons)
        others = _named(db, name)
        live = one_row(db, "SELECT adapter_id FROM live")
        unrecorded = read_unrecorded(db)
    clean = purge(store.connections, wait_s=wait_s)
    files, unread = _blot_files(store.path.parent, store.path, words)
    backups = tuple(path for path in _copies(store.path) if any(_holds(path, identity) for identity in identities))
    live_tainted = live is not None and live["adapter_id"] in adapters
    same_name = [f"{described(other, name)} has that name too and was not erased." for other in others]
    remains = (*same_name, *unread, *_remains(store.path, clean, adapters, unrecorded, live_tainted, backups))
    return Erasure(name, tuple(persons), removed, tuple(adapters), live_tainted, tuple(files), backups, clean, remains)


def find_erasable(store: Store, name: str, kind: PersonKind | None = None) -> tuple[Person, ...]:
    """Return whom `erase_user` would erase, somebody of that very name first.

    Raises:
        BadInput: there is nobody of that name and kind, or others would be left without an operator.
    """
    with store.connections.read() as db:
        persons = _find(db, name, kind)
        for person in persons:
            _check_leaves_operator(db, person)
        return persons


def described(person: Person, name: str) -> str:
    """Return how to tell a person from others whom somebody calls the same."""
    return f"{person.name} ({person.kind}{'' if person.name == name else f', {name} in its file'})"


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


def _named(db: Database, name: str) -> tuple[Person, ...]:
    """Return who has a name here, then who has it in imported files, where it may be no name of ours."""
    sql = """SELECT * FROM person WHERE name = :name OR id IN (SELECT person_id FROM annotator WHERE name = :name)
        ORDER BY name <> :name"""
    return tuple(person_from(row) for row in rows(db, sql, {"name": name}))


def _find(db: Database, name: str, kind: PersonKind | None) -> tuple[Person, ...]:
    named = _named(db, name)
    found = tuple(person for person in named if kind in (None, person.kind))
    if named and not found:
        raise BadInput(f"Nobody named {name!r:.60} is of kind {kind}; there is {described(named[0], name)}.")
    return found or (find_person(db, name),)


def _check_leaves_operator(db: Database, person: Person) -> None:
    """Refuse to take the only operator from others; who is alone leaves nobody behind."""
    if one_row(db, "SELECT 1 FROM credential WHERE person_id <> ?", [person.id]):
        check_not_last(db, person)


def _ids(persons: tuple[Person, ...]) -> str:
    return ", ".join(str(person.id) for person in persons)


def _written(db: Database, persons: tuple[Person, ...]) -> set[str]:
    """Return what people wrote here."""
    sql = f"""
        SELECT text FROM message JOIN conversation ON conversation.id = conversation_id
            WHERE person_id IN ({_ids(persons)}) AND message.role = 'user' AND provenance = 'local'
        UNION SELECT comment FROM vote_event WHERE person_id IN ({_ids(persons)})
        UNION SELECT text FROM rewrite WHERE person_id IN ({_ids(persons)})"""
    return {row["text"] for row in rows(db, sql)}


def _answered(db: Database, persons: tuple[Person, ...]) -> set[str]:
    """Return what people were answered, what an AI wrote about it, and all of imported conversations, perhaps many."""
    about = f"""SELECT {{}} AS text FROM ai_rewrite JOIN message ON message.id = message_id
        JOIN conversation ON conversation.id = conversation_id WHERE person_id IN ({_ids(persons)})"""
    sql = f"""SELECT text FROM message JOIN conversation ON conversation.id = conversation_id
        WHERE person_id IN ({_ids(persons)}) AND (message.role = 'assistant' OR provenance = 'imported')
        UNION {about.format("ai_rewrite.text")} AND ai_rewrite.text IS NOT NULL
        UNION {about.format("critique")}"""
    return {row["text"] for row in rows(db, sql)}


def _remove(db: Database, persons: tuple[Person, ...]) -> dict[str, int]:
    before = _sizes(db)
    db.execute(f"DELETE FROM person WHERE id IN ({_ids(persons)})")
    db.execute("DELETE FROM system_prompt WHERE id NOT IN (SELECT system_id FROM origin)")
    after = _sizes(db)
    if any(person.kind == "owner" for person in persons):
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


def _blot_files(folder: Path, database: Path, words: Words) -> tuple[list[Path], list[str]]:
    """Blot texts out of the files of the home folder that may quote people, the database and its copies left out.

    Returns the files that did, and a sentence for each that could not be dealt with: the rows are gone by now, so
    one file must not keep the others from it.
    """
    found, left = [], []
    for path in sorted(folder.rglob("*")):
        try:
            if path.name.startswith(database.name) or not may_quote(path) or _is_database(path):
                continue
            if path.stat().st_size > LARGEST_FILE_BYTES:
                left.append(f"{path} is too large to be looked through; do it yourself.")
            elif words.blot_out(path):
                found.append(path)
        except OSError as error:
            left.append(f"{path} could not be looked through ({error.strerror}); do it yourself.")
    return found, left


def _copies(database: Path) -> Iterator[Path]:
    """Yield the copies of the database in its folder, whatever they are called."""
    own = {database.with_name(f"{database.name}{ending}") for ending in ("", "-wal", "-shm", "-journal")}
    for path in sorted(database.parent.rglob("*")):
        if path in own or path.suffix == ".lock" or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError):  # one that cannot be read is named by then, as what could not be looked at
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
    sentences.append(
        "Exports and backups kept elsewhere, and quotes shorter than"
        f" {SHORTEST_BYTES} bytes in other files, are not looked for; delete them yourself."
    )
    return tuple(sentences)
