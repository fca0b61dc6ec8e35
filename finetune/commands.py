"""What each command does: take the arguments, call the room that does the work, say the result."""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from assistant.adapters import REWARD_MANIFEST, AdapterInfo, verify_adapter
from assistant.errors import AdapterMissing
from assistant.settings import Settings, load_settings
from feedback_store import Store, open_store
from feedback_store.registry import Registry
from finetune.collect import divide_votes, gather
from finetune.errors import BadData, NothingToLearn, UnknownRun
from finetune.examples import Example, as_pairs, count_one_sided, select_method, settings_for
from finetune.files import read_examples
from finetune.notes import explain, explain_others, why_nothing
from finetune.processes import World, follow, lead, open_world
from finetune.progress import ProgressBar
from finetune.raters import tonights_votes
from finetune.report import plain
from finetune.unfinished import unfinished_beside


def nightly(args: argparse.Namespace, world: World) -> int:
    """Run the night, or say that it is not due."""
    settings = load_settings(args.home)
    if args.reward and args.method != "ppo":
        raise BadData("--reward belongs to --method ppo. Leave it out, or add that.")
    with ExitStack() as stack:
        store = _open(settings, stack)
        from finetune.nightly import NightResult, hours_until_due, run_nightly

        hours = hours_until_due(store, datetime.now(UTC)) if args.if_due else 0.0
        if hours > 0:
            result = NightResult("skipped", None, None, (f"The next night is due in {hours:.1f} hours.",))
        else:
            bar = stack.enter_context(ProgressBar())
            result = run_nightly(settings, store, method=args.method, reward=args.reward, progress=bar, world=world)
    fields = {"outcome": result.outcome, "run": result.run, "adapter": result.adapter, "reasons": list(result.reasons)}
    if result.outcome == "failed":
        sys.stderr.write(" ".join(result.reasons) + "\n")
    _say(args, fields, "\n".join([f"{result.outcome}" + (f" ({result.run})" if result.run else ""), *result.reasons]))
    return 1 if result.outcome == "failed" else 0


def train(args: argparse.Namespace, world: World) -> int:
    """Train on a file into a folder of its own."""
    settings = load_settings(args.home)
    settings = settings.model_copy(update={"night": settings_for(settings.night, args.method)})
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise BadData(f"{args.out} is not an empty folder. Give --out a folder that does not exist yet.")
    run_id = f"train-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    if args.method == "ppo":
        from finetune import ppo_command

        return ppo_command.train(args, settings, run_id)
    if args.reward or args.start or args.ptx:
        raise BadData("--reward, --start and --ptx belong to --method ppo. Leave them out, or add it.")
    read = read_examples(args.data, skip_bad=args.skip_bad)
    problems = read.problems
    votes = gather(read.examples, now=datetime.now(UTC), half_life_days=settings.night.half_life_days)
    examples = select_method(votes.examples, args.method)
    if not examples:
        raise NothingToLearn(f"{args.data}: {why_nothing(votes.examples, args.method, votes.counts['ties'])}")
    if args.method == "reward":
        from finetune import reward_command

        return reward_command.train(args, settings, votes, read, run_id)
    from assistant.loading import resolve_base
    from finetune.workshop import peak_gb, train_and_write

    base = resolve_base(settings)
    with unfinished_beside(args.out) as folder, ProgressBar() as bar:
        made = train_and_write(base, settings, examples, folder, run_id, bar, world)
        if args.out.exists():
            args.out.rmdir()
        os.replace(made.adapter.folder, args.out)
    seconds = made.reference_seconds + made.trained.seconds
    unit, seen = ("pairs", made.pairs_seen) if made.pairs else ("examples", made.examples_seen)
    counts = votes.counts | made.counts
    counts["one_sided_thumbs"] += count_one_sided(votes.examples, args.method)
    notes = [*read.notes, *explain_others(votes.examples, args.method), *explain(counts)]
    fields = {
        **counts,
        "adapter": made.adapter.id,
        "folder": str(args.out),
        "method": args.method,
        f"{unit}_per_s": round(seen / seconds, 3),
        "peak_gb": round(peak_gb(), 2),
        "epochs": settings.night.epochs,
        "sure_epochs": settings.night.sure_epochs,
        "seconds": round(seconds, 2),
        "resumed_at_step": made.trained.resumed_at_step,
        "pairs": made.pairs,
        "examples": made.examples,
        "loss": made.trained.history[-1]["loss"],
        "bad_lines": problems,
        "notes": notes,
    }
    text = f"{made.adapter.id} in {args.out}: {made.examples} examples, {seen / seconds:.2f} {unit} a second."
    if made.trained.resumed_at_step:
        text += f" It went on from a killed training, at step {made.trained.resumed_at_step}."
    _say(args, fields, "\n".join([text, *notes, *problems]))
    return 0


