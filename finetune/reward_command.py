"""`train --method reward`, and `evaluate` on a reward model: what they do and what they print."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assistant.loading import resolve_base
from assistant.settings import Settings
from finetune.collect import Votes
from finetune.examples import Example, select_method
from finetune.files import FileVotes
from finetune.notes import explain, explain_others
from finetune.progress import ProgressBar
from finetune.reward_workshop import examine_reward, train_and_write_reward
from finetune.unfinished import unfinished_beside
from finetune.workshop import peak_gb


def train(
    args: argparse.Namespace,
    settings: Settings,
    votes: Votes,
    read: FileVotes,
    run_id: str,
) -> int:
    """Train a reward model into a folder of its own.

    Args:
        args: `out` and `json`.
        settings: of the home.
        votes: what was read, something to learn from among it.
        read: the file, for what is to be said of it.
        run_id: the run that makes it.
    """
    examples = select_method(votes.examples, "reward")
    with unfinished_beside(args.out):
        pass  # what cannot be written is told before hours of training
    with ProgressBar() as bar:
        made = train_and_write_reward(resolve_base(settings), settings, examples, args.out, run_id, bar)
    epochs, seconds = settings.night.reward_epochs, made.trained.seconds
    pairs_per_s = made.pairs * epochs / seconds
    counted = {**votes.counts, **made.counts}
    notes = [f"The {made.trained.centre} average zero.", *read.notes]
    notes += [*explain_others(votes.examples, "reward"), *explain(counted)]
    fields = {
        **counted,
        "reward_model": made.id,
        "folder": str(args.out),
        "method": args.method,
        "pairs_per_s": round(pairs_per_s, 3),
        "peak_gb": round(peak_gb(), 2),
        "epochs": epochs,
        "seconds": round(seconds, 2),
        "pairs": made.pairs,
        "examples": len(examples),
        "centre": made.trained.centre,
        "loss": made.trained.history[-1]["loss"],
        "bad_lines": read.problems,
        "notes": notes,
    }
    text = f"{made.id} in {args.out}: {made.pairs} pairs, {pairs_per_s:.2f} a second."
    _say(args, fields, "\n".join([text, *notes, *read.problems]))
    return 0


def evaluate(
    args: argparse.Namespace,
    settings: Settings,
    folder: Path,
    pairs: Sequence[Example],
    counts: Mapping[str, int],
    said: Sequence[str],
    problems: Sequence[str],
) -> int:
    """Examine a reward model.

    Args:
        args: `json`.
        settings: of the home.
        folder: the reward model's.
        pairs: held-out preference pairs.
        counts: of what was read.
        said: of the file.
        problems: of lines that were left out.
    """
    with ProgressBar() as bar:
        found = examine_reward(resolve_base(settings), settings, pairs, folder, bar)
    notes = [*said, *explain({**counts, **found.counts})]
    fields = {
        "reward_model": found.id,
        "accuracy": found.accuracy,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "length_baseline": found.length_baseline,
        "numeric_form": found.numeric_form,
        "notes": notes,
        "bad_lines": list(problems),
        **found.counts,
    }
    text = (
        f"{found.id} ({found.numeric_form}), {found.n} pairs\n"
        f"preference accuracy     {found.accuracy:.3f}  (95 % {found.low:.3f} to {found.high:.3f})  ties half\n"
        f"longer answer wins      {found.length_baseline:.3f}"
    )
    _say(args, fields, "\n".join([text, *notes, *problems]))
    return 0


def _say(args: argparse.Namespace, fields: Mapping[str, Any], text: str) -> None:
    sys.stdout.write((json.dumps(fields, ensure_ascii=False) if args.json else text) + "\n")
