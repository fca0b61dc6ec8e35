"""How far PPO lifts a reward, and at what KL: python -m bench.ppo [--reward address learned] [--iterations N]

address: the share of a reply's words that address the reader (you, your, …), which a tutor who turns to the student
does more of. The plain base does it little, and the limit of 1 is far away. The prompts are those of the anchors, a
quarter of them kept to examine on.

learned: the classic way. SFT on written replies to problems, one in twenty sentences a question; a reward model
of pairs of such replies to other problems, the better one of which does; PPO against it from there, on a third lot of
problems. It is examined on problems of kinds that none of them saw.

With --group 4 each reply is held against three others to its prompt (RLOO), with 1 against a value model (PPO).
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.loading import Base, load_tokenizer, load_trainable, resolve_base
from assistant.prompt import encode_prompt, end_of_turn
from assistant.settings import Settings, load_settings
from bench.pairs import example_of, plain_prompt
from bench.planted import write_pairs, write_reply
from finetune.anchors import ANCHOR_PROMPTS
from finetune.attention import short_rows
from finetune.evaluate import FIXED_PROMPTS
from finetune.ppo import train_policy
from finetune.ppo_models import Reward, StartAdapter, attach_models, sample_scored
from finetune.ppo_workshop import read_start, write_history
from finetune.problems import make_problems
from finetune.problems_dev import DEV_KINDS
from finetune.problems_unseen import TEST_KINDS
from finetune.problems_voted import VOTED_KINDS
from finetune.progress import ProgressBar
from finetune.report import plot_history
from finetune.reward_folder import SavedReward, read_reward
from finetune.reward_workshop import train_and_write_reward
from finetune.workshop import train_and_write

ADDRESSING = {"you", "your", "yours", "yourself"}
REPLY_TOKENS = {"address": 48, "learned": 64}
SAMPLES = 4
"""Replies to each held-out prompt."""
STAGE, EXAMINED = 160, 24
"""Problems of each stage of the classic way, and problems it is examined on."""
ASKING = 0.05
"""Share of the demonstrations' sentences that are questions."""


@dataclass(frozen=True)
class Task:
    """What PPO is shown with."""

    training: list[str]
    heldout: list[str]
    wanted: Callable[[Sequence[str]], Tensor]
    """Texts to what they are wanted for: the reward itself, or what the reward model was to learn."""
    learned: SavedReward | None = None
    """None rewards what is wanted."""
    start: StartAdapter | None = None
    """None is the bare base."""


def address_share(texts: Sequence[str]) -> Tensor:
    """Give each reply the share of its words that address the reader."""
    shares = []
    for text in texts:
        words = re.findall(r"[a-z]+", text.lower())
        shares.append(sum(word in ADDRESSING for word in words) / max(1, len(words)))
    return torch.tensor(shares)


def asks_last(texts: Sequence[str]) -> Tensor:
    """Say whether each reply ends with a question: 1 or 0."""
    return torch.tensor([float(text.rstrip().endswith("?")) for text in texts])


def address_task(*, development: bool) -> Task:
    """Take the anchors' prompts."""
    asked = ANCHOR_PROMPTS.read_text(encoding="utf-8").splitlines()
    heldout = FIXED_PROMPTS.read_text(encoding="utf-8").splitlines() if development else asked[::4]
    return Task([text for i, text in enumerate(asked) if i % 4], heldout, address_share)


