"""A byte flipped anywhere: refused with the way out, or every altered row named, or nothing of it altered."""

import random
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from feedback_store.errors import StoreError
from feedback_store.integrity import verify
from feedback_store.store import open_store
from tests.test_store_world import answer, ask, fill

pytestmark = pytest.mark.long
FLIPS = 200
Rows = dict[tuple[str, bytes], tuple[object, ...]]


def read_rows(path: Path) -> Rows:
    """Return every sealed row by table and the name that verify gives it, past all checks of ours."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    db.text_factory = bytes
    try:
        found: Rows = {}
        for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            columns = [row[1].decode() for row in db.execute(f"PRAGMA table_info({table.decode()})")]
            if "row_hash" not in columns:
                continue
            keys = [row[1].decode() for row in db.execute(f"PRAGMA table_info({table.decode()})") if row[5]]
            name = ["id"] if "id" in columns else keys
            for row in db.execute(f"SELECT {', '.join(name)}, * FROM {table.decode()}"):
                shown = b" ".join(part if isinstance(part, bytes) else str(part).encode() for part in row[: len(name)])
                found[table.decode(), shown] = row[len(name) :]
        return found
    finally:
        db.close()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Rows]:
    """The bytes of a store in use, and its rows."""
    path = tmp_path_factory.mktemp("flips") / "nightschool.db"
    store = open_store(path)
    fill(store)
    for number in range(60):
        question = ask(store, f"Question {number}? " + "Tell me all of it. " * 20)
        replies = [answer(store, question, f"Answer {number} {side}. " + "It is long. " * 40) for side in "ab"]
        store.votes.rate(replies[0].id, 1, 1 if number % 2 else -1, ["other"], "A comment.")
        store.votes.rank(question.id, 1, {replies[0].id: 1, replies[1].id: 2})
    store.close()
    return path.read_bytes(), read_rows(path)


def outcome(path: Path, before: Rows) -> str:
    """Open the file the way the program does, check the promise, and say which part of it was kept."""
    try:
        store = open_store(path, create=False)
    except StoreError as error:
        assert "python -m feedback_store restore" in str(error) and "\n" not in str(error)
        return "refused"
    try:
        problems = verify(store)
    except StoreError as error:
        assert "python -m feedback_store restore" in str(error)
        return "refused"
    finally:
        store.close()
    if any(problem.startswith("The file is damaged") for problem in problems):
        return "refused"
    after = read_rows(path)
    altered = [key for key, row in after.items() if before.get(key) != row]
    for table, name in altered:
        assert any(f"row of {table} " in p and name.decode(errors="replace") in p for p in problems), (table, problems)
    assert altered or after == before, "rows are gone and verify says nothing"
    assert bool(altered) == bool(problems), problems
    return "named" if altered else "intact"


def test_a_flipped_byte_is_refused_or_named_or_harmless(content: tuple[bytes, Rows], tmp_path: Path) -> None:
    whole, before = content
    chance = random.Random(3)
    path = tmp_path / "nightschool.db"
    seen = []
    for place in chance.sample(range(len(whole)), FLIPS):
        flipped = bytearray(whole)
        flipped[place] ^= chance.randrange(1, 256)
        path.write_bytes(flipped)
        seen.append(outcome(path, before))
        assert path.stat().st_size >= len(whole)
        for companion in tmp_path.glob("nightschool.db-*"):
            companion.unlink()
    assert {"refused", "named", "intact"} == set(seen)


def test_a_flipped_byte_of_the_header_is_refused_or_harmless(content: tuple[bytes, Rows], tmp_path: Path) -> None:
    whole, before = content
    path = tmp_path / "nightschool.db"
    for place in range(100):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert outcome(path, before) in ("refused", "intact"), place
        for companion in tmp_path.glob("nightschool.db-*"):
            companion.unlink()
