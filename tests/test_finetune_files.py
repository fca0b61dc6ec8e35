"""Files of votes: every kind is read, and a line that cannot be used is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import BadData
from finetune.examples import METHODS
from finetune.files import read_examples
from finetune.notes import explain, why_nothing
from tests.finetune_support import demonstration, pair, thumb

PROMPT = {"prompt": [{"role": "user", "content": "hi"}]}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def line(**fields: Any) -> str:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    return json.dumps({**row, **fields})


def test_a_file_of_preferences_and_demonstrations_is_read(tmp_path: Path) -> None:
    shown = json.dumps(
        {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    )
    path = tmp_path / "data.jsonl"
    path.write_text(line(annotator="ana", created_at="2026-01-01T00:00:00Z", id="x") + "\n\n" + shown + "\n")
    (first, second), problems, _ = read_examples(path)
    assert not problems
    assert (first.person, first.ids, first.completions) == ("ana", ("x",), ("a", "b"))
    assert second.demonstrated and second.completions == ("ho",)


BAD = {
    "{": "not JSON",
    "[1]": "not a JSON object",
    '{"prompt": []}': '"prompt" is empty',
    '{"question": "hi"}': 'there is no "prompt"',
    line(prompt="hi"): '"prompt" is not a list of messages',
    line(prompt=[{"role": "tool", "content": "x"}]): "known role",
    line(prompt=[{"role": "assistant", "content": "x"}]): "does not end with a user message",
    line(chosen=[{"role": "assistant", "content": "  "}]): '"chosen" is empty',
    line(rejected=[{"role": "user", "content": "x"}]): "not exactly one assistant message",
    line(rejected=None): '"rejected" is not a list',
    line(created_at="yesterday"): "ISO-8601",
    line(created_at="0001-01-01T00:00:00+14:00"): "ISO-8601",
    line(annotator=[1]): '"annotator" is not a text',
    line(chosen=[{"role": "assistant", "content": "\ud800"}]): "surrogate",
    '{"prompt": [{"role": "user", "content": "x"}]}': "a prompt alone is for --method ppo",
}


@pytest.mark.parametrize(("bad", "reason"), BAD.items())
def test_a_bad_line_is_named_by_number_and_reason(tmp_path: Path, bad: str, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line()}\n{bad}\n{line(id='3')}\n")
    with pytest.raises(BadData) as caught:
        read_examples(path)
    assert "Line 2 of data.jsonl" in str(caught.value) and reason in str(caught.value)
    kept, problems, _ = read_examples(path, skip_bad=True)
    assert len(kept) == 2 and len(problems) == 1


def test_an_empty_or_absent_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name in ("empty.jsonl", "absent.jsonl"):
        with pytest.raises(BadData, match=name):
            read_examples(tmp_path / name)


def other(**fields: Any) -> str:
    return json.dumps({**PROMPT, **fields})


def test_a_file_of_every_kind_is_read(tmp_path: Path) -> None:
    lines = [
        line(),
        other(completion=said("ho")),
        other(completion=said("ho"), label=True),
        other(completion=said("no"), label=False),
        other(completions=[said("b"), said("a"), said("c")], ranks=[3, 1, 3], none_is_good=True),
        other(left=said("a"), right=said("b"), choice="right"),
        other(left=said("a"), right=said("b"), choice="tie"),
        other(left=said("a"), right=said("b"), choice="both-bad", weight=3, comment=""),
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    examples, problems, unread = read_examples(tmp_path / "data.jsonl")
    kinds = ["pair", "demonstration", "thumb-up", "thumb-down", "ranking", "pair", "ranking", "ranking"]
    assert not problems and unread == ["comment", "weight"] and [e.judgement for e in examples] == kinds
    ranked = examples[4]
    assert (ranked.completions, ranked.ranks, ranked.none_is_good) == (("a", "b", "c"), (1, 2, 2), True)
    assert examples[5].completions == ("b", "a") and examples[6].ranks == (1, 1)
    assert len({e.key for e in examples}) == len(examples)


BAD_OTHERS = {
    other(completion=said("a"), label="yes"): "neither true nor false",
    other(completions=said("a"), ranks=[1, 2]): "two lists of one length",
    other(completions=[said("a")], ranks=[1]): "2 to 9 replies",
    other(completions=[said("a"), said("b")], ranks=[0, 1]): "from 1 (best)",
    other(completions=[said("a"), said(" ")], ranks=[1, 2]): "is empty",
    other(completions=[said("a"), said("b")], ranks=[1, 2], none_is_good=1): "none_is_good",
    other(left=said("a"), right=said("b"), choice="middle"): "none of",
    other(left=said("a"), choice="left"): 'there is no "right"',
    "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize(("bad", "reason"), BAD_OTHERS.items(), ids=BAD_OTHERS.values())
def test_a_bad_line_of_another_kind_is_named(tmp_path: Path, bad: str, reason: str) -> None:
    (tmp_path / "data.jsonl").write_text(bad)
    with pytest.raises(BadData) as caught:
        read_examples(tmp_path / "data.jsonl")
    assert "Line 1 of data.jsonl" in str(caught.value) and reason in str(caught.value)


def test_what_a_method_cannot_learn_from_is_said_with_the_methods_that_can() -> None:
    sentence = why_nothing([thumb(1), thumb(2, up=False)], "dpo")
    assert "only 1 thumbs up, 1 thumbs down" in sentence and sentence.endswith("Take --method auto or --method kto.")
    assert "--method rankings learns from rankings" in why_nothing([pair(1), demonstration(2)], "rankings")
    assert "All 2 judgements are ties" in why_nothing([], "auto", ties=2)
    for method in METHODS:
        assert "same way" in why_nothing([thumb(1)], method)


def test_only_what_happened_is_mentioned() -> None:
    assert explain({"pairs": 3, "equal": 0, "ties": 2, "split_badly": 1}) == [
        "2 preferred nothing (ties, or both bad); left out.",
        "1 have replies in a language that the tokenizer splits into more tokens than characters.",
    ]
