"""`import` and `export` say what they did, in words or as JSON, end with the right status, and are quick."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedback_store.__main__ import main
from feedback_store.exporters import export_file
from feedback_store.importers import import_file
from tests.new_store import open_in

CaptureBinary = pytest.CaptureFixture[bytes]
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
    assert main(["import", str(empty), "--format", "arena", "--json"]) == 1
    assert "holds no comparisons" in json.loads(capsys.readouterr().out)["error"]
    assert main(["import", str(empty), "--format", "arena", "--kind", "rankings"]) == 1


@pytest.mark.parametrize(
    ("text", "says"), [("", "name the file that does"), ("\n\n", "name"), ("{}\n", "Line 1 of in")]
)
def test_a_file_without_a_usable_line_fails_the_import_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    """An empty file was imported with "ok": whoever named the wrong one did not hear of it."""
    file = tmp_path / "in"
    file.write_text(text)
    assert main(["import", str(file), "--kind", "thumbs", "--skip-bad"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert f"{file} holds no thumbs that can be stored" in told.err and says in told.err


@pytest.mark.parametrize("csv", [[], ["--csv"]])
def test_an_export_to_standard_output_is_what_the_file_would_hold_and_nothing_beside_it(
    thumbs: Path, tmp_path: Path, csv: list[str], monkeypatch: pytest.MonkeyPatch, capfdbinary: CaptureBinary
) -> None:
    monkeypatch.chdir(tmp_path)
    thumbs.write_text(json.dumps({**THUMB, "completion": "Zoë 밤"}) + "\n")
    assert main(["import", str(thumbs), "--kind", "thumbs"]) == 0
    assert main(["export", "thumbs", "out", *csv]) == 0
    capfdbinary.readouterr()
    assert main(["export", "thumbs", "-", *csv]) == 0
    told = capfdbinary.readouterr()
    assert (told.out, told.err) == ((tmp_path / "out").read_bytes(), b"")
    assert "밤".encode() in told.out and not (tmp_path / "-").exists()


def test_an_export_that_nobody_reads_any_more_ends_with_one_sentence(thumbs: Path) -> None:
    many = [json.dumps({**THUMB, "id": number, "completion": "word " * 200}) for number in range(200)]
    thumbs.write_text("\n".join(many))
    assert main(["import", str(thumbs), "--kind", "thumbs"]) == 0
    command = [sys.executable, "-m", "feedback_store", "export", "thumbs", "-"]
    export = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert export.stdout and export.stderr
    export.stdout.close()
    told = export.stderr.read()
    export.stderr.close()
    assert export.wait() == 1
    assert told.startswith(b"The export was broken off") and told.count(b"\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["import"],
        ["import", "x"],
        ["import", "x", "--kind", "vots"],
        ["export", "vots", "x"],
        ["export", "thumbs"],
        ["export", "thumbs", "-", "--json"],
    ],
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
    store = open_in(tmp_path / "nightschool.db")
    start = time.perf_counter()
    assert import_file(store, file, "thumbs").added == 10_000
    assert time.perf_counter() - start < 10
    start = time.perf_counter()
    assert export_file(store, "thumbs", tmp_path / "out.jsonl") == 10_000
    assert time.perf_counter() - start < 10
    store.close()
