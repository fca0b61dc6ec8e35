"""Reference log-probabilities: what the bare base thinks of each completion, computed once for all nights.

Kept under (base id, numeric form, template hash) and a row's tokens: a prompt and all the completions that share its
row, as in training, since the last bits depend on them. The adapter is no part of the key, since every night starts
from the same frozen base.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from transformers import PreTrainedModel

from finetune.batches import Encoded, SharedRow, row_key, single_rows
from finetune.errors import TrainingAborted
from finetune.processes import ALONE, World
from finetune.progress import Progress, silent
from finetune.scoring import completion_logps, how_to_share

TOGETHER = 16
"""Rows between two writes: what a killed night loses at most."""


class LogpCache:
    """One append-only file of `{"key","logps"}` lines; a torn last line, and what is not finite, is passed over."""

    def __init__(self, cache_dir: Path, base_id: str, numeric_form: str, template_hash: str) -> None:
        name = hashlib.sha256(repr((base_id, numeric_form, template_hash)).encode()).hexdigest()[:24]
        self.path = cache_dir / "reference" / f"{name}.jsonl"
        self._logps: dict[str, list[float]] = {}
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                self._read_line(line)

    def get(self, row: SharedRow) -> list[float] | None:
        """Look a row up: a number for each of its completions."""
        return self._logps.get(row_key(row))

    def record(self, rows: Sequence[SharedRow], logps: Sequence[list[float]]) -> None:
        """Add rows and write them out."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for row, of_row in zip(rows, logps, strict=True):
            self._logps[row_key(row)] = of_row
            lines.append(json.dumps({"key": row_key(row), "logps": of_row}))
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")  # the first newline ends a line that a kill tore

    def _read_line(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            logps = [float(logp) for logp in entry["logps"]]
            if all(map(math.isfinite, logps)):
                self._logps[entry["key"]] = logps
        except (ValueError, KeyError, TypeError):
            return


def reference_rows(model: PreTrainedModel, examples: Sequence[Encoded]) -> list[SharedRow]:
    """List the rows whose log-probabilities under the base are needed, shared as in training."""
    sharing = how_to_share(model)
    return [row for e in examples if e.is_judged for row in (*e.packed(sharing), *e.mismatch)]


def reference_logps(
    model: PreTrainedModel,
    rows: Sequence[SharedRow],
    cache: LogpCache,
    progress: Progress = silent,
    phase: str = "reference",
    world: World = ALONE,
) -> dict[str, float]:
    """Give each completion's log-probability under the bare base, from the cache where it is known.

    Args:
        model: the bare base, no adapter attached or in use.
        rows: prompt and the ids of one completion or several.
        cache: of this base in this numeric form; rank 0's counts, and it alone writes.
        progress: told after every few rows.
        phase: the name progress hears.
        world: who computes a part of it.

    Returns:
        The key of each prompt with one completion to its summed log-probability.
    """
    missing = world.tell(list({row_key(row): row for row in rows if cache.get(row) is None}.values()))
    together = TOGETHER * world.size
    for start in range(0, len(missing), together):
        part = missing[start : start + together]
        logps = shared_logps(model, part, world)
        if not all(map(math.isfinite, chain.from_iterable(logps.values()))):
            raise TrainingAborted(
                "The base itself gives a reply a probability that is not a number, so nothing compares with it. "
                "Check the model's files, or take another model."
            )
        if world.rank == 0:
            cache.record(part, [logps[row_key(row)] for row in part])
        progress(phase, start + len(part), len(missing))
    found: dict[str, float] = {}
    for row in rows:
        known = cache.get(row) or []  # rank 0 knows all of them
        found.update(zip(map(row_key, single_rows([row])), known, strict=world.rank == 0))
    return world.tell(found)


def shared_logps(model: PreTrainedModel, rows: Sequence[SharedRow], world: World) -> dict[str, list[float]]:
    """Compute rows in shares, for all: row key to the summed log-probability of each completion."""
    mine = world.share(rows, lambda row: sum(map(len, row)))
    return world.gather(dict(zip(map(row_key, mine), completion_logps(model, mine), strict=True)))
