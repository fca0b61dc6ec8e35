"""A preference planted in pairs is learned by a reward model on the real weights."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from finetune.__main__ import main

pytestmark = pytest.mark.model

Said = tuple[str, str]
"""A reply that ends with a question, and one that does not."""
SUBJECTS = (
    "Chess",
    "Algebra",
    "Baking",
    "Sailing",
    "Logic",
    "Drawing",
    "Geometry",
    "Gardening",
    "Spelling",
    "History",
    "Biology",
    "Music",
    "Weaving",
    "Grammar",
)
LEARNED: tuple[Said, ...] = (
    ("Which part of {} do you find hard?", "The hardest part of {} is the start."),
    ("Let us see. What do you know of {}?", "Let us see. Everybody knows {} by now."),
    ("What would you try first with {}?", "You should try the simple things first with {}, and slowly."),
    ("{} can be learned. Who could help you with it?", "{} can be learned. A book helps."),
    ("Where have you met {} before?", "You have met {} before, at school and at home."),
    ("I like {}. When do you have time for it?", "I like {}. Take your time."),
)
OTHERS: tuple[Said, ...] = (
    ("Why does {} matter to you?", "{} matters to many people, young and old."),
    (
        "There is a lot to say of {}. Shall we begin with its name?",
        "There is a lot to say of {}. Its name comes first.",
    ),
    ("How would you explain {} to a friend?", "I would explain {} to a friend with a picture."),
)


def write(path: Path, subjects: Sequence[str], replies: Sequence[Said]) -> str:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Tell me about {subject}."}],
            "chosen": [{"role": "assistant", "content": asks.format(subject)}],
            "rejected": [{"role": "assistant", "content": tells.format(subject)}],
        }
        for subject, (asks, tells) in product(subjects, replies)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_a_reward_model_prefers_questions_after_pairs_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subjects and wordings are others in the examination, and the longer reply is no help."""
    data = write(tmp_path / "a.jsonl", SUBJECTS[:6], LEARNED)
    other = write(tmp_path / "b.jsonl", SUBJECTS[6:], OTHERS)
    out = str(tmp_path / "out")
    assert main(["train", "--method", "reward", "--data", data, "--out", out, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["pairs"] == 36 and trained["epochs"] == 1
    assert main(["evaluate", out, "--data", other, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 24 and found["length_baseline"] < 0.6
    assert found["low"] > 0.5, found
