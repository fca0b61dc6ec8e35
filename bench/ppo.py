"""How far PPO lifts a reward, and at what KL: python -m bench.ppo [--reward address learned] [--iterations N]

address: the share of a reply's words that address the reader (you, your, …), which a tutor who turns to the student
does more of. The plain base does it little, and the limit of 1 is far away. The prompts are those of the anchors, a
quarter of them kept to examine on.

learned: a reward model that learned the same from rankings: the base replies to half of the training prompts, its
replies are ranked by that share, and PPO asks the other half.

With --group 4 each reply is held against three others to its prompt (RLOO), with 1 against a value model (PPO).
Each is examined with fresh replies of the start and of the trained policy. Prints the numbers; --out also gets the
curves and a line an iteration.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.loading import Base, load_tokenizer, load_trainable, resolve_base
from assistant.prompt import encode_prompt, end_of_turn
from assistant.settings import Settings, load_settings
from bench.pairs import example_of, plain_prompt
from finetune.anchors import ANCHOR_PROMPTS
from finetune.attention import short_rows
from finetune.batches import Row
from finetune.evaluate import FIXED_PROMPTS
from finetune.examples import Example
from finetune.ppo import train_policy
from finetune.ppo_models import Reward, attach_models, sample_scored
from finetune.ppo_workshop import write_history
from finetune.progress import Progress, ProgressBar
from finetune.report import plot_history
from finetune.reward_folder import SavedReward, read_reward
from finetune.reward_workshop import train_and_write_reward
from finetune.rollouts import sample_replies

ADDRESSING = {"you", "your", "yours", "yourself"}
REPLY_TOKENS = 48
SAMPLES = 4
"""Replies to each held-out prompt."""
RANKED = 64
"""Replies of the base to each prompt that the reward model learns from."""


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


def learned_task(base: Base, settings: Settings, folder: Path) -> Task:
    """Follow the reward model in a folder; where there is none yet, train it on other prompts than PPO asks.

    It learns from rankings of the base's own replies by `address_share`.
    """
    whole = address_task()
    ranked, asked = whole.training[::2], whole.training[1::2]
    if not folder.exists():
        with ProgressBar() as bar:
            train_and_write_reward(base, settings, rank_samples(base, ranked, bar), folder, "bench", bar)
    return Task(asked, whole.heldout, read_reward(folder, base.id))


def rank_samples(base: Base, prompts: Sequence[str], progress: Progress) -> list[Example]:
    """Let the base reply to prompts, and rank its replies by fours; fours that all tie are left out."""
    tokenizer, model = load_tokenizer(base), load_trainable(base)
    chance = torch.Generator(model.device).manual_seed(2)
    rankings = []
    for number, text in enumerate(prompts, 1):
        prompt = plain_prompt(text)
        ids = tuple(encode_prompt(tokenizer, prompt))
        with short_rows(model):
            found = sample_replies(model, [ids] * RANKED, end_of_turn(tokenizer), REPLY_TOKENS, chance)
        texts = list(
            dict.fromkeys(str(tokenizer.decode(list(r.row[1]), skip_special_tokens=True)).strip() for r in found)
        )
        for four in (texts[start : start + 4] for start in range(0, len(texts) - 3, 4)):
            shares = address_share([], four).tolist()
            order = sorted(range(4), key=lambda i: -shares[i])
            ranks = [1 + sum(other > shares[i] for other in shares) for i in order]
            if len(set(ranks)) > 1 and all(four):
                rankings.append(example_of(prompt, [four[i] for i in order], ranks))
        progress("samples", number, len(prompts))
    return rankings


def lift(base: Base, settings: Settings, task: Task, out: Path | None, name: str) -> dict[str, Any]:
    """Train a policy, and examine it beside the start on held-out prompts."""
    night = settings.night
    tokenizer, model = load_tokenizer(base), load_trainable(base)

    def encode(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(encode_prompt(tokenizer, plain_prompt(text))) for text in texts]

    training, heldout = encode(task.training), encode(task.heldout) * SAMPLES
    started = time.monotonic()
    with short_rows(model), attach_models(model, night, None, task.learned) as models, ProgressBar() as bar:
        reward: Reward = (
            models.learned_reward(task.learned.head, end_of_turn(tokenizer)) if task.learned else address_share
        )
        chance = torch.Generator(model.device).manual_seed(1)
        before = sample_scored(models, tokenizer, heldout, reward, REPLY_TOKENS, chance)
        trained = train_policy(models, tokenizer, training, reward, (), night, bar)
        models.adapters["policy"].load(trained.tensors)
        after = sample_scored(models, tokenizer, heldout, reward, REPLY_TOKENS, chance)
    start, end, spread = before.numbers(), after.numbers(), float(before.scores.std())
    within = float(before.scores.view(SAMPLES, -1).std(dim=0).square().mean().sqrt())
    shares = torch.stack([address_share(found.rows, found.texts) for found in (before, after)])
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
        "correlates": float(torch.corrcoef(torch.stack([before.scores, shares[0]]))[0, 1]),
        "address_share": shares.mean(dim=1).tolist(),
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
    parser.add_argument("--group", type=int, default=4, help="replies to a prompt (RLOO); 1 is PPO with a value model")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--reward-model", type=Path, help="learned: where its reward model is, or is put")
    parser.add_argument("--development", action="store_true", help="examine on other prompts, to choose settings by")
    parser.add_argument("--out", type=Path, help="folder for curves and numbers")
    args = parser.parse_args()
    settings = load_settings()
    base = resolve_base(settings)
    found = {}
    with tempfile.TemporaryDirectory() as spare:
        learned = args.reward_model or Path(spare) / "reward"
        tasks = {
            name: address_task() if name == "address" else learned_task(base, settings, learned) for name in args.reward
        }
    for name, task in tasks.items():
        if args.development:
            task = replace(task, heldout=FIXED_PROMPTS.read_text(encoding="utf-8").splitlines())
        changes: dict[str, Any] = {
            "ppo_iterations": args.iterations,
            "ppo_reply_tokens": REPLY_TOKENS,
            "ppo_group": args.group,
            "ppo_cut_penalty": 0.0,  # half a reply addresses the reader as a whole one does
        }
        night = settings.night.model_copy(update=changes)
        found[name] = lift(base, settings.model_copy(update={"night": night}), task, args.out, name)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