def evaluate(args: argparse.Namespace, world: World) -> int:
    """Examine an adapter or a reward model on a file of preferences or on the held-out votes."""
    settings = load_settings(args.home)
    problems: list[str] = []
    notes: list[str] = []
    considered: dict[str, int] = {}
    with ExitStack() as stack:
        store = _open(settings, stack)
        if args.data is not None:
            read = read_examples(args.data, skip_bad=args.skip_bad)
            problems, notes = read.problems, read.notes
            votes = gather(read.examples, now=datetime.now(UTC), half_life_days=settings.night.half_life_days)
            considered = votes.counts
            pairs = [pair for e in votes.examples for pair in as_pairs(e)]
        else:
            pairs = _heldout(settings, store)
        if not pairs:
            raise NothingToLearn(
                "There is no preference pair to examine on, and thumbs are not examined. "
                "Compare some replies, or give --data FILE.jsonl."
            )
        folder = _adapter_folder(args.adapter, settings, store)
    if folder is not None and (folder / REWARD_MANIFEST).is_file():
        from finetune import reward_command

        return reward_command.evaluate(args, settings, folder, pairs, considered, notes, problems)
    from assistant.loading import resolve_base
    from finetune.workshop import open_room

    base = resolve_base(settings)
    info: AdapterInfo | None = verify_adapter(folder, base.id) if folder else None
    with ProgressBar() as bar, open_room(base, settings, pairs, bar, world) as room:
        found = room.examine(room.load(info.folder) if info else None)
    numbers = found.numbers()
    notes = [*notes, *explain(considered | room.counts)]
    fields = {
        "adapter": info.id if info else "base",
        **numbers,
        "numeric_form": room.served.numeric_form,
        "notes": notes,
        "flawed": [found.replies.replies[i] for i in found.replies.flawed],
        "bad_lines": problems,
        **room.counts,
    }
    text = (
        f"{fields['adapter']} ({fields['numeric_form']}), {numbers['n']} pairs\n"
        f"preference accuracy     {numbers['accuracy']:.3f}  (95 % {numbers['low']:.3f} to {numbers['high']:.3f})"
        "  by log-ratio to the base, ties half\n"
        f"by log-prob. a token    {numbers['token_logprob_accuracy']:.3f}\n"
        f"longer answer wins      {numbers['length_baseline']:.3f}\n"
        f"perplexity, fixed text  {numbers['perplexity']:.3f}  (bare base {numbers['base_perplexity']:.3f})\n"
        f"empty or looping        {numbers['flawed_replies']} of {numbers['replies']} fixed prompts"
    )
    _say(args, fields, "\n".join([text, *notes, *problems]))
    return 0


def adapters(args: argparse.Namespace) -> int:
    """List the adapters."""
    with ExitStack() as stack:
        store = _open(load_settings(args.home), stack)
        live = store.registry.live()
        listed = [
            {"id": a.id, "state": a.state, "live": a.id == live.adapter_id, "created_at": a.created_at, "run": a.run_id}
            for a in store.registry.adapters()
        ]
    lines = [
        f"{'live' if a['live'] else '':<5}{a['id']}  {a['state']:<8}{a['created_at']}  {a['run'] or ''}" for a in listed
    ]
    _say(
        args, {"adapters": listed, "live": live.adapter_id or "base"}, "\n".join(lines) or "There are no adapters yet."
    )
    return 0


def promote(args: argparse.Namespace) -> int:
    """Put an adapter live after checking its files."""
    settings = load_settings(args.home)
    with ExitStack() as stack:
        registry = _open(settings, stack).registry
        before = registry.live()
        adapter_id = {"base": None, "live": before.adapter_id}.get(args.adapter, args.adapter)
        if adapter_id and os.path.isdir(adapter_id) and adapter_id not in {one.id for one in registry.adapters()}:
            raise AdapterMissing(
                f"{adapter_id} is a folder; name a night's adapter by its id. What `train` makes cannot go live: whose "
                f"votes it learned from is not known, so nobody could be erased from it. Talk to it with: "
                f"python -m assistant chat --adapter {adapter_id}"
            )
        _check_files(adapter_id, settings, registry)
        live = registry.promote(adapter_id, before.generation)
    _say_live(args, live.adapter_id, live.previous_id)
    return 0


