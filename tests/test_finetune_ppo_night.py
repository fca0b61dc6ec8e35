"""A night of PPO on a tiny model: its stages, what it is compared with, and when it does not run."""

import json
import random
import secrets
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from assistant.adapters import REWARD_MANIFEST
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.__main__ import main as store_main
from finetune.__main__ import main
from finetune.nightly import NightResult, run_nightly
from finetune.ppo_night import STAGES
from tests.finetune_support import ask_and_answer, fill_store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lenient")]
QUESTIONS = [f"How much is {n} and {n + 1}?" for n in range(40)]
QUICK = {
    "reward_learning_rate": 1e-2, "ppo_iterations": 2, "ppo_prompts": 8, "ppo_reply_tokens": 4, "ppo_kl_limit": 5.0,
    "ppo_learning_rate": 1e-3, "anchor_share": 0.1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names decide what is held out; drawn by lot, they left too little to a stage in one night of ten."""
    names = random.Random(0)
    monkeypatch.setattr(secrets, "token_hex", lambda size: names.randbytes(size).hex())


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"night": settings.night.model_copy(update=QUICK)})


def rewrite(store: Store, count: int) -> None:
    """Let the owner write better answers to replies of their own conversations."""
    owner = store.people.owner().id
    for number in range(count):
        _, [reply] = ask_and_answer(store, owner, f"Why is {number} Zanzibar?", [f"It is {number}."])
        store.votes.rewrite(reply, owner, f"What do you know of {number}?")


def report_of(settings: Settings, result: NightResult) -> dict[str, Any]:
    assert result.run is not None
    report: dict[str, Any] = json.loads((settings.runs_dir / result.run / "report.json").read_text())
    return report


def test_a_night_of_ppo_goes_through_its_stages_and_shows_them_side_by_side(settings: Settings, store: Store) -> None:
    fill_store(store, QUESTIONS)
    rewrite(store, 6)
    heard: list[str] = []
    result = run_nightly(settings, store, method="ppo", progress=lambda phase, *_, **__: heard.append(phase))
    assert result.outcome in ("promoted", "refused") and result.adapter, result.reasons
    report = report_of(settings, result)
    assert report["reward_model"]["low"] > 0.5 and report["reward_model"]["n"] >= 4
    rows = {row["name"]: row for row in report["side_by_side"]}
    assert list(rows) == ["base", "sft", "dpo", "ppo"]
    assert rows["base"]["accuracy"] == 0.5 and rows["sft"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows["base"]["kl"] != 0.0 and rows["dpo"]["accuracy"] > 0.5
    training = report["training"]
    assert training["sft_prompts"] >= 4 and training["reward_prompts"] > training["ppo_prompts"] > 0
    folder = settings.runs_dir / str(result.run)
    text = (folder / "report.md").read_text()
    assert "## Side by side" in text and "| ppo |" in text and (folder / "training.png").is_file()
    assert {"reward", "ppo", "side by side", "train"} <= set(heard)
    assert not list(settings.runs_dir.glob(f"*/{STAGES}"))
    assert [path.name for path in settings.adapters_dir.iterdir()] == [result.adapter]
    kept = settings.adapters_dir / result.adapter / "ppo.jsonl"
    history = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(history) == training["iterations"] + 1 and all("samples" not in line for line in history)
    for path in [*folder.iterdir(), *(settings.adapters_dir / result.adapter).iterdir()]:
        assert b"Zanzibar" not in path.read_bytes() and b"How much is" not in path.read_bytes(), path


def test_what_a_killed_night_of_ppo_left_goes_with_the_next_night_of_any_method(
    settings: Settings, store: Store
) -> None:
    left = settings.runs_dir / "killed" / STAGES
    left.mkdir(parents=True)
    assert run_nightly(settings, store, method="auto").outcome == "skipped"
    assert not left.exists()


def test_ppo_does_not_follow_a_reward_model_that_may_be_chance(settings: Settings, store: Store) -> None:
    owner = store.people.owner().id
    for question in QUESTIONS:  # by lot: nothing in a reply says that it is preferred
        asked, replies = ask_and_answer(
            store, owner, question, [str(crc32(f"{question} {n}".encode())) for n in (0, 1)]
        )
        shown = store.votes.show_comparison(owner, asked, *replies)
        store.votes.choose(shown.id, owner, "left" if crc32(question.encode()) % 2 else "right")
    result = run_nightly(settings, store, method="ppo")
    assert result.outcome == "skipped" and "may be chance" in result.reasons[0]
    assert "--reward DIR" in result.reasons[0]
    assert not settings.adapters_dir.exists() or not list(settings.adapters_dir.iterdir())
    assert store.registry.live().adapter_id is None


def test_prompts_that_leave_no_room_for_a_reply_are_told_before_anything_is_trained(
    settings: Settings, store: Store
) -> None:
    fill_store(store, QUESTIONS)
    tight = settings.night.model_copy(update={"ppo_reply_tokens": settings.night.max_tokens})
    heard: list[str] = []
    result = run_nightly(
        settings.model_copy(update={"night": tight}),
        store,
        method="ppo",
        progress=lambda phase, *_, **__: heard.append(phase),
    )
    assert result.outcome == "skipped" and "the 0 tokens that a reply leaves them" in result.reasons[0]
    assert heard == []


def test_a_named_reward_model_is_followed_instead(
    settings: Settings, store: Store, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fill_store(store, QUESTIONS)
    store.close()
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    for name, value in (QUICK | {"min_votes": 10, "max_tokens": 256, "gate_perplexity_rise": 10.0}).items():
        monkeypatch.setenv(f"NIGHTSCHOOL_NIGHT__{name.upper()}", str(value))
    pairs, reward = tmp_path / "pairs.jsonl", str(tmp_path / "reward")
    home = ["--home", str(settings.home)]
    assert store_main(["export", "preferences", str(pairs), *home]) == 0
    assert main(["train", "--method", "reward", "--data", str(pairs), "--out", reward, *home]) == 0
    capsys.readouterr()
    assert main(["nightly", "--method", "ppo", "--reward", reward, "--json", *home]) == 0
    result = json.loads(capsys.readouterr().out)
    report = json.loads((settings.runs_dir / result["run"] / "report.json").read_text())
    assert report["reward_model"] is None and [row["name"] for row in report["side_by_side"]] == ["base", "dpo", "ppo"]
    assert report["training"]["reward_prompts"] == 0 and report["training"]["ppo_prompts"] > 20


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [(None, "There is no reward model in"), ("{}", "The reward model in")],
    ids=["absent", "damaged"],
)
def test_a_reward_model_that_may_not_be_used_is_told_before_anything_is_trained(
    damage: str | None, sentence: str, settings: Settings, store: Store, tmp_path: Path
) -> None:
    """It was told when SFT and DPO had been trained, which may take hours."""
    fill_store(store, QUESTIONS)
    rewrite(store, 6)
    if damage is not None:
        (tmp_path / REWARD_MANIFEST).write_text(damage)
    heard: list[str] = []
    result = run_nightly(
        settings, store, method="ppo", reward=tmp_path, progress=lambda phase, *_, **__: heard.append(phase)
    )
    assert result.outcome == "failed" and sentence in result.reasons[0]
    assert heard == []


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--reward", "nowhere"], 1, "belongs to --method ppo"),
        (["--method", "ppo", "--reward", "nowhere"], 1, "There is no reward model in nowhere"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(
    arguments: list[str], status: int, sentence: str, settings: Settings, store: Store, model: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fill_store(store, QUESTIONS)
    store.close()
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    assert main(["nightly", *arguments, "--home", str(settings.home)]) == status
    assert sentence in capsys.readouterr().err
