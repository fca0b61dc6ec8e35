"""The commands say what they found, in words or as JSON, and end with the right status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feedback_store.__main__ import main
from feedback_store.connection import connect
from feedback_store.integrity import verify
from feedback_store.store import open_store
from tests.new_store import open_in
from tests.test_store_world import fill


@pytest.fixture
def filled(home: Path) -> Path:
    """A home whose store holds one of everything."""
    store = open_in(home / "nightschool.db")
    fill(store)
    store.close()
    return home


def damage(home: Path) -> None:
    """Contradict the live pointer's history."""
    db = connect(home / "nightschool.db")
    db.execute("UPDATE live SET generation = 7")
    db.close()


def test_stats_counts_what_is_stored(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats"]) == 0
    assert "thumbs up: 1\n" in capsys.readouterr().out
    assert main(["stats", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert (counted["pairs"], counted["people"], counted["live"], counted["generation"]) == (3, 1, "adapter-1", 1)


def test_verify_reports_a_whole_store_and_fails_on_a_damaged_one(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": []}
    damage(filled)
    assert main(["verify", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["problems"] == [
        "A row of live was changed by a damaged disk or another program. (chat)",
        "The live pointer is missing or differs from the end of its history. (live)",
    ]
    assert output.err.count("\n") == 1 and "not whole" in output.err


def test_backup_makes_a_store_of_its_own(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.db"
    assert main(["backup", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "file": str(copy), "size_bytes": copy.stat().st_size}
    store = open_store(copy, create=False)
    assert verify(store) == []
    store.close()
    assert main(["backup", str(copy)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_home_is_the_option_then_the_variable(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    assert main(["stats", "--home", str(empty)]) == 1
    output = capsys.readouterr()
    assert output.out == "" and str(empty) in output.err and output.err.count("\n") == 1
    assert not empty.exists()
    assert main(["stats", "--home", str(filled)]) == 0


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["backup"], ["stats", "--jason"], ["stats", "extra"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["stats", "--help"], ["verify", "--help"], ["backup", "--help"]])
def test_every_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "usage: python -m feedback_store" in capsys.readouterr().out


def test_a_real_process_fails_with_one_sentence_and_no_traceback(home: Path) -> None:
    home.mkdir()
    (home / "nightschool.db").write_bytes(os.urandom(4096))
    ended = subprocess.run(
        [sys.executable, "-m", "feedback_store", "stats", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=Path(__file__).parent.parent,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "not a Nightschool database" in ended.stderr
    assert json.loads(ended.stdout) == {"error": ended.stderr.strip()}
