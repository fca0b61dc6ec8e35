"""`import` and `export` say what they did, in words or as JSON, end with the right status, and are quick."""

import json
import time
from pathlib import Path

import pytest

from feedback_store.__main__ import main
from feedback_store.exporters import export_file
from feedback_store.importers import import_file
from feedback_store.store import open_store

THUMB = {"prompt": [{"role": "user", "content": "What is 2 + 2?"}], "completion": "4", "label": True}


@pytest.fixture
def thumbs(tmp_path: Path) -> Path:
    """A file with a good line and a bad one."""
    file = tmp_path / "thumbs.jsonl"
    file.write_text(json.dumps(THUMB) + "\n{}\n")
    return file


def test_an_import_makes_the_store_and_an_export_gives_it_back(
    thumbs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(thumbs), "--kind", "thumbs", "--skip-bad", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["added"], told["repeated"], told["skipped"]) == (1, 0, 1) and "Line 2" in told["problems"][0]
    out = tmp_path / "out.jsonl"
    assert main(["export", "thumbs", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "kind": "thumbs", "file": str(out), "lines": 1}
    assert json.loads(out.read_text())["label"] is True
    assert main(["export", "thumbs", str(tmp_path / "out.csv"), "--csv"]) == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[0].startswith('"id","annotator"')
    assert main(["stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["imported"] == 1


def test_a_bad_line_fails_the_import_with_one_sentence(thumbs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(thumbs), "--kind", "thumbs", "--json"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("Line 2 of thumbs.jsonl: ") and told.err.count("\n") == 1
    assert json.loads(told.out) == {"error": told.err.strip()}


def test_another_programs_format_says_what_the_lines_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "votes.json"
    empty.write_text("[]")
    assert main(["import", str(empty), "--format", "arena", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "comparisons"
    assert main(["import", str(empty), "--format", "arena", "--kind", "rankings"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [["import"], ["import", "x"], ["import", "x", "--kind", "vots"], ["export", "vots", "x"], ["export", "thumbs"]],
)
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.slow
def test_ten_thousand_votes_are_imported_within_ten_seconds(tmp_path: Path) -> None:
    file = tmp_path / "thumbs.jsonl"
    with file.open("w") as out:
        for number in range(10_000):
            prompt = [{"role": "user", "content": f"Question {number}? " + "Tell me all of it. " * 15}]
            line = {"prompt": prompt, "completion": "It is long. " * 70, "label": number % 3 > 0, "id": number}
            out.write(json.dumps({**line, "annotator": f"rater-{number % 50}"}) + "\n")
    store = open_store(tmp_path / "nightschool.db")
    start = time.perf_counter()
    assert import_file(store, file, "thumbs").added == 10_000
    assert time.perf_counter() - start < 10
    start = time.perf_counter()
    assert export_file(store, "thumbs", tmp_path / "out.jsonl") == 10_000
    assert time.perf_counter() - start < 10
    store.close()
