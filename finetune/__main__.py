"""The commands of the night. Heavy rooms are imported by the commands that need them, so that --help is quick."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from assistant.console import fail
from assistant.errors import AssistantError
from finetune.errors import FinetuneError
from finetune.examples import METHODS, NIGHT_METHODS

METHOD_HELP = (
    "what to learn from, and how: auto (all votes, each in the loss that fits), sft (demonstrations), dpo, ipo, robust "
    "or norm (pairs and rankings), kto (thumbs, and pairs as thumbs), rankings (rankings alone)"
)
NIGHT_HELP = ", ppo (demonstrations by SFT, then a reward model on choices, then PPO against it from there)"
TRAIN_HELP = (
    ", ppo (prompts; gives an adapter whose replies please the reward model named by --reward), reward (pairs and "
    "rankings; gives a reward model, which scores replies and writes none)"
)

INTERRUPTED = "Interrupted; what is live has not changed. A training that is started again goes on where it was."


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune", description="From votes to a better adapter.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, help="home folder (else NIGHTSCHOOL_HOME, else the user-data folder)")
    common.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    nightly = add("nightly", "Run the whole night: collect, train, examine, decide, promote, report.")
    nightly.add_argument("--method", choices=NIGHT_METHODS, default="auto", help=METHOD_HELP + NIGHT_HELP)
    nightly.add_argument("--reward", type=Path, metavar="DIR", help="ppo: a reward model to follow, not tonight's own")
    nightly.add_argument("--if-due", action="store_true", help="do nothing within 24 hours of the last night")

    train = add(
        "train",
        "Train an adapter on a file of votes of any kind: preferences, comparisons, rankings, thumbs, demonstrations.",
    )
    train.add_argument("--method", choices=METHODS, default="auto", help=METHOD_HELP + TRAIN_HELP)
    train.add_argument("--data", type=Path, required=True, metavar="FILE.jsonl", help="JSON lines to learn from")
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder for the adapter or reward model"
    )
    train.add_argument("--reward", type=Path, metavar="DIR", help="ppo: the reward model's folder")
    train.add_argument("--start", type=Path, metavar="DIR", help="ppo: the adapter to start from (else the bare base)")
    train.add_argument("--ptx", type=Path, metavar="FILE", help="ppo: a text whose lines stay likely")
    train.add_argument("--skip-bad", action="store_true", help="leave bad lines out instead of stopping")

    evaluate = add(
        "evaluate",
        "Examine an adapter: preference accuracy with interval, perplexity, fixed prompts. Or a reward model.",
    )
    evaluate.add_argument("adapter", metavar="ADAPTER", help="an id, a folder, live, base, or a reward model's folder")
    evaluate.add_argument(
        "--data", type=Path, metavar="FILE.jsonl", help="preferences, comparisons or rankings (else the held-out votes)"
    )
    evaluate.add_argument("--skip-bad", action="store_true", help="leave bad lines out instead of stopping")

    add("adapters", "List the adapters, newest first.")
    promote = add("promote", "Put an adapter live; the running app uses it for the next message.")
    promote.add_argument("adapter", metavar="ADAPTER", help="an id, or base")
    add("rollback", "Put back live what was live before.")
    add("runs", "List the nights, newest first.")
    report = add("report", "Print a night's report.")
    report.add_argument("run", metavar="RUN", help="a run's name, or last")

    simulate = add("simulate", "Let simulated raters vote; said to be simulated wherever it shows.")
    rehearse = add("rehearse", "Rehearse the whole loop with simulated raters.")
    _add_rehearsal_arguments(simulate, rehearse)
    judge = add("judge", "Let a model judge replies by a written constitution; said to be an AI's wherever it shows.")
    _add_judge_arguments(judge)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed with one sentence, 2 wrong usage."""
    # Threads that spin while they wait make training ten times slower beside a busy app. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional kernel at each start
    try:
        args = build_parser().parse_args(arguments)
    except KeyboardInterrupt:
        return fail(INTERRUPTED, as_json=False)
    from feedback_store.errors import StoreError

    try:
        return _run(args)
    except (FinetuneError, AssistantError, StoreError) as error:
        return fail(str(error), args.json)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"A file or folder cannot be used{where}: {error.strerror or error}.", args.json)
    except KeyboardInterrupt:
        return fail(INTERRUPTED, args.json)


def _run(args: argparse.Namespace) -> int:
    if args.command == "simulate":
        from finetune import simulate

        return simulate.run(args)
    if args.command == "rehearse":
        from finetune import rehearse

        return rehearse.run(args)
    if args.command == "judge":
        from finetune import judge_command

        return judge_command.run(args)
    from finetune import commands

    return commands.run(args)


def _add_rehearsal_arguments(
    simulate_parser: argparse.ArgumentParser, rehearse_parser: argparse.ArgumentParser
) -> None:
    from finetune import rehearse, simulate

    simulate.add_arguments(simulate_parser)
    rehearse.add_arguments(rehearse_parser)


def _add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    from finetune.simulate import positive

    parser.add_argument("--constitution", type=Path, metavar="FILE", help="text to judge by (else the project's own)")
    parser.add_argument(
        "--engine", metavar="ENGINE", help="local, or a server's http://HOST:PORT/v1 (else the setting)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="at most N pairs, and N replies to revise")
    parser.add_argument("--samples", type=positive, default=1, metavar="N", help="answers in each of the two orders")
    parser.add_argument("--revise", action="store_true", help="also criticise replies and write better ones")


if __name__ == "__main__":
    sys.exit(main())
