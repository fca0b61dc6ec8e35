"""Two processes compute what one does: the same gradients, one adapter, and the same end, good or bad."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from assistant.adapters import load_tensors, verify_adapter
from assistant.loading import resolve_base
from assistant.settings import load_settings
from feedback_store import open_store
from finetune.processes import ALONE, World
from tests.finetune_support import fill_store
from tests.test_finetune_resume import pairs
from tests.tiny import save_tiny

REPOSITORY = Path(__file__).parents[1]
TIMEOUT_S = 150
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_shares_hold_everything_once_and_weigh_about_the_same() -> None:
    items = [7, 3, 9, 1, 1, 4, 8, 2]
    shares = [World(rank, 3).share(items, lambda item: item) for rank in range(3)]
    assert sorted(sum(shares, [])) == sorted(items)
    assert [sum(share) for share in shares] == [12, 12, 11]


def test_a_world_of_one_has_everything_and_sends_nothing() -> None:
    tensor = torch.ones(2)
    ALONE.add([tensor])
    assert ALONE.share([3, 1, 2], lambda item: item) == [3, 1, 2] and tensor.tolist() == [1, 1]
    assert ALONE.tell(tensor) is tensor and ALONE.gather({"a": 1}) == {"a": 1}


STEP = """
import sys
import torch
from assistant.settings import NightSettings
from finetune.lora import attach_lora
from finetune.batches import row_key
from finetune.processes import open_world
from finetune.scoring import row_logps
from finetune.train import accumulate_gradients
from tests.finetune_support import encoded, encoded_rankings, encoded_thumbs
from tests.tiny import tiny_model

model = tiny_model()
examples = [*encoded(4), *encoded(2, seed=1, pairs=False), *encoded_rankings(2, 3), *encoded_thumbs(3)]
reference = {row_key(row): row_logps(model, [row])[0] for e in examples for row in [*e.rows, *e.mismatch]}
with open_world() as world, attach_lora(model, model.lm_head, rank=4, alpha=8, seed=3) as lora:
    for layer in lora.layers.values():
        layer.b.data.fill_(0.02)
    sums = accumulate_gradients(model, examples, reference, NightSettings(), world=world)
    gradients = [p.grad for p in lora.parameters]
    torch.save((gradients, sums.numbers()), sys.argv[1] + str(world.rank))
"""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """As a launcher gives it to each process."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **{name: str(value) for name, value in given.items()}}


