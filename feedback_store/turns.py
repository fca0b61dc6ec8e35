"""Who writes next: whoever has waited longest, among the threads of one program and between programs.

SQLite lets a writer ask again after ever longer pauses, so that one who comes at the right moment overtakes those who
wait: in a busy minute somebody's vote waits for seconds. Here the threads of a program queue up, the first of each
program asks for a file that is locked, and whoever has it waits for SQLite's own lock, asking every millisecond.
Programs that do not take turns are kept out by SQLite's lock all the same.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from sqlite_utils import Database
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # pysqlite3 where it is installed

_ASK_AGAIN_S = 0.001
_BUSY = 5


class FairLock:
    """A lock that goes to whoever has waited longest; Python's own may go to a latecomer."""

    def __init__(self) -> None:
        self._inside = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    def acquire(self, timeout_s: float) -> bool:
        """Wait for the lock, and say whether it was got in time."""
        mine = threading.Event()
        with self._inside:
            if not self._held:
                self._held = True
                return True
            self._waiting.append(mine)
        got = False
        try:
            got = mine.wait(timeout_s)
        finally:
            if not got:
                got = self._leave(mine)
        return got

    def release(self) -> None:
        """Hand the lock to the first who waits."""
        with self._inside:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False

    def _leave(self, mine: threading.Event) -> bool:
        """Give up waiting, and say whether the lock came at the last moment."""
        with self._inside:
            if not mine.is_set():
                self._waiting.remove(mine)
        return mine.is_set()


class Turns:
    """The queue before one database file."""

    def __init__(self, path: Path) -> None:
        self._mine = FairLock()
        self._ours = FileLock(path.with_name(f"{path.name}.turn.lock"), thread_local=False, mode=0o600)

    def begin(self, db: Database) -> None:
        """Begin a write transaction when it is this thread's turn.

        Raises:
            sqlite3.OperationalError: busy, as SQLite says it, when the connection's busy timeout is over.
        """
        patience_ms = db.execute("PRAGMA busy_timeout").fetchone()[0]
        deadline = time.monotonic() + patience_ms / 1000
        db.execute("PRAGMA busy_timeout=0").fetchall()
        try:
            with self._turn(deadline):
                _begin(db, deadline)
        finally:
            db.execute(f"PRAGMA busy_timeout={patience_ms}").fetchall()

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        """Wait at the head of the queue; without a turn after the deadline, or where no file can be locked."""
        if not self._mine.acquire(max(0.0, deadline - time.monotonic())):
            yield
            return
        try:
            try:
                self._ours.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=_ASK_AGAIN_S)
            except (Timeout, OSError):  # a queue is a kindness: SQLite's lock is what keeps two writers apart
                pass
            yield
        finally:
            self._ours.release()
            self._mine.release()


def _begin(db: Database, deadline: float) -> None:
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode or 0) & 0xFF != _BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_ASK_AGAIN_S)
