"""The morning report: report.json for the app, report.md for people, plots. Knows no model and no store."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLOTS = (
    ("loss", "Loss"),
    ("accuracy", "Training accuracy"),
    ("margin", "Reward margin"),
    ("chosen_logp", "Chosen log-prob."),
    ("reward", "Mean reward"),
    ("kl", "KL"),
    ("entropy", "Entropy"),
    ("clip_fraction", "Clip fraction"),
    ("length", "Tokens a reply"),
)


def write_report(folder: Path, report: dict[str, Any], history: Sequence[dict[str, float]]) -> None:
    """Write a run's report files.

    Args:
        folder: the run's folder.
        report: run, outcome, reasons, counts, and, as far as the night came, training, gate, examination.
        history: the numbers of each training step; empty when nothing was trained.
    """
    if history:
        plot_history(folder / "training.png", history)
    (folder / "report.md").write_text(render_markdown(report, has_plot=bool(history)), encoding="utf-8")
    temporary = folder / "report.json.tmp"
    temporary.write_text(json.dumps(plain(report), indent=2), encoding="utf-8")
    os.replace(temporary, folder / "report.json")  # last and whole: the app takes it for the end of the run


def render_markdown(report: dict[str, Any], has_plot: bool) -> str:
    """Render a report for people."""
    lines = [f"# Night {report['run']}: {report['outcome']}", ""]
    lines += [f"- {reason}" for reason in report["reasons"]]
    if report.get("live_unusable"):
        lines.append(f"- {report['live_unusable']}")
    if report.get("gate"):
        lines += [
            "",
            "## Gate",
            "",
            f"Live: {report.get('live') or 'the bare base'}. Candidate: {report['candidate']}.",
            "",
        ]
        lines += ["| check | live | candidate | limit | passed |", "|---|---|---|---|---|"]
        for row in report["gate"]:
            numbers = " | ".join(f"{row[name]:.4g}" for name in ("live", "candidate", "limit"))
            lines.append(f"| {row['check']} | {numbers} | {'yes' if row['passed'] else '**no**'} |")
        lines += ["", *(f"- {row['note']}" for row in report["gate"])]
    if report.get("examination"):
        found = report["examination"]["candidate"]
        lines += ["", "## Examination", ""]
        lines.append(
            f"Held-out accuracy {found['accuracy']:.3f} (95 % {found['low']:.3f} to {found['high']:.3f}, "
            f"n = {found['n']}); the longer reply wins {found['length_baseline']:.3f}; by log-probability a token "
            f"{found['token_logprob_accuracy']:.3f}."
        )
    if report.get("notes"):
        lines += ["", "## What was left out or changed", "", *(f"- {note}" for note in report["notes"])]
    lines += _side_by_side(report)
    for title, name in (("Votes", "counts"), ("Training", "training")):
        if report.get(name):
            lines += ["", f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in report[name].items()]
    if has_plot:
        lines += ["", "![Training](training.png)"]
    return "\n".join(lines) + "\n"


def _side_by_side(report: dict[str, Any]) -> list[str]:
    """Set base, SFT, DPO and PPO side by side, where the night made them."""
    if not report.get("side_by_side"):
        return []
    lines = ["", "## Side by side", ""]
    if found := report["reward_model"]:
        where = f"{found['low']:.3f} to {found['high']:.3f}, {found['n']} pairs"
        lines += [f"Tonight's reward model: held-out accuracy {found['accuracy']:.3f} (95 % {where}).", ""]
    lines += ["| | held-out accuracy (95 %) | by log-prob. a token | mean reward (± SE) | KL to PPO's start | tokens |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in report["side_by_side"]:
        accuracy = f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        gained = f"{row['reward']:.3f} ± {row['reward_error']:.3f}"
        lines.append(
            f"| {row['name']} | {accuracy} | {row['token_logprob_accuracy']:.3f} | {gained} | {row['kl']:.3f} "
            f"| {row['length']:.1f} |"
        )
    lines += ["", "Rewards are of one fresh reply to each held-out prompt; KL in nats a token of these replies."]
    return lines


def plain(value: Any) -> Any:
    """Copy a value for JSON: numbers it has no word for become null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def plot_history(path: Path, history: Sequence[dict[str, float]], plots: Sequence[tuple[str, str]] = PLOTS) -> None:
    """Draw the curves of a training.

    Args:
        path: of the picture.
        history: the numbers of each step.
        plots: names of numbers and their titles; those that no step has are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(name, title) for name, title in plots if any(name in step for step in history)]
    figure = Figure(figsize=(3.6 * len(shown), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (name, title) in zip(axes, shown, strict=True):
        steps = [number for number, step in enumerate(history, 1) if name in step]
        axis.plot(steps, [history[number - 1][name] for number in steps], linewidth=1.5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
