"""Who trains in the training bench, each in a process of its own on the same work: Nightschool and TRL.

Measures and does not judge: training.py compares what comes back.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from assistant.arithmetic import multiplies_bf16
from assistant.loading import Base, load_tokenizer, load_trainable
from assistant.settings import NightSettings
from finetune.batches import Encoded, encode_examples, plan_steps
from finetune.examples import Example
from finetune.lora import attach_lora
from finetune.train import schedule

ROOT = Path(__file__).parents[1]
RIVAL = ROOT / "bench" / "rivals" / "trl_dpo.py"
OURS, AGAIN, TUNED, DEFAULTS = "Nightschool", "Nightschool, next night", "TRL, tuned", "TRL, defaults"


class DidNotFinish(Exception):
    """A contender ended with an error, for want of memory perhaps."""


class NotEqual(Exception):
    """The contenders did not do the same work, so that their times say nothing; says where they part."""


@dataclass(frozen=True)
class Work:
    """What is trained on: examples in the order of one epoch, a step after the other."""

    name: str
    examples: tuple[Example, ...]
    """In the order that a night is given them."""
    steps: tuple[tuple[Encoded, ...], ...]
    """In the order that they are learned from."""


@dataclass(frozen=True)
class Result:
    """One contender's training."""

    work: str
    contender: str
    per_s: float
    """Pairs or rankings a second."""
    peak_gb: float
    losses: tuple[float, ...]
    apart: float
    """The largest relative distance of a step's loss from ours."""
    mean_apart: float
    """That of the mean over the steps."""
    adapter: str
    """File or folder."""


@dataclass(frozen=True)
class Bench:
    """Where things lie while the bench runs."""

    base: Base
    folder: Path
    rival_python: Path
    threads: int
    start: Path
    """The adapter that everybody starts from."""

    def run(self, command: Sequence[str], job: dict[str, Any]) -> dict[str, Any]:
        """Run a contender in a process of its own and return its answer.

        Raises:
            DidNotFinish: its last words.
        """
        sys.stderr.write(f"{' '.join(command[1:])} …\n")
        asked, answered = self.folder / "job.json", self.folder / "answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(self.folder / "hf")}
        threads = {"OMP_NUM_THREADS": str(self.threads), "TQDM_DISABLE": "1"}
        done = subprocess.run(
            [*command, str(asked), str(answered)],
            env=os.environ | offline | threads,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise DidNotFinish(f"{command[-1]} ended with status {done.returncode}; its last words: {last[0]}")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return answer


def choose(base: Base, examples: Sequence[Example], count: int, longest: int) -> list[Example]:
    """Take the first examples whose rows fit, so that nobody shortens anything."""
    tokenizer = load_tokenizer(base)
    encoded, _ = encode_examples(tokenizer, examples, 1 << 20)
    fitting = [example for example, e in zip(examples, encoded, strict=True) if e.width <= longest]
    if len(fitting) < count:
        raise SystemExit(f"There are {len(fitting)} examples of at most {longest} tokens, and {count} are wanted.")
    return fitting[:count]


def plan(base: Base, name: str, examples: Sequence[Example], night: NightSettings) -> Work:
    """List the steps that a night takes; inside a step the shorter examples first."""
    encoded, _ = encode_examples(load_tokenizer(base), examples, night.max_tokens)
    steps = plan_steps([1] * len(encoded), night.batch_examples, night.seed)
    ordered = (tuple(sorted((encoded[i] for i in step), key=lambda e: e.width)) for step in steps)
    return Work(name, tuple(examples), tuple(ordered))


def write_start(base: Base, night: NightSettings, path: Path) -> None:
    """Write the adapter that a night starts from."""
    model = load_trainable(base)
    head = model.get_output_embeddings()
    with attach_lora(model, head, rank=night.rank, alpha=night.alpha, seed=night.seed) as lora:
        save_file(lora.tensors(), path)


def train_ours(bench: Bench, work: Work, night: NightSettings, name: str = OURS, *, exact: bool = False) -> Result:
    """Train as a night does, or in float32; a second time finds its reference in the cache."""
    examples = [{"messages": e.prompt, "completions": e.completions, "ranks": e.ranks} for e in work.examples]
    answer = bench.run(
        [sys.executable, "-m", "bench.own_dpo"],
        {
            "folder": str(bench.folder / work.name),
            "model": str(bench.base.folder),
            "threads": bench.threads,
            "night": night.model_dump(),
            "examples": examples,
            "exact": exact,
        },
    )
    return _result(work, name, answer, answer["adapter"])


def train_theirs(
    bench: Bench, work: Work, night: NightSettings, batch: int, *, tuned: bool = True, exact: bool = False
) -> Result:
    """Train with TRL on every pair of the same steps, tuned or with its defaults, or in float32.

    Raises:
        NotEqual: its tokens or learning rates are others.
    """
    tokenizer = load_tokenizer(bench.base)
    rows = [(e.prompt, e.completions[i], e.completions[j]) for step in work.steps for e in step for i, j in e.pairs]
    pairs_a_step = sum(len(e.pairs) for e in work.steps[0])
    rates = [night.learning_rate * schedule(number, len(work.steps)) for number in range(1, len(work.steps) + 1)]
    adapter = bench.folder / f"{work.name}-{batch}-{tuned}.safetensors"
    answer = bench.run(
        [str(bench.rival_python), str(RIVAL)],
        {
            "folder": str(bench.folder / "trl"),
            "model": str(bench.base.folder),
            "threads": bench.threads,
            "start": str(bench.start),
            "adapter": str(adapter),
            "pairs": [
                dict(zip(("prompt", "chosen", "rejected"), map(tokenizer.decode, row), strict=True)) for row in rows
            ],
            "rates": rates,
            "rank": night.rank,
            "alpha": night.alpha,
            "beta": night.beta,
            "batch": batch,
            "accumulate": pairs_a_step // batch,
            "tuned": tuned,
            "exact": exact,
            "bf16_is_fast": multiplies_bf16(),
        },
    )
    if [tuple(map(tuple, row)) for row in answer["rows"]] != rows:
        raise NotEqual(f"TRL made other tokens of the {work.name}.")
    if not all(math.isclose(a, b) for a, b in zip(answer["rates"], rates, strict=True)):
        raise NotEqual(f"TRL's learning rates were {answer['rates']}, not {rates}.")
    return _result(work, f"{TUNED if tuned else DEFAULTS}, batch {batch}", answer, str(adapter))


def _result(work: Work, name: str, answer: dict[str, Any], adapter: str) -> Result:
    per_s = len(work.examples) / answer["seconds"]
    sys.stderr.write(f"{name}: {per_s:.3f} {work.name} a second, at most {answer['peak_gb']:.1f} GB\n")
    return Result(work.name, name, per_s, answer["peak_gb"], tuple(answer["losses"]), 0.0, 0.0, adapter)
