"""How fast the local engine answers beside llama.cpp: python -m bench.serving [--rounds 3]

Rounds of llama.cpp with the embedded file, llama.cpp with the same weights as Q4_0, and this project's engine, in turn
on as many threads; each figure is the median of its rounds. Prints a Markdown table with the targets, for README.md.
What the chat page adds to a reply of the base is measured as `bench.page` says.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from assistant import bench
from assistant.loading import embedded_file
from assistant.settings import load_settings
from bench import page

ROOT = Path(__file__).parent.parent
RIVAL = ROOT / "bench" / "rivals" / "llama_cpp_chat.py"
SHORT, LONG = 70, 512
"""Prompt tokens of llama.cpp's rounds, as those of `assistant bench`."""
FORMS = {"Q4_1": False, "Q4_0": True}
"""The embedded file's own form, and the one that is written from it."""
VERSUS = {
    "decode_tok_s": ("decode_tok_s", 1.0),
    "prefill_tok_s": ("prefill_tok_s", 3.0),
    "answer_s": ("answer_s", 1.5),
    "eight_chats_tok_s": ("decode_tok_s", 2.5),
}
"""Ours -> llama.cpp's, and how many times as good ours is to be."""
LIMITS = {
    "side_by_side_ratio": (1.3, ""),
    "second_turn_ratio": (0.2, ""),
    "ready_s": (10.0, " s"),
    "kl_nat": (0.02, " nat"),
    page.NAME: (10.0, " %"),
}
"""What ours may come to at most, with its unit."""
KEPT = 0.8
"""How much of each row is to remain with a live adapter."""
TITLES = {**bench.TITLES, page.NAME: page.TITLE}


def measure(rival_python: Path, rounds: int, home: str | None) -> dict[str, Any]:
    """Run the rounds; returns `ours`, `llama.cpp` by form, and what they ran on."""
    settings = load_settings(home)
    threads = settings.threads or torch.get_num_threads()
    theirs: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    ours: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for form, requantize in FORMS.items():
                _say(f"round {number + 1} of {rounds}: llama.cpp {form}")
                job = {"file": str(embedded_file()), "threads": threads, "short": SHORT, "long": LONG}
                job |= {"reply": bench.REPLY, "runs": 2, "requantize": requantize}
                theirs[form].append(_run_rival(rival_python, job, Path(folder)))
            figures = bench.measure(settings, 1, lambda what, n=number: _say(f"round {n + 1} of {rounds}: {what}"))
            _say(f"round {number + 1} of {rounds}: {page.NAME}")
            ours.append({**figures, page.NAME: page.measure(settings)})
    return {
        "machine": _machine(),
        "threads": threads,
        "ours": _medians(ours),
        "llama.cpp": {form: _medians(found) for form, found in theirs.items()},
    }


def table(found: dict[str, Any]) -> str:
    """Lay it out in Markdown: the better of llama.cpp's two forms counts, row by row."""
    ours, theirs = found["ours"], found["llama.cpp"]
    lines = [
        f"| {found['machine']}, {found['threads']} threads | base | with an adapter | llama.cpp | ratio | target |",
        "|---|---|---|---|---|---|",
        *(f"| {title} | {' | '.join(_cells(name, ours, theirs))} |" for name, title in TITLES.items()),
    ]
    build = next(iter(theirs.values()))
    lines += ["", f"Ours: {ours['numeric_form']}. llama-cpp-python {build['version']}: {build['build'].strip(' |')}."]
    if "amx" in found["machine"]:
        lines.append("llama.cpp is built without AMX, with which this version crashes; ours reads prompts with it.")
    return "\n".join(lines)


def _cells(name: str, ours: dict[str, Any], theirs: dict[str, dict[str, Any]]) -> list[str]:
    """What a row says behind its title."""
    base, adapted = ours[name], ours.get(f"{name}_adapter")
    cells = [bench.shown(base), "" if adapted is None else _kept(name, adapted, base)]
    if name in VERSUS:
        rival, times = VERSUS[name]
        form, best = _best(theirs, rival)
        ratio = _times_as_good(name, base, best)
        chats = ", one chat" if name == "eight_chats_tok_s" else ""
        return [
            *cells,
            f"{bench.shown(best)} ({form}{chats})",
            f"{ratio:.2f}",
            f"{times:g}, {_verdict(ratio >= times)}",
        ]
    limit, unit = LIMITS[name]
    return [*cells, "", "", f"≤ {limit:g}{unit}, {_verdict(base <= limit)}"]


def _kept(name: str, adapted: float, base: float) -> str:
    """The figure with a live adapter, and whether enough of the base's remains."""
    share = _times_as_good(name, adapted, base)
    judged = f"{share:.2f}, reached" if share >= KEPT else f"**not reached**: {share:.2f} of {KEPT:g}"
    return f"{bench.shown(adapted)} ({judged})"


def _times_as_good(name: str, one: float, other: float) -> float:
    """How many times as good a figure is as another: of rates the higher is better, of seconds the lower."""
    return one / other if name.endswith("tok_s") else other / one


def _best(theirs: dict[str, dict[str, Any]], name: str) -> tuple[str, float]:
    choose = max if name.endswith("tok_s") else min
    form = choose(theirs, key=lambda one: theirs[one][name])
    return form, theirs[form][name]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    first = found[0]
    return {
        name: statistics.median(one[name] for one in found) if isinstance(value, float) else value
        for name, value in first.items()
    }


def _run_rival(python: Path, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    answer = folder / "answer.json"
    try:
        done = subprocess.run([python, RIVAL, folder / "job.json", answer], check=False)
    except OSError as error:
        raise SystemExit(f"{python} is not there; run: make bench") from error
    if done.returncode:
        raise SystemExit("llama.cpp did not run; the table needs it.")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    return f"{name} ({', '.join(units)}), {os.cpu_count()} cores"


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rival-python", type=Path, default=ROOT / ".venv-rivals" / "bin" / "python")
    parser.add_argument("--home", default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.rival_python, args.rounds, args.home)
    sys.stdout.write((json.dumps(found) if args.json else table(found)) + "\n")


if __name__ == "__main__":
    main()
