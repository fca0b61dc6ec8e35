"""From a path to a database that may be used: create, recognise, refuse, migrate.

A file that is not ours, newer than this program or damaged is left exactly as it is. A new database is built beside
its place and renamed into it, so that an empty or half-made file under the final name is always a sign of damage.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from sqlite_utils import Database

from feedback_store.connection import RESTORE, SQLITE_VERSION, connect, rows, transaction, translated
from feedback_store.errors import NewerStore, NotOurFile, StoreBusy, StoreDamaged, StoreError
from feedback_store.items import name_older_choices
from feedback_store.schema import APPLICATION_ID, STEPS, VERSION, migrations
from feedback_store.sealing import find_altered, reseal

_HEADER_BYTES = 100
MAGIC = b"SQLite format 3\0"
"""How every database file begins."""
_LOCK_TIMEOUT_S = 60


def prepare(path: Path, *, create: bool, check: bool = True) -> None:
    """Leave a checked database of this program's version at `path`.

    Args:
        check: look through all pages, which takes half a second for 100,000 votes; always before a migration.

    Raises:
        NotOurFile, NewerStore, StoreDamaged: the file must not be written to; it is untouched.
        StoreError: there is none and `create` is False, or the folder cannot be used.
    """
    try:
        present = path.exists()
        if present:
            check_header(path)
        else:
            _check_absence(path, create=create)
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.exists():
                _create(path)
            _bring_up_to_date(path, check)
    except OSError as error:
        raise StoreError(f"{path} cannot be used ({error.strerror}); check the folder and who may write it.") from error


def check_header(path: Path) -> None:
    """Refuse a file by its header alone, before anything may write to it.

    SQLite reads it, as an unchanging file and without locks: closing a descriptor that SQLite does not know of would
    drop this process's locks on the file, and another process could then delete the log that is in use.
    Source: https://www.sqlite.org/howtocorrupt.html section 2.2
    """
    if not path.is_file():
        raise NotOurFile(f"{path} is not a file; name another folder with --home.")
    cut_off = StoreDamaged(f"{path} is cut off; {RESTORE}.")
    if path.stat().st_size < _HEADER_BYTES:  # so short that SQLite cannot have it open
        if MAGIC.startswith(path.read_bytes()[: len(MAGIC)]):
            raise cut_off
        raise NotOurFile(f"{path} is not a database; name another folder with --home, or {RESTORE}.")
    # with one of these beside it, the file may rightly lack pages; SQLite decides when it opens the file for writing
    complete = not any(path.with_name(f"{path.name}{ending}").exists() for ending in ("-wal", "-journal"))
    try:
        application_id, version, stated_bytes = _read_header(path)
    except StoreDamaged:
        if complete:
            raise
        return
    if application_id != APPLICATION_ID:
        raise NotOurFile(f"{path} belongs to another program; name another folder with --home, or {RESTORE}.")
    if complete and path.stat().st_size < stated_bytes:  # a last page cut off would read as if it ended in zeros
        raise cut_off
    if version > VERSION:
        raise _newer(path)


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Say whether this SQLite is free of the WAL-reset bug, which corrupts files with two writers.

    Source: https://www.sqlite.org/wal.html#walresetbug
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def copy_database(db: Database, target: Path, check: Callable[[Database], None]) -> None:
    """Copy a database, as it is at this moment, into a file of its own at `target`, replacing what is there.

    The copy is complete under its final name or absent, and needs no companion files.

    Args:
        check: looks at the copy before it gets its name, and raises if it is not whole.
    """
    partial = target.with_name(f"{target.name}.partial")
    _new_file(partial)
    copy = connect(partial)
    try:
        with translated(partial):
            db.conn.backup(copy.conn)
            copy.execute("PRAGMA journal_mode=DELETE").fetchall()
            check(copy)
    except BaseException:
        partial.unlink()
        raise
    finally:
        copy.close()
    _put_in_place(partial, target)


def _read_header(path: Path) -> tuple[int, int, int]:
    """Return the application id, the schema version and the size in bytes that the header states."""
    db = connect(path, options="mode=ro&immutable=1")
    try:
        with translated(path):
            names = ("application_id", "user_version", "page_size", "page_count")
            application_id, version, page_bytes, pages = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    finally:
        db.close()
    return application_id, version, page_bytes * pages


def _newer(path: Path) -> NewerStore:
    return NewerStore(
        f"{path} was written by a newer Nightschool; update this one, name another folder with --home, or {RESTORE}."
    )


def _check_absence(path: Path, *, create: bool) -> None:
    if not create:
        raise StoreError(f"There is no database at {path}; start the app once, or name another folder with --home.")
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        raise StoreDamaged(f"{path} is missing while {log.name} is there; put the file back, or {RESTORE}.")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time create or migrate: sqlite-utils reads what is pending outside its transaction."""
    try:
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise StoreBusy(f"{path} is being migrated by another process; try again in a minute.") from None


