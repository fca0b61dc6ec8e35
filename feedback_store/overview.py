"""The operator's numbers: how much there is, and how people vote. Counted where it lies, so that it stays quick."""

from dataclasses import dataclass
from statistics import median

from sqlite_utils import Database

from feedback_store.agreement import (
    VERDICT,
    Agreement,
    LeftBias,
    Verdicts,
    left_bias_of,
    measure_counts,
    votes_a_minute,
)
from feedback_store.connection import one_row, rows
from feedback_store.examples import read_counts

_LAST_VERDICTS = f"""
    SELECT first, second, neither, count(*) AS items FROM (
        SELECT sum(verdict = 'first') AS first, sum(verdict = 'second') AS second, sum(verdict = 'neither') AS neither
        FROM (
            -- of the row with the largest value SQLite takes the other columns too
            SELECT item, {VERDICT} AS verdict, max(chosen_at || printf('%019d', seq)) FROM comparison
            WHERE choice IS NOT NULL AND item IS NOT NULL GROUP BY item, person_id
        ) GROUP BY item HAVING count(*) > 1
    ) GROUP BY first, second, neither"""
_SIDES = "SELECT choice, count(*) AS choices FROM comparison WHERE choice IN ('left', 'right') GROUP BY choice"
_TIMES = (
    "SELECT person_id, updated_at FROM vote",
    "SELECT person_id, chosen_at FROM comparison WHERE choice IS NOT NULL",
    "SELECT person_id, ranked_at FROM ranking",
)
"""One after the other: a union of them, or choosing among people in SQL, takes three times as long."""
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


def read_overview(db: Database) -> Overview:
    """Return the numbers as they are at this moment."""
    said = {Verdicts(row["first"], row["second"], row["neither"]): row["items"] for row in rows(db, _LAST_VERDICTS)}
    sides = {row["choice"]: row["choices"] for row in rows(db, _SIDES)}
    kept = one_row(db, "SELECT count(*) AS people FROM person WHERE teach <> 'on'")
    assert kept is not None
    return Overview(
        counts=read_counts(db),
        agreement=measure_counts(said),
        left=left_bias_of(sides.get("left", 0), sides.get("right", 0)),
        votes_a_minute=_median_pace(db),
        kept_from_teaching=kept["people"],
    )


def _median_pace(db: Database) -> float | None:
    """Return the votes a minute of the median voter; None while nobody has voted twice at a sitting."""
    times: dict[int, list[str]] = {person_id: [] for (person_id,) in db.execute(_HERE)}
    for sql in _TIMES:
        for person_id, at in db.execute(sql):
            if person_id in times:
                times[person_id].append(at)
    paces = [votes_a_minute(found) for found in times.values()]
    known = [pace for pace in paces if pace is not None]
    return median(known) if known else None
