"""Training and examination on the real weights."""

import json
from pathlib import Path

import pytest

from finetune.__main__ import main
from tests.finetune_support import fill_store
from tests.new_store import open_in

pytestmark = pytest.mark.model

SUBJECTS = (
    "apples",
    "trains",
    "tiles",
    "books",
    "lamps",
    "coins",
    "boats",
    "shirts",
    "seeds",
    "cups",
    "steps",
    "pages",
)


def preferences(path: Path, subjects: tuple[str, ...]) -> Path:
    rows = []
    for n, subject in enumerate(subjects):
        question = f"Ana has {n + 3} {subject} and buys {n + 4} more. How many {subject} has she now?"
        chosen, rejected = f"How many {subject} does Ana begin with?", f"She has {2 * n + 7} {subject} now."
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_short_training_on_the_real_model_carries_over_to_other_questions(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__EPOCHS", "3")
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__BATCH_EXAMPLES", "4")
    data, other = preferences(tmp_path / "a.jsonl", SUBJECTS[:8]), preferences(tmp_path / "b.jsonl", SUBJECTS[8:])
    out = str(tmp_path / "out")
    assert main(["train", "--method", "dpo", "--data", str(data), "--out", out, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["pairs_per_s"] > 0 and trained["epochs"] == 3
    assert main(["evaluate", out, "--data", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == 1.0 and found["n"] == 4 and found["numeric_form"] == "int4"
    assert found["base_perplexity"] < 25 and found["perplexity"] < 2 * found["base_perplexity"]
    assert found["replies"] == 20


def test_the_real_model_judges_and_reports_however_badly(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is too small to judge well; that it runs, is counted, and votes under its own name is what is asked."""
    home.mkdir()
    store = open_in(home / "nightschool.db")
    fill_store(store, [f"What are {subject}?" for subject in SUBJECTS[:3]])
    store.close()
    assert main(["judge", "--engine", "local", "--limit", "3", "--revise", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["judge"].startswith("ai:gguf-")
    assert told["pairs"] == told["choices"] + told["ties"] + told["unreadable"] == 3
    assert told["answers"] + told["unparsable"] == 6 and told["too_long"] == 0
    assert told["revision"]["replies"] == 3
