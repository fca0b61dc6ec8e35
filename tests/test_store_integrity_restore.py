"""A backup comes back only if it is whole, nobody uses the file, and the replaced one is kept."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_store.__main__ import main
from feedback_store.connection import connect, transaction
from feedback_store.errors import BadInput, NotOurFile, StoreBusy, StoreDamaged, StoreError
from feedback_store.integrity import backup, verify
from feedback_store.opening import migrate
from feedback_store.restoring import restore
from feedback_store.schema import VERSION
from feedback_store.store import open_store
from tests.make_store_fixture import FOLDER
from tests.test_store_opening import dump
from tests.test_store_world import ask, fill

FIXTURES = sorted(FOLDER.glob("store-v*.db.gz"))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A store's file and, beside its folder, a backup of it called copy.db."""
    place = tmp_path / "home" / "nightschool.db"
    store = open_store(place)
    fill(store)
    backup(store, tmp_path / "copy.db")
    store.close()
    yield place


def words(path: Path) -> list[str]:
    """Return what people wrote."""
    store = open_store(path, create=False)
    try:
        assert verify(store) == []
        with store.connections.read() as db:
            return [text for (text,) in db.execute("SELECT text FROM message WHERE role = 'user' ORDER BY seq")]
    finally:
        store.close()


def test_a_backup_replaces_the_database_which_is_kept(path: Path, tmp_path: Path) -> None:
    store = open_store(path)
    ask(store, "Said after the backup.")
    store.close()
    kept = restore(path, tmp_path / "copy.db")
    assert words(path) == ["What is 2 + 2?"]
    assert kept is not None and kept.parent == path.parent
    assert words(kept) == ["What is 2 + 2?", "Said after the backup."]
    assert not list(path.parent.glob("*.restoring*"))


def test_a_lost_or_ruined_database_is_restored(path: Path, tmp_path: Path) -> None:
    path.unlink()
    assert restore(path, tmp_path / "copy.db") is None
    assert words(path) == ["What is 2 + 2?"]
    for ruin in (b"", b"ruined" * 1000, path.read_bytes()[:5000]):
        path.write_bytes(ruin)
        path.with_name("nightschool.db-wal").write_bytes(b"left over")
        kept = restore(path, tmp_path / "copy.db")
        assert words(path) == ["What is 2 + 2?"]
        assert kept is not None and kept.read_bytes() == ruin


def test_what_is_not_whole_is_not_restored(path: Path, tmp_path: Path) -> None:
    before, whole = path.read_bytes(), (tmp_path / "copy.db").read_bytes()
    bad = tmp_path / "bad.db"
    contents = [whole.replace(b"Short.", b"Shirt."), whole[:-4096], whole[:8192] + bytes(4096) + whole[12288:]]
    for content in contents:
        bad.write_bytes(content)
        with pytest.raises(StoreDamaged):
            restore(path, bad)
        assert bad.read_bytes() == content
    bad.write_bytes(b"something else" * 100)
    with pytest.raises(NotOurFile):
        restore(path, bad)
    with pytest.raises(StoreError, match="no file"):
        restore(path, tmp_path / "nowhere.db")
    with pytest.raises(BadInput, match="itself"):
        restore(path, path)
    assert path.read_bytes() == before
    left = sorted(file.name for file in path.parent.iterdir())
    assert left == ["nightschool.db", "nightschool.db.lock", "nightschool.db.turn.lock"]


def test_a_database_in_use_is_not_replaced(path: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from feedback_store import open_store;"
        " store = open_store(Path(sys.argv[1])); store.people.owner(); print('open', flush=True); sys.stdin.read()"
    )
    app = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    with app:
        assert app.stdout is not None and app.stdout.readline() == b"open\n"
        with pytest.raises(StoreBusy, match="stop the app"):
            restore(path, tmp_path / "copy.db")
    restore(path, tmp_path / "copy.db")


def test_the_command_restores_even_what_cannot_be_opened(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"ruined" * 1000)
    assert main(["verify", "--json"]) == 1
    assert "python -m feedback_store restore" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "copy.db"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["file"]) == (True, str(path)) and Path(told["kept"]).is_file()
    assert main(["verify", "--json"]) == 0
    assert main(["restore", str(tmp_path / "nowhere.db")]) == 1


def test_there_is_a_fixture_of_the_released_version_and_of_this_one() -> None:
    versions = {int(file.name.removeprefix("store-v").removesuffix(".db.gz")) for file in FIXTURES}
    assert {5, VERSION} <= versions, "run python -m tests.make_store_fixture"


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda file: str(file.name))
def test_every_released_database_migrates_whole(fixture: Path, tmp_path: Path) -> None:
    path = tmp_path / "nightschool.db"
    path.write_bytes(gzip.decompress(fixture.read_bytes()))
    before = dump(path)
    store = open_store(path)
    assert verify(store) == []
    assert len(list(store.votes.pairs())) in (3, 4)
    assert store.votes.counts()["thumbs_up"] == 2
    with store.connections.read() as db:
        assert db.execute("SELECT count(*) FROM message").fetchone()[0] == len(before["message"])
    store.close()
    copies = list(tmp_path.glob("nightschool.db.before-v*"))
    assert [dump(copy) for copy in copies] == ([] if f"v{VERSION}.db" in fixture.name else [before])


def test_a_row_altered_before_a_migration_is_still_named_after_it(tmp_path: Path) -> None:
    """A migration hashes every row anew; it must not bless what was damaged before."""
    path = tmp_path / "nightschool.db"
    store = open_store(path)
    fill(store)
    store.close()
    path.write_bytes(path.read_bytes().replace(b"Short.", b"Shirt."))
    db = connect(path)
    with transaction(db):
        migrate(db)
    db.close()
    store = open_store(path)
    assert any("row of vote " in problem for problem in verify(store))
    store.close()
