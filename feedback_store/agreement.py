"""Who votes how: do people agree, does anybody agree with nobody, is the left side favoured, who is how fast.

Functions over judgements, all but `read_judged` pure; nothing here writes, and nothing here judges anybody alone: the
numbers become weights and flags in `influence.py`. An item is what was judged, by content: the same prompt with the
same two replies, on whichever side they stood. Percent agreement counts pairs of judgements by different people on one
item, all items pooled.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from feedback_store.connection import rows
from feedback_store.items import name_item
from feedback_store.records import Choice, Turn

if TYPE_CHECKING:
    from feedback_store.store import Store

Verdict = Literal["first", "second", "neither"]
"""Which of an item's two replies was preferred, in the item's own order; `neither` is a tie or both bad."""
Z95 = 1.959964
VERDICT = """
    CASE WHEN choice NOT IN ('left', 'right') OR left_first IS NULL THEN 'neither'
        WHEN (choice = 'left') = left_first THEN 'first' ELSE 'second' END"""
"""SQL for the verdict of a comparison."""
_JUDGED = f"""
    SELECT item, person_id, {VERDICT} AS verdict FROM comparison
    WHERE choice IS NOT NULL AND item IS NOT NULL ORDER BY chosen_at, seq"""


@dataclass(frozen=True)
class Judged:
    """What one person said about one item."""

    item: str
    person_id: int
    verdict: Verdict


class Verdicts(NamedTuple):
    """How many people said what of an item."""

    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, said: Iterable[Verdict]) -> "Verdicts":
        """Count verdicts."""
        counted = Counter(said)
        return cls(counted["first"], counted["second"], counted["neither"])


@dataclass(frozen=True)
class Agreement:
    """How far people agree on what two or more of them judged."""

    items: int
    """Judged by two or more people."""
    pairs: int
    """Of judgements by different people on one item."""
    percent: float | None
    """Share of those pairs that say the same, 0 to 1; None without pairs."""
    decided_pairs: int
    decided_percent: float | None
    """The same where both preferred one reply."""
    kappa: float | None
    """Fleiss' kappa over all verdicts: 0 is chance, 1 is always; None where chance alone would be certain."""


@dataclass(frozen=True)
class LeftBias:
    """How often the left side was chosen where a side was."""

    chosen: int
    left: int
    share: float | None
    low: float | None
    """The 95 % interval; 0.5 inside it is no sign of a bias."""
    high: float | None


def judge(
    prompt: Sequence[Turn],
    left: str,
    right: str,
    choice: Choice,
    person_id: int,
    *,
    models: tuple[str, str] = ("", ""),
) -> Judged:
    """Return a side-by-side choice as a verdict on its item, whichever side each reply was on.

    Args:
        models: what made the left and the right reply, where equal words of different models are different items.
    """
    item = name_item(prompt, left, right, models)
    assert item.id is not None, "there is a prompt"
    verdict: Verdict = "neither"
    if choice in ("left", "right") and item.left_first is not None:
        verdict = "first" if (choice == "left") == item.left_first else "second"
    return Judged(item.id, person_id, verdict)


def read_judged(store: "Store") -> Iterator[Judged]:
    """Yield every choice between two replies to one prompt as a verdict, oldest first; equal words of two adapters are
    told apart. What people keep from teaching counts too: this is about how they vote."""
    with store.connections.snapshot() as db:
        for row in rows(db, _JUDGED):
            yield Judged(row["item"], row["person_id"], row["verdict"])


def measure(judged: Iterable[Judged]) -> Agreement:
    """Measure agreement; of one person's judgements of one item the last counts."""
    return measure_counts(Counter(Verdicts.of(votes.values()) for votes in _by_item(judged).values()))


def measure_counts(items: Mapping[Verdicts, int]) -> Agreement:
    """Measure agreement from how many items got which verdicts; those that one person judged say nothing."""
    shared = {verdicts: items[verdicts] for verdicts in sorted(items) if sum(verdicts) > 1}
    pairs = sum(count * math.comb(sum(verdicts), 2) for verdicts, count in shared.items())
    same = sum(count * math.comb(n, 2) for verdicts, count in shared.items() for n in verdicts)
    decided = sum(count * math.comb(v.first + v.second, 2) for v, count in shared.items())
    decided_same = sum(count * math.comb(n, 2) for v, count in shared.items() for n in (v.first, v.second))
    return Agreement(
        items=sum(shared.values()),
        pairs=pairs,
        percent=same / pairs if pairs else None,
        decided_pairs=decided,
        decided_percent=decided_same / decided if decided else None,
        kappa=fleiss_kappa(shared.items()),
    )


def fleiss_kappa(items: Collection[tuple[Sequence[int], int]]) -> float | None:
    """Return how far agreement exceeds chance, over items with two or more judgements each.

    Items may have different numbers of judgements n_i: the observed agreement is the mean of P_i over items, chance
    the sum of the squared overall shares p_j.

    Args:
        items: numbers of judgements by category, each with how many items have them.

    Source: Fleiss 1971, "Measuring nominal scale agreement among many raters", equations 1 to 7.
    """
    observed = 0.0
    for verdicts, count in items:
        n = sum(verdicts)
        assert n > 1, "an item that one person judged says nothing about agreement"
        observed += count * sum(said * (said - 1) for said in verdicts) / (n * (n - 1))  # P_i
    if not items:
        return None
    weighed = [[said * count for said in verdicts] for verdicts, count in items]
    totals = [sum(category) for category in zip(*weighed, strict=True)]
    chance = sum((total / sum(totals)) ** 2 for total in totals)
    return (observed / sum(count for _, count in items) - chance) / (1 - chance) if chance < 1 else None


def agreement_with_others(judged: Iterable[Judged]) -> dict[int, tuple[int, int]]:
    """Return by person how many judgements of others on the same items said the same, and of how many."""
    found: dict[int, tuple[int, int]] = {}
    for votes in _by_item(judged).values():
        said = Counter(votes.values())
        for person, verdict in votes.items() if len(votes) > 1 else ():
            same, count = found.get(person, (0, 0))
            found[person] = (same + said[verdict] - 1, count + len(votes) - 1)
    return found


def left_bias(choices: Iterable[Choice]) -> LeftBias:
    """Return how often left was chosen where a side was, with its interval."""
    counted = Counter(choices)
    return left_bias_of(counted["left"], counted["right"])


def left_bias_of(left: int, right: int) -> LeftBias:
    """Return the share of the left side, with Wilson's 95 % interval.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    n = left + right
    if not n:
        return LeftBias(0, 0, None, None, None)
    share = left / n
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return LeftBias(n, left, share, max(0.0, middle - reach), min(1.0, middle + reach))


def votes_a_minute(times: Iterable[str], *, gap_s: float = 300.0) -> float | None:
    """Return how many votes a minute somebody gave while voting; None for fewer than two close to each other.

    Args:
        times: when they voted, as the store writes it, in any order.
        gap_s: a longer pause, in seconds, is not voting.
    """
    moments = [datetime.fromisoformat(time).timestamp() for time in sorted(times)]
    gaps = [later - earlier for earlier, later in pairwise(moments) if later - earlier <= gap_s]
    if not gaps:
        return None
    return 60 * len(gaps) / max(sum(gaps), 1e-6)


def _by_item(judged: Iterable[Judged]) -> dict[str, dict[int, Verdict]]:
    items: defaultdict[str, dict[int, Verdict]] = defaultdict(dict)
    for one in judged:
        items[one.item][one.person_id] = one.verdict
    return items
