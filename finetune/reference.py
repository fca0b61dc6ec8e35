"""Reference log-probabilities: what the bare base thinks of each completion, computed once for all nights.

Kept under (base id, numeric form, template hash) and the row's tokens. The adapter is no part of the key,
since every night starts from the same frozen base.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from finetune.batches import Row, row_key
from finetune.processes import ALONE, World
from finetune.progress import Progress, silent
from finetune.scoring import row_logps

TOGETHER = 16
"""Rows between two writes: what a killed night loses at most."""


class LogpCache:
    """One append-only file of `{"key","logp"}` lines; a torn last line is passed over."""

    def __init__(self, cache_dir: Path, base_id: str, numeric_form: str, template_hash: str) -> None:
        name = hashlib.sha256(repr((base_id, numeric_form, template_hash)).encode()).hexdigest()[:24]
        self.path = cache_dir / "reference" / f"{name}.jsonl"
        self._logps: dict[str, float] = {}
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                self._read_line(line)

    def get(self, row: Row) -> float | None:
        """Look a row up."""
        return self._logps.get(row_key(row))

    def record(self, rows: Sequence[Row], logps: Sequence[float]) -> None:
        """Add rows and write them out."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for row, logp in zip(rows, logps, strict=True):
            self._logps[row_key(row)] = logp
            lines.append(json.dumps({"key": row_key(row), "logp": logp}))
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")  # the first newline ends a line that a kill tore

    def _read_line(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._logps[entry["key"]] = float(entry["logp"])
        except (ValueError, KeyError, TypeError):
            return


def reference_logps(
    model: PreTrainedModel,
    rows: Sequence[Row],
    cache: LogpCache,
    progress: Progress = silent,
    phase: str = "reference",
    world: World = ALONE,
) -> dict[str, float]:
    """Give each row's log-probability under the bare base, from the cache where it is known.

    Args:
        model: the bare base, no adapter attached or in use.
        rows: prompt and completion ids.
        cache: of this base in this numeric form; rank 0's counts, and it alone writes.
        progress: told after every few rows.
        phase: the name progress hears.
        world: who computes a part of it.

    Returns:
        Row key to summed log-probability.
    """
    missing = world.tell(list({row_key(row): row for row in rows if cache.get(row) is None}.values()))
    together = TOGETHER * world.size
    for start in range(0, len(missing), together):
        part = missing[start : start + together]
        logps = shared_logps(model, part, world)
        if world.rank == 0:
            cache.record(part, [logps[row_key(row)] for row in part])
        progress(phase, start + len(part), len(missing))
    found = {row_key(row): cache.get(row) for row in rows}
    return world.tell({key: logp for key, logp in found.items() if logp is not None})


def shared_logps(model: PreTrainedModel, rows: Sequence[Row], world: World) -> dict[str, float]:
    """Compute rows in shares, for all: row key to summed log-probability."""
    mine = world.share(rows, lambda row: len(row[0]) + len(row[1]))
    return world.gather(dict(zip(map(row_key, mine), row_logps(model, mine), strict=True)))
