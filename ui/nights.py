"""Runs as the web app sees them: the run folders, read only, and the nightly command, started as a process.

Never imports the training package: what it writes is read as files.
"""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from feedback_store.records import utc_now

TAIL_BYTES = 8192
RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
PLOT = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}\.png")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    phase: str
    step: int
    total: int
    eta_s: float | None


class Nights:
    """The folder of runs, and at most one nightly process started from here."""

    def __init__(self, home: Path, runs_dir: Path) -> None:
        self._home = home
        self._runs_dir = runs_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = ""
        self._lock = threading.Lock()

    @property
    def log_path(self) -> Path:
        """What the last process that was started here has said."""
        return self._home / "retrain.log"

    def start(self) -> bool:
        """Start the nightly command in a session of its own, so that it outlives the app; False if one runs."""
        with self._lock:
            if self.running:
                return False
            command = [sys.executable, "-m", "finetune", "nightly", "--home", str(self._home)]
            root = Path(__file__).resolve().parent.parent
            search = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH", "")) if part)
            self._started_at = utc_now()
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "PYTHONPATH": search},
                )  # fmt: skip
            return True

    @property
    def running(self) -> bool:
        """Whether the process that was started here is alive."""
        return self._process is not None and self._process.poll() is None

    def none_holds_the_lock(self) -> bool:
        """Whether no night, whoever started it, is under way in this home: a killed one leaves its lock free."""
        lock = FileLock(self._home / "night.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True

    def wait(self) -> int | None:
        """Wait for the process that was started here and return its exit status."""
        return self._process.wait() if self._process else None

    @property
    def started_at(self) -> str:
        """When the last process was started here, as the store writes time; empty when none was."""
        return self._started_at

    def last_words(self) -> str:
        """The last line that the process wrote."""
        lines = _tail(self.log_path).strip().splitlines()
        return lines[-1].strip() if lines else ""

    def progress(self, run_id: str) -> Progress | None:
        """Read the last whole line of a run's progress."""
        folder = self._folder(run_id)
        for line in reversed(_tail(folder / "progress.jsonl").splitlines()) if folder else ():
            try:
                row = json.loads(line)
                eta = row.get("eta_s")
                return Progress(
                    str(row["phase"]), int(row["step"]), int(row["total"]), None if eta is None else float(eta)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the first line of the tail may be cut, the last half-written
        return None

    def report(self, run_id: str) -> dict[str, Any]:
        """Read a run's report, or nothing when there is none yet."""
        folder = self._folder(run_id)
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8")) if folder else {}
        except (OSError, ValueError):
            return {}
        return report if isinstance(report, dict) else {}

    def plots(self, run_id: str) -> list[str]:
        """Names of a run's plots."""
        folder = self._folder(run_id)
        return sorted(path.name for path in folder.glob("*.png") if PLOT.fullmatch(path.name)) if folder else []

    def plot_path(self, run_id: str, name: str) -> Path | None:
        """The file of a plot, or None for anything that is not one."""
        folder = self._folder(run_id)
        if not folder or not PLOT.fullmatch(name):
            return None
        path = folder / name
        return path if path.is_file() and not path.is_symlink() else None

    def _folder(self, run_id: str) -> Path | None:
        return self._runs_dir / run_id if RUN_ID.fullmatch(run_id) else None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
