"""Reward models on the command line: trained, examined, and refused where an adapter is wanted."""

import json
from pathlib import Path
from typing import Any

import pytest

from assistant.__main__ import main as assistant
from assistant.arithmetic import multiplies_bf16
from finetune.__main__ import main
from finetune.examples import select_method
from tests.finetune_support import demonstration, pair, ranking, thumb


@pytest.fixture(autouse=True)
def tiny(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward models that take a second, and learn much in it."""
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__REWARD_LEARNING_RATE", "0.01")
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__REWARD_EPOCHS", "3")


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    asked = [{"prompt": [{"role": "user", "content": f"question {n}"}], **row} for n, row in enumerate(rows)]
    path.write_text("\n".join(json.dumps(row) for row in asked))
    return path


PAIRS = [{"chosen": said(f"What is {n} like?"), "rejected": said(f"{n}.")} for n in range(12)]
RANKINGS = [{"completions": [said("fine"), said("good?"), said("bad")], "ranks": [2, 1, 2]} for _ in range(3)]
TIES = [{"left": said("yes"), "right": said("no?"), "choice": "tie"}]
SHOWN = [{"completion": said("so?")}]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    fields: dict[str, Any] = json.loads(capsys.readouterr().out)
    return fields


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err.strip()


def train(capsys: pytest.CaptureFixture[str], data: Path, out: Path) -> dict[str, Any]:
    return printed(capsys, "train", "--method", "reward", "--data", str(data), "--out", str(out))


def test_a_reward_model_is_trained_and_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = lines(tmp_path / "data.jsonl", *PAIRS, *RANKINGS, *TIES, *SHOWN), tmp_path / "out"
    trained = train(capsys, data, out)
    assert {"pairs_per_s", "peak_gb", "seconds", "loss"} <= set(trained) and trained["epochs"] == 3
    assert (trained["pairs"], trained["ties"], trained["examples"]) == (18, 1, 16)
    assert trained["notes"][0] == "The demonstrations average zero."
    assert sorted(p.name for p in out.iterdir()) == ["adapter", "reward.json", "reward_head.safetensors"]
    assert not list(tmp_path.glob(".train-*"))
    trained_in = "bf16" if multiplies_bf16() else "fp32"
    found = printed(capsys, "evaluate", str(out), "--data", str(lines(tmp_path / "pairs.jsonl", *PAIRS)))
    assert found["reward_model"] == trained["reward_model"] and found["numeric_form"] == f"{trained_in}, as trained"
    assert found["n"] == 12 and found["accuracy"] == 1.0 and found["length_baseline"] == 1.0
    assert found["low"] == pytest.approx(0.7575, abs=1e-4) and found["high"] == 1.0
    assert main(["evaluate", str(out), "--data", str(data)]) == 0
    assert "18 pairs" in capsys.readouterr().out


def test_without_demonstrations_it_is_said_what_averages_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(capsys, lines(tmp_path / "data.jsonl", *PAIRS[:2]), tmp_path / "out")
    assert trained["centre"] == "preferred replies" and trained["notes"] == ["The preferred replies average zero."]


def test_votes_that_a_reward_model_does_not_learn_from_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thumbs = [{"completion": said("so?"), "label": up} for up in (True, False, True)]
    trained = train(capsys, lines(tmp_path / "data.jsonl", *PAIRS[:2], *thumbs), tmp_path / "out")
    assert "--method reward does not learn from 2 thumbs up, 1 thumbs down; left out." in trained["notes"]


def test_a_reward_model_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(capsys, lines(tmp_path / "data.jsonl", *PAIRS[:2]), tmp_path / "out")
    assert assistant(["ask", "Why?", "--adapter", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert "is a reward model: it scores replies and writes none" in error and error.count("\n") == 0


def test_a_damaged_reward_model_is_not_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = lines(tmp_path / "data.jsonl", *PAIRS[:2]), tmp_path / "out"
    train(capsys, data, out)
    (out / "reward_head.safetensors").write_bytes(b"broken")
    assert "is damaged" in failed(capsys, "evaluate", str(out), "--data", str(data))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (SHOWN, "--method reward learns from choices, and there are only 1 demonstrations. Take --method auto or"),
        (TIES, "All 1 judgements are ties"),
        ([{"chosen": said("same"), "rejected": said("same")}], "nothing to learn"),
        ([{**PAIRS[0], "prompt": [{"role": "user", "content": "z" * 9000}]}, *SHOWN], "No reply is preferred"),
    ],
)
def test_a_file_that_prefers_nothing_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], words: str
) -> None:
    data, out = lines(tmp_path / "data.jsonl", *rows), tmp_path / "out"
    assert words in failed(capsys, "train", "--method", "reward", "--data", str(data), "--out", str(out))
    assert not out.exists() and not list(tmp_path.glob(".train-*"))


def test_a_night_makes_no_reward_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nightly", "--method", "reward"])
    assert ended.value.code == 2 and "invalid choice: 'reward'" in capsys.readouterr().err


def test_a_reward_model_learns_from_what_compares_and_is_centred_on_what_is_shown() -> None:
    examples = [pair(1), ranking(2), demonstration(3), thumb(4), pair(5, demonstrated=True)]
    assert select_method(examples, "reward") == [examples[0], examples[1], examples[2], examples[4]]
    assert select_method(examples[2:4], "reward") == []
