"""How a night tells how far it is: one line a step in the run folder, and a bar with the time left."""

import json
import time
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Called after each step of a phase."""

    def __call__(self, phase: str, step: int, total: int, **numbers: float) -> None:
        """Take note of step `step` of `total`, with that step's numbers.

        A phase that goes on after a kill begins with the last step done and the number `resumed_at_step`.
        """
        ...


def silent(phase: str, step: int, total: int, **numbers: float) -> None:
    """Take note of nothing."""


class ProgressLog:
    """Appends `{"phase","step","total","seconds","eta_s",…}` to a file and passes the call on."""

    def __init__(self, path: Path, onward: Progress = silent) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._onward = onward
        self._phase = ""
        self._before = 0
        self._started = self._last = time.monotonic()

    def __call__(self, phase: str, step: int, total: int, **numbers: float) -> None:
        """Write one line at once, so that a page can follow."""
        if phase != self._phase:
            self._phase, self._started = phase, self._last  # a phase begins where the one before it ended
            self._before = step if "resumed_at_step" in numbers else 0
        self._last = time.monotonic()
        seconds = self._last - self._started
        done = step - self._before
        eta_s = seconds / done * (total - step) if done else None
        line = {"phase": phase, "step": step, "total": total, "seconds": round(seconds, 3)}
        eta = {"eta_s": None if eta_s is None else round(eta_s, 1)}
        self._file.write(json.dumps({**line, **eta, **numbers}) + "\n")
        self._file.flush()
        self._onward(phase, step, total, **numbers)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ProgressBar:
    """A bar a phase on standard error, with the time left."""

    def __init__(self) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> "ProgressBar":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, phase: str, step: int, total: int, **numbers: float) -> None:
        """Move the phase's bar."""
        if phase not in self._tasks:
            before = step if "resumed_at_step" in numbers else 0
            self._tasks[phase] = self._bars.add_task(phase, completed=before, total=total, numbers="")
        shown = "  ".join(f"{name} {numbers[name]:.3f}" for name in ("loss", "accuracy", "margin") if name in numbers)
        if "resumed_at_step" in numbers:
            shown = f"continues at step {numbers['resumed_at_step']} of {total}"
        self._bars.update(self._tasks[phase], completed=step, total=total, numbers=shown)  # type: ignore[arg-type]
