"""A training that was killed goes on where it was, and ends with the very adapter of one that never was."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from assistant.adapters import TENSORS
from assistant.settings import NightSettings
from finetune.batches import row_key
from finetune.checkpoints import Checkpoints, keep_checkpoints, training_key
from finetune.progress import Progress, ProgressBar, ProgressLog, silent
from finetune.scoring import row_logps
from finetune.train import Trained, train_adapter
from tests.finetune_support import encoded, encoded_rankings, encoded_thumbs
from tests.tiny import tiny_model

NIGHT = NightSettings(rank=4, alpha=8, epochs=3, sure_epochs=3, batch_examples=4, learning_rate=1e-2)
EXAMPLES = [*encoded(6), *encoded(4, seed=1, pairs=False), *encoded_rankings(3, 3), *encoded_thumbs(4)]
STEPS = 15
"""Three epochs of 17 examples, four a step."""
BASE = ("base", "float32 cpu", "template")


@pytest.fixture(scope="module")
def reference() -> dict[str, float]:
    model = tiny_model()
    return {row_key(row): row_logps(model, [row])[0] for e in EXAMPLES for row in [*e.rows, *e.mismatch]}


def train(reference: dict[str, float], checkpoints: Checkpoints | None = None, progress: Progress = silent) -> Trained:
    return train_adapter(tiny_model(), EXAMPLES, reference, NIGHT, progress, checkpoints)


@pytest.fixture(scope="module")
def whole(reference: dict[str, float]) -> Trained:
    return train(reference)


def often(folder: Path) -> Checkpoints:
    """Checkpoints that are written after nearly every step."""
    return Checkpoints(folder, time_share=1000.0)


class Killed(BaseException):
    """Stands for a kill: nothing of the project's catches it."""


def killed_at(*at: int) -> Progress:
    def progress(phase: str, step: int, total: int, **numbers: float) -> None:
        if step in at and "loss" in numbers:
            raise Killed

    return progress


