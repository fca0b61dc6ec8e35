"""DPO and rankings against TRL on the same cores: python -m bench.training [--data FILE.jsonl.gz] [--heldout N]

Each contender trains in a process of its own, from the loaded model to the trained adapter, reference pass included,
and TRL in an environment of its own, which `make bench` builds. Equal work is equal, and checked first: the same
tokens, steps, learning rates and starting adapter, and in float32 losses that agree within one percent at every step.
In bf16 each contender rounds in its own way, which moves the loss of a step of eight pairs by more than that; the table
shows how far. TRL is measured tuned (trl_dpo.py), with the best of several batch sizes, and
with its defaults; it takes the pairs of a step sorted by length, which changes no gradient and saves it padding. Prints
a Markdown table, or one JSON object.

Does not measure GPUs.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from assistant.adapters import TENSORS
from assistant.loading import resolve_base
from assistant.settings import NightSettings, load_settings
from bench.contenders import (
    AGAIN,
    OURS,
    ROOT,
    TUNED,
    Bench,
    DidNotFinish,
    NotEqual,
    Result,
    Work,
    choose,
    plan,
    train_ours,
    train_theirs,
    write_start,
)
from bench.heldout import Heldout, compare
from bench.pairs import find_file, make_pairs, make_rankings, read_pairs

TOLERANCE = 0.01
"""How far two losses may lie apart, relatively."""
RANKINGS_A_STEP = 4
"""24 pairs."""
NIGHT = NightSettings(
    epochs=1,
    find_slips=False,
    dpo_weight=1.0,
    nll_weight=0.0,
    label_smoothing=0.0,
    anchor_share=0.0,
    learning_rate=1e-4,
    max_tokens=1024,
)
"""DPO as TRL does it: alone, without slips, without anchors."""


@dataclass(frozen=True)
class Machine:
    """What it was measured on."""

    processor: str
    cores: int
    threads: int
    torch: str


@dataclass(frozen=True)
class Found:
    """All that one run measured."""

    machine: Machine
    data: str
    results: tuple[Result, ...]
    exact: tuple[Result, ...]
    """Ours and TRL's, in float32."""
    heldout: Heldout | None


def compare_losses(results: Sequence[Result]) -> list[Result]:
    """Note how far every contender's losses are from the first one's, ours.

    Raises:
        NotEqual: they took other numbers of steps.
    """
    ours = results[0].losses
    compared = []
    for result in results:
        if len(result.losses) != len(ours):
            raise NotEqual(f"{result.contender} took {len(result.losses)} steps, and {len(ours)} are due.")
        apart = max(abs(a - b) / abs(b) for a, b in zip(result.losses, ours, strict=True))
        compared.append(replace(result, apart=apart, mean_apart=abs(sum(result.losses) / sum(ours) - 1)))
    return compared


def require_equal(results: Sequence[Result]) -> list[Result]:
    """Compare the losses of contenders that no rounding excuses.

    Raises:
        NotEqual: at a step they are further than TOLERANCE from ours.
    """
    compared = compare_losses(results)
    for result in compared:
        if result.apart > TOLERANCE:
            raise NotEqual(f"The losses of {result.contender} are {result.apart:.1%} from ours on the {result.work}.")
    return compared


def train_exactly(
    bench: Bench, work: Work, night: NightSettings, batch: int, tuned: Sequence[bool] = (True,)
) -> list[Result]:
    """Train in float32, where equal work gives equal losses, here and with TRL, tuned or not.

    Raises:
        NotEqual: it does not.
    """
    ours = train_ours(bench, work, night, exact=True)
    theirs = [train_theirs(bench, work, night, batch, tuned=tuned, exact=True) for tuned in tuned]
    return require_equal([ours, *theirs])


def contest(bench: Bench, work: Work, night: NightSettings, batches: Sequence[int]) -> list[Result]:
    """Let everybody train: ours, ours with its reference cached, TRL tuned in its best batch."""
    results = [train_ours(bench, work, night), train_ours(bench, work, night, AGAIN)]
    tuned = [train_theirs(bench, work, night, batch) for batch in batches]
    results.append(max(tuned, key=lambda result: result.per_s))
    return compare_losses(results)


