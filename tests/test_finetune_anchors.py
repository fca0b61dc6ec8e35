"""Anchors: the base's own plain replies, the same every night, and never against a vote."""

from pathlib import Path

import pytest

from assistant.engine import Message
from assistant.presets import PLAIN, SOCRATIC
from finetune import anchors
from finetune.anchors import ANCHOR_PROMPTS, REPLY_TOKENS, anchor_examples, anchor_messages
from finetune.evaluate import FIXED_PROMPTS
from finetune.examples import Example
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ANCHOR_PROMPTS.read_text(encoding="utf-8").splitlines()


def voted(text: str, system: str = SOCRATIC.system) -> Example:
    """Make an example of one rewritten reply."""
    prompt = (Message(role="system", content=system), Message(role="user", content=text))
    return Example(text, prompt, ("Why?",), True, 1.0, "1", "c", "", "rewrite", ())


EXAMPLES = [voted(f"How many are {i} and {i}?") for i in range(10)]


def test_no_anchor_is_a_prompt_of_the_examination() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) >= 60
    assert not set(PROMPTS) & set(FIXED_PROMPTS.read_text(encoding="utf-8").splitlines())


def test_shipped_and_own_prompts_take_turns_under_the_plain_preset() -> None:
    found = anchor_messages(EXAMPLES)
    assert all(messages[0]["content"] == PLAIN.system for messages in found)
    assert [messages[1]["content"] for messages in found[:4]] == [
        PROMPTS[0],
        "How many are 0 and 0?",
        PROMPTS[1],
        "How many are 1 and 1?",
    ]
    assert len(found) == len(PROMPTS) + 10


def test_what_was_voted_on_under_the_plain_preset_is_no_anchor() -> None:
    decided = [voted("How many are 3 and 3?", PLAIN.system), voted(PROMPTS[0], PLAIN.system)]
    texts = [messages[1]["content"] for messages in anchor_messages([*EXAMPLES, *decided])]
    assert "How many are 3 and 3?" not in texts
    assert PROMPTS[0] not in texts


def test_anchors_are_demonstrations_within_their_length_and_the_same_again(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    first = anchor_examples(model, tokenizer, EXAMPLES, 1.2, tmp_path / "one", "base")
    assert len(first) == 12
    assert all(a.demonstrated and not a.is_pair and 1 <= len(a.completions[0]) <= REPLY_TOKENS for a in first)
    assert len({a.completions for a in first}) > 1
    assert anchor_examples(model, tokenizer, EXAMPLES, 1.2, tmp_path / "two", "base") == first


def test_votes_under_the_plain_preset_have_no_anchors(tmp_path: Path) -> None:
    """Else the base's plain replies would hold back what people ask of plain replies."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plainly = [voted(f"How many are {i} and {i}?", PLAIN.system) for i in range(20, 26)]
    assert len(anchor_examples(model, tokenizer, [*EXAMPLES, *plainly], 0.5, tmp_path, "base")) == 5
    assert anchor_examples(model, tokenizer, plainly, 0.5, tmp_path, "base") == []


def test_a_reply_is_generated_once_for_each_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    first = anchor_examples(model, tokenizer, EXAMPLES, 0.5, tmp_path, "base")
    assert anchor_examples(tiny_model(seed=1), tokenizer, EXAMPLES, 0.5, tmp_path, "other") != first
    monkeypatch.setattr(anchors, "generate_replies", lambda *_: pytest.fail("generated again"))
    assert anchor_examples(model, tokenizer, EXAMPLES, 0.5, tmp_path, "base") == first


def test_a_night_keeps_no_reply_that_it_has_no_use_for(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    replies: list[int] = []
    for share in (0.8, 0.4):
        anchor_examples(model, tokenizer, EXAMPLES, share, tmp_path, "base")
        lines = (tmp_path / "anchors" / "base.jsonl").read_text().splitlines()
        replies.append(sum(line.startswith("{") for line in lines))
    assert replies == [8, 4]


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    first = anchor_examples(model, tokenizer, EXAMPLES, 0.4, tmp_path, "base")
    path = tmp_path / "anchors" / "base.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert anchor_examples(model, tokenizer, EXAMPLES, 0.4, tmp_path, "base") == first
    assert path.read_text().count('"key"') == 5


def test_a_share_of_nothing_generates_nothing(tmp_path: Path) -> None:
    assert anchor_examples(tiny_model(), tiny_tokenizer(), EXAMPLES, 0.0, tmp_path, "base") == []