def test_a_training_killed_at_ten_random_steps_gives_the_same_adapter_bit_for_bit(
    tmp_path: Path, reference: dict[str, float], whole: Trained
) -> None:
    for at in sorted(random.Random(0).sample(range(1, STEPS), 10)):
        with pytest.raises(Killed):
            train(reference, often(tmp_path), killed_at(at))
    went_on = train(reference, often(tmp_path))
    assert went_on.resumed_at_step == at + 1 > 2
    assert went_on.history == whole.history and len(whole.history) == STEPS
    assert all(torch.equal(went_on.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert whole.resumed_at_step == 0


def test_adamw_goes_on_with_the_very_state_that_it_had(tmp_path: Path, reference: dict[str, float]) -> None:
    with pytest.raises(Killed):
        train(reference, often(tmp_path), killed_at(5))
    saved = often(tmp_path).newest()
    assert saved and len(saved.history) == 5
    counters = [t for name, t in saved.tensors.items() if name.startswith("adamw.") and name.endswith(".step")]
    assert len(counters) == len(saved.tensors) // 4 and {float(t) for t in counters} == {5.0}


def test_the_last_two_checkpoints_are_kept_and_a_torn_one_is_passed_over(
    tmp_path: Path, reference: dict[str, float], whole: Trained
) -> None:
    with pytest.raises(Killed):
        train(reference, often(tmp_path), killed_at(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{step:08}.{kind}" for step in (6, 7) for kind in ("json", "safetensors")
    ]
    torn = tmp_path / "00000007.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert train(reference, often(tmp_path), killed_at()).resumed_at_step == 7
    for path in tmp_path.glob("*.json"):
        path.write_bytes(path.read_bytes()[:-1])
    again = train(reference, often(tmp_path))
    assert again.resumed_at_step == 0 and again.history == whole.history


def test_a_checkpoint_is_written_after_the_first_step_and_then_within_its_share_of_the_time(
    tmp_path: Path, reference: dict[str, float]
) -> None:
    with pytest.raises(Killed):
        train(reference, Checkpoints(tmp_path, time_share=1e-9), killed_at(9))
    assert [path.name for path in tmp_path.glob("*.json")] == ["00000001.json"]


def test_a_disk_that_takes_no_checkpoint_ends_no_training(
    tmp_path: Path, reference: dict[str, float], whole: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "full").write_text("")
    trained = train(reference, Checkpoints(tmp_path / "full" / "folder"))
    assert trained.history == whole.history and "No checkpoint could be written" in caplog.text


def test_progress_says_that_it_continues_and_reckons_the_time_left_from_there(
    tmp_path: Path, reference: dict[str, float]
) -> None:
    with pytest.raises(Killed):
        train(reference, often(tmp_path), killed_at(12))
    log = ProgressLog(tmp_path / "progress.jsonl")
    train(reference, often(tmp_path), log)
    log.close()
    first, second, *_ = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert (first["step"], first["total"], first["resumed_at_step"], first["eta_s"]) == (12, STEPS, 13, None)
    assert second["step"] == 13 and second["eta_s"] == pytest.approx(2 * second["seconds"], abs=0.06)


def test_the_bar_says_where_it_continues(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressBar() as bar:
        bar("train", 30, 80, resumed_at_step=31)
    assert "continues at step 31 of 80" in capsys.readouterr().err


def test_a_training_that_ends_well_deletes_its_checkpoints_and_one_that_begins_those_of_others(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for killed in ("old", "mine"):
        (root / killed).mkdir(parents=True)
    with pytest.raises(Killed), keep_checkpoints(tmp_path, "mine"):
        raise Killed
    assert [path.name for path in root.iterdir()] == ["mine"]
    with keep_checkpoints(tmp_path, "mine") as checkpoints:
        assert checkpoints
    assert list(root.iterdir()) == []


def test_a_training_beside_another_keeps_no_checkpoints_and_leaves_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoints" / "other").mkdir(parents=True)
    with FileLock(tmp_path / "checkpoints.lock"), keep_checkpoints(tmp_path, "mine") as checkpoints:
        assert checkpoints is None
    assert (tmp_path / "checkpoints" / "other").is_dir() and "keeps no checkpoints" in caplog.text


def keys_of_other_trainings() -> Iterator[str]:
    first, *others = EXAMPLES
    known = {"row": -1.0}
    for changed in (
        {"weight": first.weight / 2},
        {"flip": 0.2},
        {"ranks": (1, 2)},
        {"demonstrated": True},
        {"completions": first.completions[::-1]},
        {"prompt": (3,)},
    ):
        yield training_key(BASE, [replace(first, **changed), *others], known, NIGHT)
    yield training_key(BASE, [*others, first], known, NIGHT)
    yield training_key(BASE, EXAMPLES, {"row": -1.0000001}, NIGHT)
    for name, value in {"seed": 1, "beta": 0.2, "learning_rate": 0.02, "epochs": 4, "pair_loss": "ipo"}.items():
        yield training_key(BASE, EXAMPLES, known, NIGHT.model_copy(update={name: value}))
    for place in range(3):
        yield training_key([*BASE[:place], "another", *BASE[place + 1 :]], EXAMPLES, known, NIGHT)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        yield training_key(BASE, EXAMPLES, known, NIGHT)
    finally:
        torch.set_num_threads(threads)


def test_a_training_of_anything_else_has_another_key() -> None:
    mine = training_key(BASE, EXAMPLES, {"row": -1.0}, NIGHT)
    others = list(keys_of_other_trainings())
    assert mine == training_key(BASE, list(EXAMPLES), {"row": -1.0}, NIGHT.model_copy())
    assert len({mine, *others}) == len(others) + 1


@pytest.fixture
def data(tmp_path: Path, home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pairs, and a home with a cache of its own, whose trainings take a second or two."""
    monkeypatch.setenv("NIGHTSCHOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    return pairs(tmp_path / "data.jsonl")


def pairs(path: Path, count: int = 20, start: int = 0) -> Path:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", f"What is {n} and {n + 1}?"),
            "chosen": said("assistant", f"What do you think of {n}?"),
            "rejected": said("assistant", f"It is {2 * n + 1}."),
        }
        for n in range(start, start + count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def command(data: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "finetune", "train", "--json", "--data", str(data), "--out", str(out)]


def run_to_the_end(data: Path, out: Path) -> dict[str, Any]:
    done = subprocess.run(command(data, out), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def kill_after_checkpoint(data: Path, out: Path, cache: Path, wait_s: float) -> None:
    """Run the command and kill -9 it so long after it wrote a checkpoint."""
    before = set(cache.glob("checkpoints/*/*.json"))
    process = subprocess.Popen(command(data, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not set(cache.glob("checkpoints/*/*.json")) - before and process.poll() is None:
        time.sleep(0.005)
    time.sleep(wait_s)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had ended before it was killed"


def kill_and_compare(data: Path, tmp_path: Path, kills: int, longest_s: float) -> None:
    """Train once whole; then kill the same command again and again, and let it end."""
    whole = run_to_the_end(data, tmp_path / "whole")
    assert whole["resumed_at_step"] == 0 and not list(tmp_path.glob("cache/checkpoints/*"))
    drawn = random.Random(kills)
    for _ in range(kills):
        kill_after_checkpoint(data, tmp_path / "out", tmp_path / "cache", drawn.uniform(0, longest_s))
        assert not (tmp_path / "out").exists()
    went_on = run_to_the_end(data, tmp_path / "out")
    assert went_on["resumed_at_step"] > kills and went_on["adapter"] == whole["adapter"]
    assert (tmp_path / "out" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    assert not list(tmp_path.glob("cache/checkpoints/*"))


@pytest.mark.slow
def test_a_command_killed_with_signal_nine_goes_on_when_given_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__EPOCHS", "30")
    kill_and_compare(data, tmp_path, kills=2, longest_s=0.3)


@pytest.mark.slow
def test_a_command_killed_ten_times_gives_the_same_adapter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__EPOCHS", "80")
    kill_and_compare(data, tmp_path, kills=10, longest_s=0.2)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_a_training_of_the_real_model_that_was_killed_gives_the_same_adapter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", "embedded")
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__BATCH_EXAMPLES", "2")
    kill_and_compare(pairs(data, 8), tmp_path, kills=3, longest_s=3.0)
