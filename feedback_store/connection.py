"""One open database: a connection for each thread, and the one way to write.

Knows nothing of tables. Every connection gets the same pragmas; a write takes the write lock at its beginning, so that
two processes wait for each other instead of failing in the middle. Does not cover: use after a fork without exec.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # pysqlite3 where it is installed

from feedback_store.errors import BadInput, DiskFull, NotOurFile, StoreBusy, StoreDamaged, StoreError
from feedback_store.sealing import add_hash_function, seal_writes
from feedback_store.turns import Turns

BUSY_TIMEOUT_MS = 10_000
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26
RESTORE = "restore a backup with `python -m feedback_store restore FILE`"
_DAMAGED_WORDS = ("Could not decode to UTF-8", "unsupported file format")
"""What has no code of its own: the binding's words, and SQLite's of a header that it cannot read."""
Row = dict[str, Any]
SQLITE_VERSION: tuple[int, ...] = sqlite3.sqlite_version_info


def connect(path: Path, options: str = "mode=rw") -> Database:
    """Open an existing database file with our pragmas.

    Args:
        options: of SQLite's file names, https://www.sqlite.org/uri.html

    Raises:
        StoreError: it cannot be opened; an absent file is never created here, so that a file removed under a running
            program is noticed.
    """
    with translated(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{options}",
            uri=True,
            timeout=BUSY_TIMEOUT_MS / 1000,
            isolation_level=None,
            check_same_thread=False,  # so that close() can end the connections of threads that are idle
        )
    try:
        with translated(path):
            db = Database(connection, execute_plugins=False)
            for pragma in (
                f"busy_timeout={BUSY_TIMEOUT_MS}",
                "foreign_keys=ON",
                "trusted_schema=OFF",
                "secure_delete=ON",
                "synchronous=FULL",
                "temp_store=MEMORY",
            ):
                db.execute(f"PRAGMA {pragma}").fetchall()
            add_hash_function(db)
    except BaseException:
        connection.close()
        raise
    return db


def rows(db: Database, sql: str, params: Sequence[Any] | Row = ()) -> Iterator[Row]:
    """Run a query and yield its rows by column name, one at a time."""
    cursor = db.execute(sql, params)
    names = [column[0] for column in cursor.description]
    for values in cursor:
        yield dict(zip(names, values, strict=True))


def one_row(db: Database, sql: str, params: Sequence[Any] | Row = ()) -> Row | None:
    """Run a query and return its first row, or None."""
    found = list(rows(db, sql, params))
    return found[0] if found else None


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite says about the machine into our errors; what it says about our own SQL passes unchanged."""
    try:
        yield
    except UnicodeEncodeError:
        raise BadInput("An id holds a character that cannot be stored; send the id as it was given.") from None
    except UnicodeDecodeError as error:  # SQLite quotes damaged text in what it says of it
        raise _damaged(path) from error
    except sqlite3.Error as error:
        if str(error).startswith(_DAMAGED_WORDS):
            raise _damaged(path) from error
        known = _known_error(error, path)
        if known is None:
            raise
        raise known from error


def _known_error(error: sqlite3.Error, path: Path) -> StoreError | None:
    code = (error.sqlite_errorcode or 0) & 0xFF if isinstance(error, sqlite3.DatabaseError) else 0
    if code in (_BUSY, _LOCKED):
        return StoreBusy(f"{path} is held by another process; try again in a moment.")
    if code == _FULL:
        return DiskFull(f"There is no room left to write {path}; free some space and try again.")
    if code == _NOTADB:
        return NotOurFile(f"{path} is not a Nightschool database; name another folder with --home, or {RESTORE}.")
    if code == _CORRUPT:
        return _damaged(path)
    if code in (_READONLY, _CANTOPEN):
        return StoreError(f"{path} cannot be opened for writing; check who may write it, or {RESTORE}.")
    if code == _IOERR:
        return StoreError(f"{path} could not be read or written; check the disk and the space left on it.")
    return None


def _damaged(path: Path) -> StoreDamaged:
    return StoreDamaged(f"{path} is damaged; {RESTORE}.")


@contextlib.contextmanager
def transaction(db: Database, turns: Turns | None = None) -> Iterator[None]:
    """Run the block as one write transaction, or as a savepoint of the one already open.

    Args:
        turns: the queue to wait in; without one, whoever asks at the right moment is next.
    """
    if db.conn.in_transaction:
        with db.atomic():
            yield
        return
    if turns:
        turns.begin(db)
    else:
        db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.conn.in_transaction:  # a full disk has rolled back already
            db.execute("ROLLBACK")
        raise


class _Slot:
    """A thread's connection, and the lock that shows it is in use."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.in_use = threading.RLock()
        weakref.finalize(self, db.close)  # when the thread ends


class Connections:
    """The connections of one program to one database file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turns = Turns(path)
        self._mine = threading.local()
        self._slots: weakref.WeakSet[_Slot] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def read(self) -> Iterator[Database]:
        """Lend this thread's connection for reading; fetch what you need before the block ends."""
        slot = self._slot()
        with slot.in_use, translated(self.path):
            yield slot.db

    @contextlib.contextmanager
    def write(self) -> Iterator[Database]:
        """Lend this thread's connection inside a write transaction; nested blocks become savepoints.

        Raises:
            StoreBusy: another process held the write lock for ten seconds.
            DiskFull: there was no room; the whole block left no trace.
        """
        slot = self._slot()
        with slot.in_use, translated(self.path), transaction(slot.db, self._turns):
            yield slot.db

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Database]:
        """Lend a connection of its own that sees the database as it is now until the block ends."""
        self._check_open()
        db = connect(self.path)
        try:
            with translated(self.path):
                db.execute("BEGIN")
                yield db
        finally:
            db.close()

    def close(self) -> None:
        """Close every connection, waiting for threads in the middle of a statement."""
        with self._lock:
            self._closed = True
            slots = list(self._slots)
        for slot in slots:
            if slot.in_use.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
                slot.db.close()
                slot.in_use.release()

    def _slot(self) -> _Slot:
        self._check_open()
        slot: _Slot | None = self._mine.__dict__.get("slot")
        if slot is None:
            slot = _Slot(connect(self.path))
            with translated(self.path):
                seal_writes(slot.db)
            with self._lock:
                self._check_open()  # close() may have run meanwhile
                self._slots.add(slot)
            self._mine.slot = slot
        return slot

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("The store is closed; open it again.")