def learned_task(base: Base, settings: Settings, folder: Path, *, development: bool) -> Task:
    """Take the stages before PPO from a folder, or train them where it has none; no problem is in two of them."""
    rng = random.Random(0)
    problems = list({p.text: p for p in make_problems(VOTED_KINDS, 3 * STAGE, seed=0)}.values())
    shown, judged, asked = problems[::3], problems[1::3], problems[2::3]
    if not folder.exists():
        written = [write_reply(problem, rng.random() < ASKING, rng, ASKING) for problem in shown]
        demonstrations = [
            replace(example_of(plain_prompt(problem.text), [reply]), demonstrated=True)
            for problem, reply in zip(shown, written, strict=True)
        ]
        with ProgressBar() as bar:
            sft = train_and_write(base, settings, demonstrations, folder, "bench", bar)
            sft.adapter.folder.rename(folder / "sft")
            train_and_write_reward(base, settings, write_pairs(judged, rng), folder / "reward", "bench", bar)
    kinds = DEV_KINDS if development else TEST_KINDS
    return Task(
        [problem.text for problem in asked],
        [problem.text for problem in make_problems(kinds, EXAMINED, seed=0)],
        asks_last,
        read_reward(folder / "reward", base.id),
        read_start(folder / "sft", base.id),
    )


def lift(base: Base, settings: Settings, task: Task, out: Path | None, name: str) -> dict[str, Any]:
    """Train a policy, and examine it beside the start on held-out prompts."""
    night = settings.night
    tokenizer, model = load_tokenizer(base), load_trainable(base)

    def encode(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(encode_prompt(tokenizer, plain_prompt(text))) for text in texts]

    stop = end_of_turn(tokenizer)
    training, heldout = encode(task.training), encode(task.heldout) * SAMPLES
    started = time.monotonic()
    with short_rows(model), attach_models(model, night, task.start, task.learned) as models, ProgressBar() as bar:
        reward = _wanted_alone(task) if task.learned is None else models.learned_reward(task.learned.head, stop)
        chance = torch.Generator(model.device).manual_seed(1)
        before = sample_scored(models, tokenizer, heldout, reward, night.ppo_reply_tokens, chance)
        trained = train_policy(models, tokenizer, training, reward, (), night, bar)
        models.adapters["policy"].load(trained.tensors)
        after = sample_scored(models, tokenizer, heldout, reward, night.ppo_reply_tokens, chance)
    start, end, spread = before.numbers(), after.numbers(), float(before.scores.std())
    within = float(before.scores.view(SAMPLES, -1).std(dim=0).square().mean().sqrt())
    wanted = torch.stack([task.wanted(found.texts) for found in (before, after)])
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
        "initial_sd_within_prompts": within,
        "correlates": float(torch.corrcoef(torch.stack([before.scores, wanted[0]]))[0, 1]),
        "wanted": wanted.mean(dim=1).tolist(),
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


def _wanted_alone(task: Task) -> Reward:
    return lambda rows, texts: task.wanted(texts)


def main() -> None:
    """Train, examine, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ppo", description="How far PPO lifts a reward.")
    parser.add_argument("--reward", nargs="+", choices=("address", "learned"), default=["address", "learned"])
    parser.add_argument("--group", type=int, default=4, help="replies to a prompt (RLOO); 1 is PPO with a value model")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--stages", type=Path, help="learned: where SFT and reward model are, or are put")
    parser.add_argument("--development", action="store_true", help="examine on other prompts, to choose settings by")
    parser.add_argument("--out", type=Path, help="folder for curves and numbers")
    args = parser.parse_args()
    settings = load_settings()
    base = resolve_base(settings)
    found = {}
    for name in args.reward:
        with tempfile.TemporaryDirectory() as spare:
            stages = args.stages or Path(spare) / "stages"
            task = (
                address_task(development=args.development)
                if name == "address"
                else learned_task(base, settings, stages, development=args.development)
            )
        changes: dict[str, Any] = {
            "ppo_iterations": args.iterations,
            "ppo_reply_tokens": REPLY_TOKENS[name],
            "ppo_group": args.group,
        }
        if name == "address":  # half a reply addresses the reader as a whole one does
            changes["ppo_cut_penalty"] = 0.0
        night = settings.night.model_copy(update=changes)
        found[name] = lift(base, settings.model_copy(update={"night": night}), task, args.out, name)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
