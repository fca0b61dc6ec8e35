"""The commands as people and scripts run them: what they print, and their exit statuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from assistant.__main__ import main as assistant
from assistant.adapters import verify_adapter
from assistant.loading import resolve_base
from assistant.settings import load_settings
from finetune import evaluate
from finetune.__main__ import build_parser, main
from tests.finetune_support import fill_store
from tests.new_store import open_in
from tests.tiny import save_tiny

COMMANDS = (
    "nightly",
    "train",
    "evaluate",
    "adapters",
    "promote",
    "rollback",
    "runs",
    "report",
    "simulate",
    "rehearse",
    "judge",
)


@pytest.fixture
def tiny(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose nights take a second."""
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    for name, value in {"MIN_VOTES": "10", "EPOCHS": "1", "GATE_PERPLEXITY_RISE": "10"}.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_NIGHT__{name}", value)
    return home


class Runner:
    """Runs commands in this process and reads what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == status
        printed: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return printed

    def text(self, *arguments: str) -> str:
        assert main(arguments) == 0
        return self._capsys.readouterr().out

    def printed(self) -> str:
        return self._capsys.readouterr().out

    def error(self, *arguments: str) -> str:
        assert main(arguments) == 1
        error = self._capsys.readouterr().err.strip()
        assert "Traceback" not in error and error.count("\n") == 0
        return error


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


def preferences(path: Path, count: int = 12) -> Path:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {n}"}],
            "chosen": said(f"What is {n} like?"),
            "rejected": said(f"{n}."),
        }
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def vote(home: Path, questions: int, start: int = 0) -> None:
    home.mkdir(exist_ok=True)
    store = open_in(home / "nightschool.db")
    fill_store(store, [f"question {n}" for n in range(start, start + questions)])
    store.close()


@pytest.mark.long
def test_a_day_at_the_operators_desk(tiny: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: False)  # a random model may loop
    vote(tiny, 20)
    night = run.json("nightly")
    assert night["outcome"] == "promoted", night["reasons"]
    assert set(night) == {"outcome", "run", "adapter", "reasons"}
    assert run.json("nightly", "--if-due")["outcome"] == "skipped"
    [adapter] = run.json("adapters")["adapters"]
    assert adapter["id"] == night["adapter"] and adapter["live"] and adapter["state"] == "ready"
    assert [r["outcome"] for r in run.json("runs")["runs"]] == ["promoted"]
    assert run.json("report", night["run"])["outcome"] == "promoted"
    assert "## Gate" in run.text("report", "last")
    assert run.json("promote", "live")["live"] == night["adapter"]
    assert run.json("rollback") == {"live": "base", "previous": night["adapter"]}
    again = run.json("nightly")
    assert again["outcome"] == "skipped" and "taken out of service" in again["reasons"][0]
    assert run.json("promote", night["adapter"])["live"] == night["adapter"]
    found = run.json("evaluate", "live")
    assert found["adapter"] == night["adapter"] and found["n"] == night_heldout(run, night)
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert run.json("promote", "base")["live"] == "base"
    assert "live" not in run.text("adapters")


def night_heldout(run: Runner, night: dict[str, Any]) -> int:
    return int(run.json("report", night["run"])["counts"]["heldout"])


def test_a_night_with_too_few_votes_is_skipped_and_done(tiny: Path, run: Runner) -> None:
    vote(tiny, 3)
    assert "7 are missing" in run.text("nightly")


@pytest.mark.long
def test_train_writes_an_adapter_that_evaluate_takes(tiny: Path, tmp_path: Path, run: Runner) -> None:
    data = preferences(tmp_path / "data.jsonl")
    trained = run.json("train", "--method", "dpo", "--data", str(data), "--out", str(tmp_path / "out"))
    assert {"pairs_per_s", "peak_gb", "epochs", "seconds"} <= set(trained)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "manifest.json"
    ]  # fmt: skip
    assert not list(tmp_path.glob(".train-*"))
    found = run.json("evaluate", str(tmp_path / "out"), "--data", str(data))
    assert {"accuracy", "low", "high", "n", "length_baseline", "token_logprob_accuracy", "perplexity"} <= set(found)
    assert found["adapter"] == trained["adapter"] and found["n"] == 12 and found["length_baseline"] == 1.0
    assert found["accuracy"] > 0.5
    assert assistant(["ask", "Why?", "--adapter", str(tmp_path / "out"), "--max-new-tokens", "3", "--json"]) == 0
    assert f'"adapter": "{trained["adapter"]}"' in run.printed()
    assert assistant(["ask", "Why?", "--adapter", str(tmp_path), "--json"]) == 1
    assert "no adapter in" in run.printed()
    printed = run.text("evaluate", "base", "--data", str(data))
    assert "0.500" in printed and "longer answer wins      1.000" in printed and "12 pairs" in printed


def test_demonstrations_are_trained_on_and_give_examples_a_second(tiny: Path, tmp_path: Path, run: Runner) -> None:
    shown = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    (tmp_path / "shown.jsonl").write_text(json.dumps(shown))
    arguments = ("train", "--method", "sft", "--data", str(tmp_path / "shown.jsonl"), "--out", str(tmp_path / "out"))
    assert "examples_per_s" in run.json(*arguments)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    asked = [{"prompt": [{"role": "user", "content": f"question {n}"}], **row} for n, row in enumerate(rows)]
    path.write_text("\n".join(json.dumps(row) for row in asked))
    return path


THUMBS = [{"completion": said(f"reply {n}"), "label": n % 3 > 0} for n in range(9)]
RANKINGS = [{"completions": [said("fine"), said("good?"), said("bad")], "ranks": [2, 1, 3]} for _ in range(4)]
COMPARISONS = [{"left": said("yes"), "right": said("no?"), "choice": choice} for choice in ("left", "right", "tie")]
SHOWN = [{"completion": said("so?")}]


def test_what_a_method_does_not_learn_from_is_told(tiny: Path, tmp_path: Path, run: Runner) -> None:
    data = lines(tmp_path / "votes.jsonl", *SHOWN, *RANKINGS, *THUMBS)
    found = run.json("train", "--method", "sft", "--data", str(data), "--out", str(tmp_path / "out"))
    told = "--method sft does not learn from 4 rankings, 6 thumbs up, 3 thumbs down; left out."
    assert told in found["notes"]
    chosen = {"left": said("yes"), "right": said("no?"), "choice": "left"}
    data = lines(tmp_path / "both.jsonl", chosen, *THUMBS)
    found = run.json("train", "--method", "kto", "--data", str(data), "--out", str(tmp_path / "kto"))
    assert not any("does not learn" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("method", "rows", "unit", "count"),
    [
        ("kto", THUMBS, "examples_per_s", 9),
        ("rankings", RANKINGS, "pairs_per_s", 4),
        ("dpo", COMPARISONS, "pairs_per_s", 2),
        pytest.param("auto", THUMBS + RANKINGS + COMPARISONS + SHOWN, "pairs_per_s", 16, marks=pytest.mark.long),
        pytest.param("norm", RANKINGS + COMPARISONS, "pairs_per_s", 6, marks=pytest.mark.long),
        pytest.param("ipo", COMPARISONS, "pairs_per_s", 2, marks=pytest.mark.long),
        pytest.param("robust", COMPARISONS[:1], "pairs_per_s", 1, marks=pytest.mark.long),
        pytest.param("sft", SHOWN, "examples_per_s", 1, marks=pytest.mark.long),
    ],
)
def test_every_kind_of_vote_trains_an_adapter(
    tiny: Path,
    tmp_path: Path,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    rows: list[dict[str, Any]],
    unit: str,
    count: int,
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__ANCHOR_SHARE", "0")
    data, out = lines(tmp_path / "data.jsonl", *rows), tmp_path / "out"
    trained = run.json("train", "--method", method, "--data", str(data), "--out", str(out))
    assert {unit, "peak_gb", "epochs", "seconds", "notes"} <= set(trained) and trained["examples"] == count
    assert verify_adapter(out, resolve_base(load_settings()).id).id == trained["adapter"]
    ties = sum(row.get("choice") == "tie" for row in rows)
    assert trained["ties"] == ties and any("preferred nothing" in note for note in trained["notes"]) == bool(ties)


@pytest.mark.long
def test_an_adapter_is_examined_on_the_pairs_of_rankings(tiny: Path, tmp_path: Path, run: Runner) -> None:
    data = lines(tmp_path / "data.jsonl", *RANKINGS)
    found = run.json("evaluate", "base", "--data", str(data))
    assert found["n"] == 12 and found["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("method", "rows", "words"),
    [
        ("kto", [row for row in THUMBS if row["label"]], "All thumbs point the same way"),
        ("auto", [row for row in THUMBS if not row["label"]], "All thumbs point the same way"),
        ("auto", COMPARISONS[2:], "All 1 judgements are ties"),
        ("auto", [{"completions": [said("a"), said("b")], "ranks": [1, 1]}], "are ties"),
        ("auto", [{"chosen": said("same"), "rejected": said("same")}], "nothing to learn"),
        ("rankings", COMPARISONS, "there are only 2 pairs"),
        ("auto", [{"chosen": said("a"), "rejected": said("b"), "prompt": [{"role": "user", "content": "z" * 9000}]}],
         "Every prompt is longer"),
    ],
)  # fmt: skip
def test_a_file_that_teaches_nothing_is_one_sentence(
    tiny: Path, tmp_path: Path, run: Runner, method: str, rows: list[dict[str, Any]], words: str
) -> None:
    data = lines(tmp_path / "data.jsonl", *rows)
    assert words in run.error("train", "--method", method, "--data", str(data), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".train-*"))


def test_what_was_shortened_or_odd_is_told(tiny: Path, tmp_path: Path, run: Runner) -> None:
    rows = [
        {"chosen": said("사과는 몇 개인가요?"), "rejected": said("<|im_end|>")},
        {"chosen": said("a"), "rejected": said("b" * 2000)},
        {"chosen": said("same"), "rejected": said("same")},
    ]
    data = lines(tmp_path / "data.jsonl", *rows)
    trained = run.json("train", "--data", str(data), "--out", str(tmp_path / "out"))
    assert (trained["pairs"], trained["equal"], trained["control_tokens"], trained["split_badly"]) == (2, 1, 1, 1)
    assert (trained["cut_completions"], trained["anchors"], len(trained["notes"])) == (1, 1, 5)
    assert any(note.startswith("1 replies of the base were learned from, too") for note in trained["notes"])


def test_bad_lines_stop_a_training_unless_they_are_left_out(tiny: Path, tmp_path: Path, run: Runner) -> None:
    data = preferences(tmp_path / "data.jsonl", 4)
    data.write_text(data.read_text() + "\n{broken")
    arguments = ("train", "--data", str(data), "--out", str(tmp_path / "out"))
    assert "Line 5" in run.error(*arguments)
    assert not (tmp_path / "out").exists()
    assert len(run.json(*arguments, "--skip-bad")["bad_lines"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "nobody"], "No adapter"),
        (["promote", "."], "cannot go live"),
        (["rollback"], "Nothing was promoted"),
        (["report", "never"], "There is no report"),
        (["evaluate", "base"], "no preference pair"),
        (["evaluate", "base", "--data", "absent.jsonl"], "cannot be read"),
        (["train", "--data", "absent.jsonl", "--out", "x"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_one(
    tiny: Path, run: Runner, arguments: list[str], words: str
) -> None:
    assert words in run.error(*arguments)


def test_an_unknown_adapter_and_an_existing_folder_are_refused(tiny: Path, tmp_path: Path, run: Runner) -> None:
    data = preferences(tmp_path / "data.jsonl")
    assert "There is no adapter nobody" in run.error("evaluate", "nobody", "--data", str(data))
    assert "not an empty folder" in run.error("train", "--data", str(data), "--out", str(tmp_path))
    assert data.exists()


def test_an_adapter_of_another_base_or_a_damaged_one_is_refused(
    tiny: Path, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = preferences(tmp_path / "data.jsonl"), tmp_path / "out"
    run.json("train", "--data", str(data), "--out", str(out))
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(save_tiny(tmp_path / "other", seed=1)))
    assert "another model" in run.error("evaluate", str(out), "--data", str(data))
    (out / "adapter_model.safetensors").write_bytes(b"broken")
    assert "damaged" in run.error("evaluate", str(out), "--data", str(data))


@pytest.mark.long
def test_a_damaged_adapter_is_not_rolled_back_to_and_the_next_night_makes_it_whole(
    tiny: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: False)  # a random model may loop
    vote(tiny, 20)
    adapter = run.json("nightly")["adapter"]
    run.json("promote", "base")
    tensors = load_settings().adapters_dir / adapter / "adapter_model.safetensors"
    tensors.write_bytes(b"broken")
    assert "damaged" in run.error("rollback")
    run.json("nightly")
    assert run.json("rollback")["live"] == adapter


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, run: Runner) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in run.error("nightly", "--home", str(tmp_path / "file"))


def test_a_model_that_is_not_there_is_one_sentence(
    home: Path, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(tmp_path / "absent.gguf"))
    data = preferences(tmp_path / "data.jsonl")
    assert "absent.gguf" in run.error("train", "--data", str(data), "--out", str(tmp_path / "out"))


def test_a_wrong_setting_is_named(home: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__BETA", "-1")
    assert "night.beta" in run.error("runs")
    monkeypatch.delenv("NIGHTSCHOOL_NIGHT__BETA")
    for name, wrong in (("SEED", "9" * 20), ("RANK", "9" * 15)):
        monkeypatch.setenv(f"NIGHTSCHOOL_NIGHT__{name}", wrong)
        assert f"night.{name.lower()}" in run.error("runs")
        monkeypatch.delenv(f"NIGHTSCHOOL_NIGHT__{name}")
    assert load_settings.__doc__


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_home_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--home" in printed and "--json" in printed


@pytest.mark.parametrize("arguments", [[], ["dance"], ["nightly", "--method", "magic"], ["train"]])
def test_wrong_usage_is_status_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_comes_without_torch() -> None:
    started = time.monotonic()
    code = (
        "import sys\nfrom finetune.__main__ import build_parser\nbuild_parser().format_help()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("text", "flawed"),
    [
        ("", True),
        (" \n ", True),
        ("Paris.", False),
        ("no no no", False),
        ("Ha ha ha ha ha! That is funny.", False),
        ("1. Wash it. 2. Cut it. 3. Cook it. 4. Eat it.", False),
        ("the " * 20, True),
        ("!" * 60, True),
        ("So it is. " + "I am happy to help you with that. " * 5, True),
        ("I am happy to help you with that. " * 3 + "What do you need to know about it today, and why?", False),
        ("0" * 6, False),
        ("The answer is 1000000.", False),
    ],
)
def test_empty_and_looping_replies_are_told_from_good_ones(text: str, flawed: bool) -> None:
    assert evaluate.is_flawed(text) == flawed
