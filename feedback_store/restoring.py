"""A backup back into its place: checked first, the replaced file kept beside it.

At every moment a whole database stands under the final name: the old one, then the restored one.
"""

import contextlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from feedback_store.connection import connect, translated
from feedback_store.errors import BadInput, NotOurFile, StoreBusy, StoreDamaged, StoreError
from feedback_store.integrity import find_problems
from feedback_store.opening import check_header, copy_database, locked, prepare


def restore(path: Path, backup: Path) -> Path | None:
    """Put a backup in the place of the database, and return where the replaced file is kept; None if there was none.

    Args:
        path: the database, present or not, whole or not.
        backup: what `backup` made; it is only read. One of an older version is migrated.

    Raises:
        NotOurFile, NewerStore, StoreDamaged: the backup is no whole store; nothing was changed.
        StoreBusy: the app or a night has the database open; what it writes would be lost.
        StoreError: a file cannot be read or written.
    """
    path, backup = path.absolute(), backup.absolute()
    if not backup.exists():
        raise StoreError(f"There is no file {backup}; name a backup.")
    if path.exists() and path.samefile(backup):
        raise BadInput(f"{backup} is the database itself; name a backup of it.")
    checked = path.with_name(f"{path.name}.restoring")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _copy_checked(backup, checked)
        with locked(path):
            _check_unused(path)
            kept = _keep(path)
            os.replace(checked, path)
        return kept
    except OSError as error:
        raise StoreError(f"{path} cannot be replaced ({error.strerror}); check who may write its folder.") from error
    finally:
        for leftover in checked.parent.glob(f"{checked.name}*"):
            leftover.unlink()


def _copy_checked(backup: Path, target: Path) -> None:
    """Copy the backup, bring the copy to this version, and look at every row of it."""
    try:
        check_header(backup)
    except (NotOurFile, StoreDamaged) as error:
        raise type(error)(f"{backup} is no whole Nightschool database; name another backup.") from error
    try:
        source = connect(backup, options="mode=ro")
        try:
            with translated(backup):
                copy_database(source, target, check=lambda _: None)
        finally:
            source.close()
        prepare(target, create=False)
        db = connect(target)
        try:
            with translated(target):
                problems = find_problems(db)
                db.execute("PRAGMA journal_mode=DELETE").fetchall()  # leaves no companion files to rename
        finally:
            db.close()
    except StoreDamaged:
        problems = ["Its pages are broken."]
    if problems:
        raise StoreDamaged(f"{backup} is not whole ({problems[0]}); name another backup. Nothing was replaced.")


def _check_unused(path: Path) -> None:
    """Refuse while somebody else has the database open: leaving WAL mode needs the file to oneself."""
    if not path.exists():
        return
    try:
        db = connect(path)
    except StoreError:  # nothing can use it
        return
    try:
        with translated(path):
            for sql in ("PRAGMA busy_timeout=1000", "PRAGMA journal_mode=DELETE", "BEGIN EXCLUSIVE", "ROLLBACK"):
                db.execute(sql).fetchall()
    except StoreBusy:
        raise StoreBusy(f"{path} is in use; stop the app and the night, then restore again.") from None
    except StoreError:  # damaged: what can be told of it is told
        return
    finally:
        db.close()


def _keep(path: Path) -> Path | None:
    """Give the database and its log a second name; the log loses its first, for it does not belong to the backup."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    kept = path.with_name(f"{path.name}.replaced-{stamp}")
    if path.exists():
        try:
            os.link(path, kept)
        except OSError:  # not every file system has links
            shutil.copy2(path, kept)
    for ending in ("-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path.with_name(f"{path.name}{ending}"), kept.with_name(f"{kept.name}{ending}"))
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    return kept if path.exists() else None