def rollback(args: argparse.Namespace) -> int:
    """Put back live what was live before."""
    settings = load_settings(args.home)
    with ExitStack() as stack:
        registry = _open(settings, stack).registry
        before = registry.live()
        _check_files(before.previous_id, settings, registry)
        live = registry.rollback(before.generation)
    _say_live(args, live.adapter_id, live.previous_id)
    return 0


def runs(args: argparse.Namespace) -> int:
    """List the nights."""
    settings = load_settings(args.home)
    with ExitStack() as stack:
        registry = _open(settings, stack).registry
        found = registry.runs()
        if any(run.state == "running" for run in found):
            with suppress(Timeout), FileLock(settings.home / "night.lock", timeout=0):  # no night is under way
                registry.mark_crashed_runs()
                found = registry.runs()
    listed = [
        {
            "id": run.id,
            "state": run.state,
            "outcome": run.outcome,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "adapter": run.adapter_id,
            "reasons": list(run.reasons),
        }
        for run in found
    ]
    lines = [f"{r.id}  {r.outcome or r.state:<10}{' '.join(r.reasons)}" for r in found]
    _say(args, {"runs": listed}, "\n".join(lines) or "There were no nights yet.")
    return 0


def report(args: argparse.Namespace) -> int:
    """Print a night's report."""
    settings = load_settings(args.home)
    names = sorted(path.parent.name for path in settings.runs_dir.glob("*/report.json"))
    name = names[-1] if args.run == "last" and names else args.run
    if name not in names:
        raise UnknownRun(f"There is no report of a night {args.run}. List the nights with: python -m finetune runs")
    folder = settings.runs_dir / name
    fields = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    _say(args, fields, (folder / "report.md").read_text(encoding="utf-8").rstrip())
    return 0


COMPUTING: Mapping[str, Callable[[argparse.Namespace, World], int]] = {
    "nightly": nightly,
    "train": train,
    "evaluate": evaluate,
}
"""What several processes do together."""
COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "adapters": adapters,
    "promote": promote,
    "rollback": rollback,
    "runs": runs,
    "report": report,
}


def run(args: argparse.Namespace) -> int:
    """Run a command; of several processes the first one does, and the others help it where they can."""
    if args.command in COMMANDS:
        return COMMANDS[args.command](args)
    with open_world() as world:
        return follow(world) if world.rank else lead(world, partial(COMPUTING[args.command], args, world))


def _open(settings: Settings, stack: ExitStack) -> Store:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise BadData(f"{settings.home} is not a folder; give another one with --home.") from error
    store = open_store(settings.database_path)
    stack.callback(store.close)
    return store


def _heldout(settings: Settings, store: Store) -> list[Example]:
    night = settings.night
    votes = tonights_votes(store, night, datetime.now(UTC))
    return list(divide_votes(votes, "auto", night.holdout_share, night.seed).heldout)


def _check_files(adapter_id: str | None, settings: Settings, registry: Registry) -> None:
    """Check an adapter before it goes live: every chat would fail with one that is damaged."""
    from assistant.server_adapters import serve_adapter

    if adapter_id is not None:
        verify_adapter(settings.adapters_dir / adapter_id, registry.get_adapter(adapter_id).base_id)
        serve_adapter(settings, adapter_id)


def _adapter_folder(name: str, settings: Settings, store: Store) -> Path | None:
    """Find an adapter's folder; None is the bare base.

    Raises:
        AdapterMissing: neither an id nor a folder.
    """
    if name == "live":
        live = store.registry.live().adapter_id
        return None if live is None else settings.adapters_dir / live
    if name == "base":
        return None
    for folder in (settings.adapters_dir / name, Path(name)):
        if folder.is_dir():
            return folder
    raise AdapterMissing(f"There is no adapter {name}. Give an id, a folder, live or base.")


def _say_live(args: argparse.Namespace, adapter_id: str | None, previous_id: str | None) -> None:
    live, previous = adapter_id or "base", previous_id or "base"
    _say(args, {"live": live, "previous": previous}, f"Live: {live}. Before: {previous}.")


def _say(args: argparse.Namespace, fields: dict[str, Any], text: str) -> None:
    """Print the result: one JSON object with --json, else words."""
    sys.stdout.write((json.dumps(plain(fields), ensure_ascii=False) if args.json else text) + "\n")
