"""Where a training writes until it is whole: a folder beside its place. What killed trainings left there is removed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = ".train-"
LOCK = "lock"


@contextmanager
def unfinished_beside(out: Path) -> Iterator[Path]:
    """Make a folder on the same disk as `out`, for as long as the block takes.

    Raises:
        OSError: nothing can be written there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f"{PREFIX}*"):
        with suppress(Timeout, OSError), FileLock(left / LOCK, timeout=0):  # whoever is alive holds it
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=out.parent) as name, FileLock(Path(name) / LOCK):
        yield Path(name)
