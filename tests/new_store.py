"""Stores for tests: a new one costs as much as a copy of a file, not fourteen steps of a schema."""

import tempfile
from functools import cache
from pathlib import Path

from feedback_store.store import Store, open_store


def open_in(path: Path) -> Store:
    """Open a store, a new one where there is none: a copy of one that `open_store` made."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_bytes(_empty_store())
    return open_store(path)


@cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        open_store(path).close()
        return path.read_bytes()
