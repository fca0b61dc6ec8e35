"""The rehearsal: simulated votes, one real night, and a table of before and after on problems nobody voted on.

It runs in NIGHTSCHOOL_HOME when that is set, else in a fresh folder that it names, never in a person's own
store, and leaves its adapter live there. Everything it prints and writes says that the people are simulated.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from assistant.build import build_engine
from assistant.engine import Engine
from assistant.presets import PLAIN, SOCRATIC
from assistant.settings import Settings, load_settings
from feedback_store import open_store
from finetune.errors import FinetuneError
from finetune.problems import Problem, make_problems
from finetune.problems_unseen import TEST_KINDS
from finetune.problems_voted import VOTED_KINDS
from finetune.progress import ProgressBar
from finetune.rubric import asks_question, names_something, opening, states_answer, works_it_out
from finetune.simulate import generate, positive, refuse_real_people, request_for, simulate_votes

ROWS = (
    ("asks", "asks a question"),
    ("states", "states the final answer"),
    ("works", "works the problem out"),
    ("names", "names a number or thing of its problem"),
    ("openings", "different openings"),
)
PLAIN_GROUP = "plain preset"
"""Other kinds again, but under the preset that nobody voted on: this should not change."""
TARGETS = {"asks": 90.0, "names": 70.0, "openings": 30.0}
"""What TEST_KINDS should reach after one rehearsal, in 100 replies."""


@dataclass(frozen=True)
class Measures:
    """What the rubric finds in n replies, each number in 100 replies."""

    n: int
    asks: float
    states: float
    works: float
    names: float
    openings: float


@dataclass
class Rehearsal:
    """All that one rehearsal measured."""

    home: str
    simulated: bool = True
    seed: int = 0
    votes: dict[str, int] = field(default_factory=dict)
    night: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    table: dict[str, dict[str, Measures]] = field(default_factory=dict)
    """Group of problems to `before` and `after`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase."""
    peak_gb: dict[str, float] = field(default_factory=dict)
    """Resident memory of this process and of the largest process it started."""
    examples: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take the wall time of a phase."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def rehearse(settings: Settings, *, problems: int, test: int, seed: int) -> Rehearsal:
    """Run the loop once with simulated raters.

    Args:
        settings: of the home it all happens in.
        problems: voted on, each by one simulated person.
        test: problems of other kinds that nobody votes on; of the voted kinds a third as many more.
        seed: decides problems, votes and sampling.

    Raises:
        NotForRealPeople: real people talk in this home; nothing was written.
        FinetuneError: the night failed.
    """
    result = Rehearsal(home=str(settings.home), seed=seed)
    settings.home.mkdir(parents=True, exist_ok=True)
    store = open_store(settings.database_path)
    refuse_real_people(store)
    voted, groups = choose_problems(problems, test, seed)
    with result.phase("load"):
        engine = build_engine(settings)
    try:
        before = _replies(result, engine, settings, groups, None, "before")
        with result.phase("votes"), ProgressBar() as progress:
            result.votes = simulate_votes(engine, store, settings, voted, seed=seed, progress=progress)
        with result.phase("night"):
            result.night = run_night(settings.home)
        result.adapter = store.registry.live().adapter_id
        after = _replies(result, engine, settings, groups, result.adapter, "after")
    finally:
        engine.close()
        store.close()
    result.examples = _examples(groups, before, after)
    result.peak_gb = peak_memory()
    return result


def choose_problems(problems: int, test: int, seed: int) -> tuple[list[Problem], dict[str, list[Problem]]]:
    """Divide into what is voted on and the groups of the table: other kinds, unseen texts of the voted kinds, plain."""
    fewer = max(1, test // 3)
    known_kinds = make_problems(VOTED_KINDS, problems + fewer, seed)
    others = make_problems(TEST_KINDS, test, seed)
    groups = {"other kinds": others, "voted kinds": known_kinds[problems:], PLAIN_GROUP: others[:fewer]}
    return known_kinds[:problems], groups


def measure(problems: Sequence[Problem], replies: Sequence[str]) -> Measures:
    """Judge replies by the rubric. Openings are counted in the first hundred replies."""
    pairs = list(zip(replies, problems, strict=True))
    some = list(replies[:100])
    return Measures(
        n=len(pairs),
        asks=_in_100([asks_question(reply, problem) for reply, problem in pairs]),
        states=_in_100([states_answer(reply, problem) for reply, problem in pairs]),
        works=_in_100([works_it_out(reply) for reply, _ in pairs]),
        names=_in_100([names_something(reply, problem) for reply, problem in pairs]),
        openings=float(len({opening(reply) for reply in some})),
    )


def run_night(home: Path) -> dict[str, Any]:
    """Run the nightly command in a process of its own and return what it reports.

    Raises:
        FinetuneError: it failed; its own sentence is on standard error.
    """
    command = [sys.executable, "-m", "finetune", "nightly", "--home", str(home), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise FinetuneError(f"The night failed with exit status {done.returncode}; the lines above say why.")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def peak_memory() -> dict[str, float]:
    """Measure the largest resident memory so far, in GB: of this process, and of its largest child."""
    unit = 1e9 if sys.platform == "darwin" else 1e6  # ru_maxrss is in bytes there, in kilobytes on Linux
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    return {"own": round(own, 2), "night": round(children, 2), "both_at_most": round(own + children, 2)}


def table_lines(result: Rehearsal) -> list[str]:
    """Write the table in Markdown."""
    lines = [
        "| in 100 replies | other kinds, before | other kinds, after | voted kinds, before | voted kinds, after |",
        "|---|---|---|---|---|",
    ]
    columns = [result.table[group][when] for group in ("other kinds", "voted kinds") for when in ("before", "after")]
    for key, words in ROWS:
        lines.append(f"| {words} | " + " | ".join(f"{asdict(column)[key]:.0f}" for column in columns) + " |")
    lines.append("| replies | " + " | ".join(str(column.n) for column in columns) + " |")
    return lines


def report_lines(result: Rehearsal) -> list[str]:
    """Write the whole report in Markdown."""
    seconds = result.seconds
    lines = ["# Rehearsal with simulated raters", "", *table_lines(result), ""]
    lines.append(
        "Before is the bare base, after is what is live. Nobody, simulated or not, voted on these problems. "
        f"Simulated votes: {result.votes['thumbs_up']} thumbs up, {result.votes['thumbs_down']} down, "
        f"{result.votes['comparisons']} comparisons, {result.votes['rewrites']} rewrites."
    )
    plain = result.table[PLAIN_GROUP]
    lines.append(
        f"Under the plain preset, which nobody voted on, {plain['before'].asks:.0f} in 100 replies asked a question "
        f"before and {plain['after'].asks:.0f} after (n = {plain['after'].n})."
    )
    lines.append(f"The night: {result.night.get('outcome')}. Live now: {result.adapter or 'the base'}.")
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines.append(f"Wall time {sum(seconds.values()) / 60:.1f} min ({spent}); peak memory {result.peak_gb} GB.")
    lines += ["", "## Some replies", ""]
    for example in result.examples:
        lines += [f"- **{example['problem']}**", f"  - before: {example['before']}", f"  - after: {example['after']}"]
    return lines


def plot(result: Rehearsal, path: Path) -> None:
    """Draw before and after for problems of other kinds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    measures = result.table["other kinds"]
    for offset, (when, colour) in enumerate((("before", "#b8b8c8"), ("after", "#3b5bdb"))):
        values = [asdict(measures[when])[key] for key, _ in ROWS]
        places = [row + 0.4 * offset for row in range(len(ROWS))]
        bars = axes.barh(places, values, height=0.38, color=colour, label=when)
        axes.bar_label(bars, fmt="%.0f", padding=3)
    for row, (key, _) in enumerate(ROWS):
        if key in TARGETS:
            axes.plot([TARGETS[key]] * 2, [row - 0.25, row + 0.65], color="black", linewidth=1)
    axes.set_yticks([row + 0.2 for row in range(len(ROWS))], [words for _, words in ROWS])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xlabel(f"in 100 replies to problems of kinds nobody voted on (n = {measures['after'].n}); line: target")
    axes.set_title("One rehearsal with simulated raters")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def write_report(result: Rehearsal) -> None:
    """Write rehearsal.json, rehearsal.md and rehearsal.png into the home."""
    home = Path(result.home)
    (home / "rehearsal.json").write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False), encoding="utf-8")
    (home / "rehearsal.md").write_text("\n".join(report_lines(result)) + "\n", encoding="utf-8")
    plot(result, home / "rehearsal.png")


