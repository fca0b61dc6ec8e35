"""`train --method ppo`: what it does and what it prints."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from assistant.loading import resolve_base
from assistant.settings import Settings
from finetune.errors import BadData
from finetune.files import FileVotes, read_examples
from finetune.notes import explain
from finetune.ppo_workshop import PolicyRun, train_and_write_policy
from finetune.progress import ProgressBar
from finetune.unfinished import unfinished_beside
from finetune.workshop import peak_gb


def train(args: argparse.Namespace, settings: Settings, run_id: str) -> int:
    """Train a policy on the prompts of a file into a folder of its own.

    Args:
        args: `data`, `skip_bad`, `reward`, `start`, `ptx`, `out` and `json`.
        settings: of the home.
        run_id: the run that makes it.

    Raises:
        BadData: no reward model was named.
    """
    if args.reward is None:
        raise BadData("PPO follows a reward model. Give one with --reward DIR; train --method reward makes it.")
    read = read_examples(args.data, skip_bad=args.skip_bad, bare_prompts=True)
    with unfinished_beside(args.out) as folder, ProgressBar() as bar:
        base = resolve_base(settings)
        made = train_and_write_policy(
            base,
            settings,
            read.examples,
            [e for e in read.examples if e.demonstrated],
            args.reward,
            args.start,
            args.ptx,
            folder,
            run_id,
            bar,
        )
        if args.out.exists():
            args.out.rmdir()
        os.replace(made.adapter.folder, args.out)
    fields = _report(made, args, read, settings.night.ppo_kl_limit)
    text = "\n".join([_sentence(fields), *fields["notes"], *read.problems])
    sys.stdout.write((json.dumps(fields, ensure_ascii=False) if args.json else text) + "\n")
    return 0


def _report(made: PolicyRun, args: argparse.Namespace, read: FileVotes, kl_limit: float) -> dict[str, Any]:
    """Tell of a finished training, as scripts read it."""
    notes = read.notes
    if made.trained.stopped:
        notes.append(f"The KL passed {kl_limit} nats a token again and again, so training stopped early.")
    if not made.trained.chosen:
        notes.append("No iteration was better than the start within its leash, so the adapter is the start.")
    notes += explain(made.counts)
    return {
        **made.counts,
        "adapter": made.adapter.id,
        "folder": str(args.out),
        "method": args.method,
        "prompts": made.prompts,
        "ptx_rows": made.ptx_rows,
        "iterations": len(made.trained.history) - 1,
        "chosen": made.trained.chosen,
        "initial_reward": made.before["reward"],
        "reward": made.after["reward"],
        "kl": made.after["kl"],
        "peak_gb": round(peak_gb(), 2),
        "seconds": round(made.trained.seconds, 2),
        "bad_lines": read.problems,
        "notes": notes,
    }


def _sentence(fields: Mapping[str, Any]) -> str:
    return (
        f"{fields['adapter']} in {fields['folder']}: mean reward {fields['initial_reward']:.3f} to "
        f"{fields['reward']:.3f} at {fields['kl']:.3f} nats a token from its start, {fields['prompts']} prompts."
    )