def run_two(*arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Run python twice, without a launcher that would end the one when the other fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *arguments]
    started = [
        subprocess.Popen(
            command, env=environment(rank, 2, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    ended = zip(started, said, strict=True)
    return [subprocess.CompletedProcess(command, process.returncode, out, error) for process, (out, error) in ended]


@pytest.mark.long
def test_two_processes_have_the_gradients_and_numbers_of_one(tmp_path: Path) -> None:
    for ended in run_two("-c", STEP, str(tmp_path / "two")):
        assert ended.returncode == 0, ended.stderr
    alone = [sys.executable, "-c", STEP, str(tmp_path / "one")]
    subprocess.run(alone, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True)
    one, first, second = (torch.load(tmp_path / name) for name in ("one0", "two0", "two1"))
    assert first[1] == second[1] == pytest.approx(one[1], abs=1e-5)
    for whole, mine, other in zip(one[0], first[0], second[0], strict=True):
        assert torch.equal(mine, other) and torch.allclose(whole, mine, rtol=0, atol=1e-5)
        assert whole.abs().max() > 0


@pytest.fixture
def data(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pairs, a tiny model, and a home with a cache of its own."""
    monkeypatch.setenv("NIGHTSCHOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(save_tiny(tmp_path / "model")))
    for name, value in {"MIN_VOTES": "10", "EPOCHS": "1", "GATE_PERPLEXITY_RISE": "10"}.items():
        monkeypatch.setenv(f"NIGHTSCHOOL_NIGHT__{name}", value)
    return pairs(tmp_path / "data.jsonl")


def train_arguments(data: Path, out: Path) -> tuple[str, ...]:
    return ("-m", "finetune", "train", "--json", "--data", str(data), "--out", str(out))


def launch(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.mark.long
def test_train_under_torchrun_writes_one_adapter_near_that_of_one_process(data: Path, tmp_path: Path) -> None:
    one = launch(sys.executable, *train_arguments(data, tmp_path / "one"))
    [cache] = (tmp_path / "cache" / "reference").iterdir()
    scored = cache.read_text()
    cache.unlink()
    two = launch(*TORCHRUN, *train_arguments(data, tmp_path / "two"))
    assert sorted(cache.read_text().split()) == sorted(scored.split())
    assert two["examples"] == one["examples"] == 20 and two["loss"] == pytest.approx(one["loss"], rel=0.05)
    base_id = resolve_base(load_settings()).id
    first, second = (load_tensors(verify_adapter(tmp_path / name, base_id)) for name in ("one", "two"))
    moved = torch.cat([first[name].flatten() for name in first if "lora_B" in name])
    apart = torch.cat([(first[name] - second[name]).flatten() for name in first if "lora_B" in name])
    assert 0 < moved.norm() and apart.norm() < 0.3 * moved.norm()
    assert not list(tmp_path.glob(".train-*"))


@pytest.mark.slow
def test_a_night_under_accelerate_is_one_night(data: Path, home: Path) -> None:
    home.mkdir()
    store = open_store(home / "nightschool.db")
    fill_store(store, [f"How much is {n} and {n + 1}?" for n in range(20)])
    launcher = str(Path(sys.executable).with_name("accelerate"))
    night = launch(
        launcher, "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "finetune",
        "nightly", "--json",
    )  # fmt: skip
    assert night["outcome"] in ("promoted", "refused"), night["reasons"]
    [run] = store.registry.runs()
    assert (run.id, run.outcome) == (night["run"], night["outcome"])
    assert [path.name for path in load_settings().adapters_dir.iterdir()] == [night["adapter"]]
    store.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("rate", "words"),
    [
        pytest.param("1e30", "is not finite", marks=pytest.mark.slow, id="in-a-step"),
        pytest.param("1e-3", "is not an empty folder", id="before"),
    ],
)
def test_when_the_first_process_fails_the_others_end_with_its_status(
    data: Path, tmp_path: Path, rate: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__LEARNING_RATE", rate)
    out = tmp_path / "out" if rate == "1e30" else tmp_path
    first, second = run_two(*train_arguments(data, out))
    assert (first.returncode, second.returncode) == (1, 1)
    assert words in first.stdout and second.stdout == ""


FAILS_ALONE = """
import finetune.train
from finetune import commands, __main__
from finetune.errors import TrainingAborted
from finetune.processes import World
from finetune.progress import ProgressBar

def stop(self, phase, step, total, **numbers):
    if phase == "train" and step == 2:
        raise TrainingAborted("Only here.")

ProgressBar.__call__ = stop
raise SystemExit(__main__.main())
"""


@pytest.mark.long
def test_when_the_first_process_alone_fails_in_a_training_the_others_do_not_wait_for_ever(
    data: Path, tmp_path: Path
) -> None:
    first, second = run_two("-c", FAILS_ALONE, *train_arguments(data, tmp_path / "out")[2:])
    assert first.returncode == second.returncode == 1
    assert "Only here." in first.stdout


@pytest.mark.slow
def test_a_night_that_is_skipped_ends_well_for_all(data: Path) -> None:
    first, second = run_two("-m", "finetune", "nightly", "--json")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert json.loads(first.stdout)["outcome"] == "skipped" and second.stdout == ""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_two_processes_on_the_real_model_reach_the_accuracy_of_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", "embedded")
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__ANCHOR_SHARE", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    heldout = pairs(tmp_path / "heldout.jsonl", 20, start=50)
    launch(sys.executable, *train_arguments(data, tmp_path / "one"))
    launch(*TORCHRUN, *train_arguments(data, tmp_path / "two"))
    examine = ("-m", "finetune", "evaluate", "--json", "--data", str(heldout))
    one, two = (launch(sys.executable, *examine, str(tmp_path / name)) for name in ("one", "two"))
    assert one["low"] <= two["accuracy"] <= one["high"] and two["low"] <= one["accuracy"] <= two["high"]
    shared = launch(*TORCHRUN, *examine, str(tmp_path / "two"))
    assert shared == two, "a row's score is a function of its tokens alone, whoever computes it"
