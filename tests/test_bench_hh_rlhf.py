"""The pairs of helpful-base as the project's lines, and their parts."""

import gzip
import json
from pathlib import Path

import pytest

from bench import hh_rlhf
from bench.hh_rlhf import part_of, read_pairs
from finetune.files import read_examples
from tests.shared_data import DATA, needs_data

ASKED = "\n\nHuman: Why?\n\nAssistant: Why not?\n\nHuman: Because.\n\nAssistant:"


def zipped(path: Path, *sides: tuple[str, str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in sides)
    return path


def test_a_dialogue_becomes_messages_and_what_cannot_is_counted(tmp_path: Path) -> None:
    good = f"{ASKED} I see.\nAnd so do I.", f"{ASKED} No."
    equal = good[0], good[0]
    twice = f"\n\nHuman: Ah{ASKED} Yes.", f"\n\nHuman: Ah{ASKED} No."
    other = good[0], "\n\nHuman: Who?\n\nAssistant: No."
    [pair], counts = read_pairs(zipped(tmp_path / "data.gz", good, equal, twice, other, (f"{ASKED}", f"{ASKED} No.")))
    assert [turn["role"] for turn in pair["prompt"]] == ["user", "assistant", "user"]
    assert pair["prompt"][1]["content"] == "Why not?"
    assert pair["chosen"] == [{"role": "assistant", "content": "I see.\nAnd so do I."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "No."}]
    assert counts == {"equal": 1, "differing_prompts": 1, "not_in_turn": 2}


@needs_data
def test_the_real_pairs_are_read_and_no_first_prompt_is_in_two_parts(tmp_path: Path) -> None:
    pairs, counts = read_pairs(DATA / "hh_rlhf" / "helpful-base-test.jsonl.gz")
    assert (len(pairs), sum(counts.values())) == (2333, 21)
    parts: dict[str, set[str]] = {"train": set(), "development": set(), "heldout": set()}
    for pair in pairs:
        parts[part_of(pair)].add(pair["prompt"][0]["content"])
    train, development, heldout = parts.values()
    assert train.isdisjoint(heldout) and train.isdisjoint(development) and heldout.isdisjoint(development)
    sizes = [sum(part_of(pair) == part for pair in pairs) for part in parts]
    assert sizes[0] > 1200 and sizes[1] > 200 and sizes[2] > 700
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    assert len(read_examples(tmp_path / "lines.jsonl")[0]) == 2333


def test_a_bench_that_was_stopped_goes_on_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(*arguments: str, home: str | None) -> dict[str, object]:
        if len(ran) == 3:
            ran.append("stopped")
            raise SystemExit(1)
        ran.append(" ".join(arguments[:3:2] if arguments[0] == "train" else arguments[:1]))
        return {"accuracy": len(ran)}

    monkeypatch.setattr(hh_rlhf, "_run", run)
    pairs = [{"prompt": [], "chosen": [], "rejected": []}]
    with pytest.raises(SystemExit):
        hh_rlhf.measure(pairs, pairs, tmp_path / "out", None)
    found = hh_rlhf.measure(pairs, pairs, tmp_path / "out", None)
    assert ran == ["evaluate", "train reward", "evaluate", "stopped", "train dpo", "evaluate"]
    assert found["base"] == {"accuracy": 1} and found["dpo"] == {"accuracy": 6, "trained": {"accuracy": 5}}
    with pytest.raises(SystemExit, match="other pairs"):
        hh_rlhf.measure([], pairs, tmp_path / "out", None)
