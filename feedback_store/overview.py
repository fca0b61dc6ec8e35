"""The operator's numbers: how much there is, and how people vote. Counted where it lies, so that it stays quick."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from statistics import median

from sqlite_utils import Database

from feedback_store.agreement import (
    VERDICT,
    Agreement,
    LeftBias,
    Verdict,
    Verdicts,
    left_bias_of,
    measure_counts,
    votes_a_minute,
)
from feedback_store.connection import Connections, one_row
from feedback_store.examples import read_counts

_CHOICES = f"""
    SELECT item, person_id, choice, {VERDICT} AS verdict, chosen_at FROM comparison
    WHERE choice IS NOT NULL ORDER BY item, chosen_at, seq"""
_TIMES = "SELECT person_id, updated_at FROM vote", "SELECT person_id, ranked_at FROM ranking"
"""One after the other, and the choices read once for all that is told of them: grouping, choosing among people or a
union in SQL takes two to three times as long."""
_HERE = "SELECT id FROM person WHERE kind IN ('owner', 'account')"


@dataclass(frozen=True)
class Overview:
    """What the operator sees of the votes."""

    counts: dict[str, int]
    agreement: Agreement
    left: LeftBias
    votes_a_minute: float | None
    """Of the median voter, among people who vote here; files and simulations have a pace of their own."""
    kept_from_teaching: int
    """People whose chats do not teach, because they said so or have not been asked yet."""


def read_overview(connections: Connections) -> Overview:
    """Return the numbers; the counts, which are SQLite's work alone, are made while the choices are read."""
    with ThreadPoolExecutor(1) as beside:
        counts = beside.submit(_count, connections)
        with connections.snapshot() as db:
            times: dict[int, list[str]] = {person_id: [] for (person_id,) in db.execute(_HERE)}
            said, sides = _read_choices(db, times)
            for sql in _TIMES:
                for person_id, at in db.execute(sql):
                    if person_id in times:
                        times[person_id].append(at)
            kept = one_row(db, "SELECT count(*) AS people FROM person WHERE teach <> 'on'")
        assert kept is not None
        return Overview(
            counts=counts.result(),
            agreement=measure_counts(said),
            left=left_bias_of(sides["left"], sides["right"]),
            votes_a_minute=_median_pace(times.values()),
            kept_from_teaching=kept["people"],
        )


def _count(connections: Connections) -> dict[str, int]:
    with connections.snapshot() as db:
        return read_counts(db)


def _read_choices(db: Database, times: dict[int, list[str]]) -> tuple[dict[Verdicts, int], Counter[str]]:
    """Return how many items got which verdicts, of one person's the last, and how often each side was chosen; the times
    are added to those of their people."""
    said: Counter[tuple[Verdict, ...]] = Counter()
    sides: Counter[str] = Counter()
    for item, judgements in groupby(db.execute(_CHOICES), key=itemgetter(0)):
        last: dict[int, Verdict] = {}
        for _, person_id, choice, verdict, at in judgements:
            last[person_id] = verdict
            sides[choice] += 1
            if person_id in times:
                times[person_id].append(at)
        if item is not None:
            said[tuple(sorted(last.values()))] += 1
    return {Verdicts.of(verdicts): count for verdicts, count in said.items()}, sides


def _median_pace(times: Iterable[list[str]]) -> float | None:
    """Return the votes a minute of the median voter; None while nobody has voted twice at a sitting."""
    paces = [votes_a_minute(found) for found in times]
    known = [pace for pace in paces if pace is not None]
    return median(known) if known else None