def _create(path: Path) -> None:
    building = path.with_name(f"{path.name}.creating")
    _new_file(building)
    db = connect(building)
    try:
        with translated(building), transaction(db):
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            migrate(db)
    finally:
        db.close()
    _put_in_place(building, path)


def _bring_up_to_date(path: Path, check: bool) -> None:
    db = connect(path)
    try:
        with translated(path):
            if check:
                check_pages(db)
            behind = _check_inside(db, path)
            if behind:
                check_pages(db)
                copy_database(db, path.with_name(f"{path.name}.before-v{VERSION}"), check=check_pages)
                with transaction(db):
                    migrate(db)
            _set_journal(db, path)
    finally:
        db.close()


def _check_inside(db: Database, path: Path) -> bool:
    """Return whether steps are pending; refuse a newer or damaged file that the header did not give away."""
    steps = migrations()
    applied = {step.name for step in steps.applied(db)}
    pending = [step.name for step in steps.pending(db)]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION or len(applied) + len(pending) > VERSION:
        raise _newer(path)
    if version != len(applied):
        raise StoreDamaged(f"{path} holds another schema than its header says; {RESTORE}.")
    expected, found = expected_schema(len(applied)), read_schema(db)
    if any(found.get(name) != sql for name, sql in expected.items()):  # what somebody added is verify's business
        raise StoreDamaged(f"{path} holds tables that this program did not make; {RESTORE}.")
    return bool(pending)


def check_pages(db: Database) -> None:
    """Refuse a file with broken pages, broken rules of its tables, or rows that name others which are not there.

    Raises:
        StoreDamaged: what is read from it, and what is written to it, could not be trusted.
    """
    pages = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if pages != "ok" or db.execute("PRAGMA foreign_key_check").fetchone():
        path = db.execute("PRAGMA database_list").fetchone()[2]
        raise StoreDamaged(f"{path} is damaged; {RESTORE}.")


@functools.cache  # a pure function; every opening and every check asks for it, and making the tables takes 10 ms
def expected_schema(version: int) -> Mapping[str, str | None]:
    """Return the SQL of every table and index after so many steps, by name."""
    fresh = Database(memory=True, execute_plugins=False)
    try:
        later = next((step.__name__ for step in STEPS[version:]), None)
        migrations().apply(fresh, stop_before=later)
        return read_schema(fresh)
    finally:
        fresh.close()


def read_schema(db: Database) -> dict[str, str | None]:
    """Return the SQL of every table and index in the file, by name."""
    sql = "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite%' AND tbl_name <> '_sqlite_migrations'"
    return {row["name"]: row["sql"] for row in rows(db, sql)}


def migrate(db: Database) -> None:
    """Apply the pending steps inside the transaction that is open; rows that did not fit their hash stay so."""
    altered = set(find_altered(db))
    migrations().apply(db)
    name_older_choices(db)
    reseal(db, altered)
    db.execute(f"PRAGMA user_version={VERSION}")


def _set_journal(db: Database, path: Path) -> None:
    wanted = "wal" if wal_is_safe(SQLITE_VERSION) else "delete"
    mode = db.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]
    if mode != wanted and wanted == "delete":
        raise StoreError(f"{path} cannot leave WAL mode, which this SQLite corrupts; install pysqlite3 0.6.1 or later.")


def _new_file(path: Path) -> None:
    """Make an empty file that only its owner may read; what a killed attempt left is removed first."""
    for leftover in (path, path.with_name(f"{path.name}-journal"), path.with_name(f"{path.name}-wal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _put_in_place(finished: Path, path: Path) -> None:
    """Rename so that after a power cut either nothing or the whole file has the final name."""
    os.replace(finished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
