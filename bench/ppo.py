"""How far PPO lifts a reward, and at what KL: python -m bench.ppo [--reward address learned] [--iterations N]

address: the share of a reply's words that address the reader (you, your, …), which a tutor who turns to the student
does more of. The plain base does it little, and the limit of 1 is far away. The prompts are those of the anchors, a
quarter of them kept to examine on.

learned: a reward model, trained here on pairs in which the reply that ends with a question is the better one. It is
trained on some problems, PPO asks others, and both are examined on problems of other kinds.

Each is examined with fresh replies of the start and of the trained policy. Prints the numbers; --out also gets the
curves and a line an iteration.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.loading import Base, load_tokenizer, load_trainable, resolve_base
from assistant.prompt import encode_prompt
from assistant.settings import Settings, load_settings
from bench.pairs import plain_prompt
from bench.planted import write_pairs
from finetune.anchors import ANCHOR_PROMPTS
from finetune.attention import short_rows
from finetune.batches import Row
from finetune.ppo import train_policy
from finetune.ppo_models import attach_models, sample_scored
from finetune.ppo_workshop import write_history
from finetune.problems import make_problems
from finetune.problems_unseen import TEST_KINDS
from finetune.problems_voted import VOTED_KINDS
from finetune.progress import ProgressBar
from finetune.report import plot_history
from finetune.reward_folder import SavedReward, read_reward
from finetune.reward_workshop import train_and_write_reward

ADDRESSING = {"you", "your", "yours", "yourself"}
REPLY_TOKENS = 48
SAMPLES = 4
"""Replies to each held-out prompt."""
REWARD_PAIRS, PROBLEMS, EXAMINED = 160, 160, 24


@dataclass(frozen=True)
class Task:
    """What PPO is shown with."""

    training: list[str]
    heldout: list[str]
    learned: SavedReward | None
    """None is `address_share`."""


def address_share(rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
    """Give each reply the share of its words that address the reader."""
    shares = []
    for text in texts:
        words = re.findall(r"[a-z]+", text.lower())
        shares.append(sum(word in ADDRESSING for word in words) / max(1, len(words)))
    return torch.tensor(shares)


def address_task() -> Task:
    """Take the anchors' prompts."""
    asked = ANCHOR_PROMPTS.read_text(encoding="utf-8").splitlines()
    return Task([text for i, text in enumerate(asked) if i % 4], asked[::4], None)


def learned_task(base: Base, settings: Settings) -> Task:
    """Train a reward model on pairs of some problems; other ones are asked."""
    problems = make_problems(VOTED_KINDS, REWARD_PAIRS + PROBLEMS, seed=0)
    pairs = write_pairs(problems[:REWARD_PAIRS], random.Random(0))
    with tempfile.TemporaryDirectory() as name, ProgressBar() as bar:
        train_and_write_reward(base, settings, pairs, Path(name) / "reward", "bench", bar)
        learned = read_reward(Path(name) / "reward", base.id)
    asked = list(dict.fromkeys(problem.text for problem in problems[REWARD_PAIRS:]))
    judged = {problem.text for problem in problems[:REWARD_PAIRS]}
    heldout = [problem.text for problem in make_problems(TEST_KINDS, EXAMINED, seed=0)]
    return Task([text for text in asked if text not in judged], heldout, learned)


def lift(base: Base, settings: Settings, task: Task, out: Path | None, name: str) -> dict[str, Any]:
    """Train a policy, and examine it beside the start on held-out prompts."""
    night = settings.night
    tokenizer, model = load_tokenizer(base), load_trainable(base)

    def encode(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(encode_prompt(tokenizer, plain_prompt(text))) for text in texts]

    training, heldout = encode(task.training), encode(task.heldout) * SAMPLES
    started = time.monotonic()
    with short_rows(model), attach_models(model, night, None, task.learned) as models, ProgressBar() as bar:
        reward = models.learned_reward(task.learned.head) if task.learned else address_share
        chance = torch.Generator(model.device).manual_seed(1)
        before = sample_scored(models, tokenizer, heldout, reward, REPLY_TOKENS, chance)
        trained = train_policy(models, tokenizer, training, reward, (), night, bar)
        models.adapters["policy"].load(trained.tensors)
        after = sample_scored(models, tokenizer, heldout, reward, REPLY_TOKENS, chance)
    start, end, spread = before.numbers(), after.numbers(), float(before.scores.std())
    if out:
        out.mkdir(parents=True, exist_ok=True)
        plot_history(out / f"ppo-{name}.png", trained.history)
        write_history(out / f"ppo-{name}.jsonl", trained)
    return {
        "heldout_prompts": len(task.heldout),
        "training_prompts": len(task.training),
        "initial_mean": start["reward"],
        "initial_sd": spread,
        "final_mean": end["reward"],
        "rise_sd": (end["reward"] - start["reward"]) / spread,
        "kl": end["kl"],
        "entropy": [start["entropy"], end["entropy"]],
        "length": [start["length"], end["length"]],
        "cut": [start["cut"], end["cut"]],
        "iterations": len(trained.history) - 1,
        "chosen": trained.chosen,
        "training_minutes": trained.seconds / 60,
        "minutes": (time.monotonic() - started) / 60,
        "replies": after.texts[:SAMPLES],
    }


def main() -> None:
    """Train, examine, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ppo", description="How far PPO lifts a reward.")
    parser.add_argument("--reward", nargs="+", choices=("address", "learned"), default=["address", "learned"])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--out", type=Path, help="folder for curves and numbers")
    args = parser.parse_args()
    settings = load_settings()
    base = resolve_base(settings)
    found = {}
    for name in args.reward:
        task = address_task() if name == "address" else learned_task(base, settings)
        changes: dict[str, Any] = {"ppo_iterations": args.iterations, "ppo_reply_tokens": REPLY_TOKENS}
        if name == "address":  # half a reply addresses the reader as a whole one does
            changes["ppo_cut_penalty"] = 0.0
        night = settings.night.model_copy(update=changes)
        found[name] = lift(base, settings.model_copy(update={"night": night}), task, args.out, name)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