def describe_machine(threads: int) -> Machine:
    """Say what is measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(names[0] if names else platform.processor(), os.cpu_count() or 0, threads, torch.__version__)


def table(results: Sequence[Result]) -> list[str]:
    """Write the results in Markdown, beside the first contender of the same work."""
    lines = [
        "| work | contender | a second | Nightschool is | peak GB | last loss | losses apart, at most | on average |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = {result.work: result for result in reversed(results)}
    for r in results:
        speed = "" if r.contender in (OURS, AGAIN) else f"{ours[r.work].per_s / r.per_s:.2f} × as fast"
        numbers = f"{r.per_s:.2f} | {speed} | {r.peak_gb:.1f} | {r.losses[-1]:.4f} | {r.apart:.2%} | {r.mean_apart:.2%}"
        lines.append(f"| {r.work} | {r.contender} | {numbers} |")
    return lines


def measure(args: argparse.Namespace) -> Found:
    """Run everything."""
    base = resolve_base(load_settings(args.home))
    file = args.data or find_file()
    needed = 4 * (args.pairs + args.heldout) + 200
    pool = list(read_pairs(file)) if file else make_pairs(needed)
    chosen = choose(base, pool, args.pairs + args.heldout, args.longest)
    pairs, heldout = chosen[: args.pairs], chosen[args.pairs :]
    ranked = choose(base, make_rankings(pairs), args.rankings, args.longest)
    night = NIGHT.model_copy(update={"learning_rate": args.learning_rate})
    by_ranking = night.model_copy(update={"batch_examples": RANKINGS_A_STEP})
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.safetensors"
        write_start(base, night, start)
        bench = Bench(base, Path(folder), args.rival_python, args.threads, start)
        exact, results, examined, best = [], [], None, args.batches[0]
        if "exact" in args.works:
            exact = train_exactly(
                bench, plan(base, "pairs in float32", pairs, night), night, args.batches[0], (True, False)
            )
            work = plan(base, "rankings in float32", ranked, by_ranking)
            exact += train_exactly(bench, work, by_ranking, args.batches[0])
        if "pairs" in args.works:
            results = contest(bench, plan(base, "pairs", pairs, night), night, args.batches)
            best = int(results[2].contender.rpartition(" ")[2])
            ours, theirs = Path(results[0].adapter) / TENSORS, Path(results[2].adapter)
            examined = compare(base, night, heldout, ours, theirs) if heldout else None
        if "rankings" in args.works:
            work = plan(base, "rankings", ranked, by_ranking)
            results += contest(bench, work, by_ranking, [best])
        if "pairs" in args.works:  # last: without bf16 units TRL's defaults take longer than all others together
            defaults = train_theirs(bench, plan(base, "pairs", pairs, night), night, 8, tuned=False)
            results[3:3] = compare_losses([results[0], defaults])[1:]
    return Found(
        describe_machine(args.threads),
        f"Pairs of {file.name}" if file else "The file is not here: pairs of the project's own making",
        tuple(results),
        tuple(exact),
        examined,
    )


def report_lines(found: Found) -> list[str]:
    """Write what was measured in Markdown."""
    machine = found.machine
    lines = [
        f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, torch {machine.torch}. {found.data}.",
        "",
        *(table(found.results) if found.results else []),
        "",
    ]
    if found.exact:
        apart = max(result.apart for result in found.exact)
        lines.append(
            "Same tokens, steps, learning rates and starting adapter. In float32 the losses are at most "
            f"{apart:.3%} apart at every step; where bf16 is used, everybody rounds in their own way."
        )
    first = {result.work: result for result in found.results if result.contender == OURS}
    saved = [(r.work, r.per_s / first[r.work].per_s) for r in found.results if r.contender == AGAIN]
    lines += [f"The next night keeps its reference: {times:.2f} × as fast on the {work}." for work, times in saved]
    if found.heldout:
        ours, theirs, apart = (
            f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            for mean, low, high in (found.heldout.ours, found.heldout.theirs, found.heldout.difference)
        )
        lines.append(f"On {found.heldout.n} held-out pairs {OURS} {ours}, {TUNED} {theirs}, paired difference {apart}.")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=None, help="an hh-rlhf file; else where NIGHTSCHOOL_TEST_DATA says"
    )
    parser.add_argument("--pairs", type=int, default=64, help="that are trained on")
    works = ["exact", "pairs", "rankings"]
    parser.add_argument("--works", nargs="+", choices=works, default=works, help="exact compares losses in float32")
    parser.add_argument("--rankings", type=int, default=16, help="of four replies each")
    parser.add_argument("--longest", type=int, default=256, help="tokens of a prompt with a reply")
    parser.add_argument("--heldout", type=int, default=0, help="pairs that both adapters are examined on")
    parser.add_argument("--learning-rate", type=float, default=NIGHT.learning_rate)
    parser.add_argument(
        "--batches", type=int, nargs="+", choices=[1, 2, 4, 8], default=[2, 4, 8], help="TRL's best counts"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rival-python", type=Path, default=ROOT / ".venv-rivals" / "bin" / "python")
    parser.add_argument("--home", default=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if torch.cuda.is_available():
        parser.error("this measures a CPU: hide the GPU with CUDA_VISIBLE_DEVICES=, or run python -m bench.gpu")
    if args.heldout and "pairs" not in args.works:
        parser.error("--heldout examines the adapters of the pairs: add pairs to --works")
    if args.pairs % NIGHT.batch_examples or args.rankings % RANKINGS_A_STEP:
        parser.error(
            f"--pairs is a multiple of {NIGHT.batch_examples}, --rankings one of {RANKINGS_A_STEP}: whole steps"
        )
    if not args.rival_python.exists():
        raise SystemExit(f"TRL's environment is not at {args.rival_python}. Build it with: make bench")
    try:
        found = measure(args)
    except (NotEqual, DidNotFinish) as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write((json.dumps(asdict(found)) if args.json else "\n".join(report_lines(found))) + "\n")


if __name__ == "__main__":
    main()