def _replies(
    result: Rehearsal,
    engine: Engine,
    settings: Settings,
    groups: dict[str, list[Problem]],
    adapter: str | None,
    when: str,
) -> dict[str, list[str]]:
    """Answer every problem of the table and judge the replies. Seeds are the same before and after."""
    texts: dict[str, list[str]] = {}
    with result.phase(when), ProgressBar() as progress:
        for group, problems in groups.items():
            preset = PLAIN if group == PLAIN_GROUP else SOCRATIC
            requests = [request_for(problem, settings, i, adapter, preset) for i, problem in enumerate(problems)]
            texts[group] = [reply.text for reply in generate(engine, requests, progress, f"{when}, {group}")]
            result.table.setdefault(group, {})[when] = measure(problems, texts[group])
    return texts


def _examples(
    groups: dict[str, list[Problem]], before: dict[str, list[str]], after: dict[str, list[str]], count: int = 12
) -> list[dict[str, str]]:
    group = "other kinds"
    rows = list(zip(groups[group], before[group], after[group], strict=True))[:count]
    return [
        {"problem": _line(problem.text), "before": _line(old)[:300], "after": _line(new)[:300]}
        for problem, old, new in rows
    ]


def _line(text: str) -> str:
    return " ".join(text.split())


def _in_100(marks: Sequence[bool]) -> float:
    return round(100 * sum(marks) / len(marks), 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `python -m finetune rehearse` takes beside --home and --json."""
    parser.add_argument("--problems", type=positive, default=200, metavar="N", help="problems that are voted on")
    parser.add_argument("--test", type=positive, default=102, metavar="N", help="problems of other kinds in the table")
    parser.add_argument("--seed", type=int, default=0, help="decides problems, simulated votes and sampling")


def run(args: argparse.Namespace) -> int:
    """Rehearse, write the report into the home, and show the table."""
    home = args.home or os.environ.get("NIGHTSCHOOL_HOME") or tempfile.mkdtemp(prefix="nightschool-rehearsal-")
    sys.stderr.write(f"Rehearsal with simulated raters in {home}\n")
    result = rehearse(load_settings(home), problems=args.problems, test=args.test, seed=args.seed)
    write_report(result)
    if args.json:
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    else:
        sys.stdout.write(
            "\n".join(report_lines(result)) + f"\n\nAll of it is in {home}/rehearsal.json, .md and .png.\n"
        )
    return 0
