"""PPO on the command line: from a reward model and prompts to an adapter, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assistant.adapters import read_adapter_id
from finetune.__main__ import main
from finetune.notes import explain
from finetune.ppo_workshop import encode_prompts, text_rows
from tests.finetune_support import pair
from tests.tiny import tiny_tokenizer

QUICK = {"ITERATIONS": "2", "PROMPTS": "8", "REPLY_TOKENS": "4", "LEARNING_RATE": "0.001", "KL_LIMIT": "5"}


@pytest.fixture(autouse=True)
def tiny(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that takes a second."""
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__ANCHOR_SHARE", "0")
    for name, value in QUICK.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_NIGHT__PPO_{name}", value)


def lines(path: Path, *rows: dict[str, Any]) -> str:
    asked = [{"prompt": [{"role": "user", "content": f"question {n}"}], **row} for n, row in enumerate(rows)]
    path.write_text("\n".join(json.dumps(row) for row in asked))
    return str(path)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


PAIRS = [{"chosen": said(f"What is {n} like?"), "rejected": said(f"{n}.")} for n in range(4)]
MIXED: list[dict[str, Any]] = [{}, {}, {"completion": said("so?")}, PAIRS[0]]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    fields: dict[str, Any] = json.loads(capsys.readouterr().out)
    return fields


def test_lines_of_a_text_that_are_cut_or_left_out_are_counted(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The student asks.\n\na\nThe teacher asks back.\n")
    rows, counts = text_rows(tiny_tokenizer(), text, 7)
    assert [len(prompt) + len(rest) for prompt, rest in rows] == [5, 7]
    assert explain(counts) == [
        "1 lines of the text for --ptx were cut at the longest example.",
        "1 lines of the text for --ptx have fewer than two tokens; left out.",
    ]


def test_prompts_whose_oldest_turns_or_all_do_not_fit_are_counted() -> None:
    talk = [{"role": role, "content": "x" * 40} for role in ("user", "assistant", "user")]
    asked = [replace(pair(1), prompt=tuple(talk)), replace(pair(2), prompt=({"role": "user", "content": "y" * 500},))]
    prompts, counts = encode_prompts(tiny_tokenizer(), [*asked, asked[0]], 100)
    assert len(prompts) == 1 and (counts["too_long"], counts["dropped_turns"]) == (1, 2)


@pytest.mark.long
def test_a_policy_learns_from_a_reward_model_and_goes_on_from_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward, first, second = (str(tmp_path / name) for name in ("reward", "first", "second"))
    pairs = lines(tmp_path / "pairs.jsonl", *PAIRS)
    printed(capsys, "train", "--method", "reward", "--data", pairs, "--out", reward)
    data = lines(tmp_path / "prompts.jsonl", *MIXED)
    asked = ("train", "--method", "ppo", "--data", data, "--reward", reward)
    made = printed(capsys, *asked, "--out", first)
    assert (made["prompts"], made["ptx_rows"], made["iterations"]) == (4, 1, 2)
    assert made["adapter"] == read_adapter_id(Path(first)) and made["kl"] < 5
    kept = [json.loads(line) for line in (Path(first) / "ppo.jsonl").read_text().splitlines()]
    assert len(kept) == 3 and all(len(line["samples"]) == 3 for line in kept)
    assert {"reward", "kl", "entropy", "clip_fraction", "value_loss", "length"} <= set(kept[0])
    text = tmp_path / "text.txt"
    text.write_text("The student asks.\n\nThe teacher asks back.\n")
    onward = printed(capsys, *asked, "--out", second, "--start", first, "--ptx", str(text))
    assert onward["ptx_rows"] == 3 and "short_lines" in onward and onward["adapter"].startswith("adapter-")
    assert not list(tmp_path.glob(".train-*"))
    assert main(["evaluate", second, "--data", pairs]) == 0


def test_the_rise_that_is_told_is_that_of_fresh_replies_to_the_same_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of several noisy means would show a rise where nothing was learned."""
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__PPO_KL_LIMIT", "1e-12")  # so that the start is kept
    reward, out = str(tmp_path / "reward"), str(tmp_path / "out")
    pairs, data = lines(tmp_path / "pairs.jsonl", *PAIRS), lines(tmp_path / "prompts.jsonl", *MIXED)
    printed(capsys, "train", "--method", "reward", "--data", pairs, "--out", reward)
    made = printed(capsys, "train", "--method", "ppo", "--data", data, "--reward", reward, "--out", out)
    assert made["chosen"] == 0 and made["reward"] == made["initial_reward"] and made["kl"] == 0.0


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("ppo", [], "Give one with --reward DIR"),
        ("ppo", ["--reward", "nowhere"], "There is no reward model in nowhere"),
        ("dpo", ["--reward", "nowhere"], "belong to --method ppo"),
        ("dpo", [], "it has neither"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(
    method: str, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = lines(tmp_path / "prompts.jsonl", {})
    assert main(["train", "--method", method, "--data", data, "--out", str(out), *more]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1
    assert not out.exists()
