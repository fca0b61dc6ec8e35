"""How far PPO lifts a synthetic reward, and at what KL: python -m bench.ppo [--iterations N] [--out DIR]

The reward is the share of a reply's words that address the reader (you, your, …): what a tutor who turns to the student
does more of. The plain base does it little, in many replies, and the limit of 1 is far away. It is examined on prompts
apart from the training prompts, with fresh replies of the start and of the trained policy. Prints the numbers; --out
also gets the curves and a line an iteration.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from assistant.engine import Message
from assistant.loading import load_tokenizer, load_trainable, resolve_base
from assistant.presets import PLAIN
from assistant.prompt import encode_prompt
from assistant.settings import load_settings
from finetune.anchors import ANCHOR_PROMPTS
from finetune.attention import short_rows
from finetune.batches import Row
from finetune.ppo import train_policy
from finetune.ppo_models import attach_models, sample_scored
from finetune.ppo_workshop import write_history
from finetune.progress import ProgressBar
from finetune.report import plot_history

ADDRESSING = {"you", "your", "yours", "yourself"}
REPLY_TOKENS = 48
SAMPLES = 4
"""Replies to each held-out prompt."""


def address_share(rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
    """Give each reply the share of its words that address the reader."""
    shares = []
    for text in texts:
        words = re.findall(r"[a-z]+", text.lower())
        shares.append(sum(word in ADDRESSING for word in words) / max(1, len(words)))
    return torch.tensor(shares)


def main() -> None:
    """Train, examine, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ppo", description="How far PPO lifts a reward.")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--out", type=Path, help="folder for curves and numbers")
    args = parser.parse_args()
    settings = load_settings()
    changes = {"ppo_iterations": args.iterations, "ppo_reply_tokens": REPLY_TOKENS, "ppo_cut_penalty": 0.0}
    night = settings.night.model_copy(update=changes)
    base = resolve_base(settings)
    tokenizer, model = load_tokenizer(base), load_trainable(base)
    asked = ANCHOR_PROMPTS.read_text(encoding="utf-8").splitlines()
    system = Message(role="system", content=PLAIN.system)
    prompts = [tuple(encode_prompt(tokenizer, [system, Message(role="user", content=text)])) for text in asked]
    heldout, training = prompts[::4], [p for i, p in enumerate(prompts) if i % 4]
    started = time.monotonic()
    with short_rows(model), attach_models(model, night) as models, ProgressBar() as bar:
        chance = torch.Generator(model.device).manual_seed(1)
        before = sample_scored(models, tokenizer, heldout * SAMPLES, address_share, REPLY_TOKENS, chance)
        trained = train_policy(models, tokenizer, training, address_share, (), night, bar)
        models.adapters["policy"].load(trained.tensors)
        after = sample_scored(models, tokenizer, heldout * SAMPLES, address_share, REPLY_TOKENS, chance)
    start, end, spread = before.numbers(), after.numbers(), float(before.scores.std())
    found = {
        "heldout_prompts": len(heldout),
        "training_prompts": len(training),
        "initial_mean": start["reward"],
        "initial_sd": spread,
        "final_mean": end["reward"],
        "rise_sd": (end["reward"] - start["reward"]) / spread,
        "kl": end["kl"],
        "entropy": [start["entropy"], end["entropy"]],
        "length": [start["length"], end["length"]],
        "chosen": trained.chosen,
        "training_minutes": trained.seconds / 60,
        "minutes": (time.monotonic() - started) / 60,
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        plot_history(args.out / "ppo.png", trained.history)
        write_history(args.out / "ppo.jsonl", trained)


if __name__ == "__main__":
    main()
