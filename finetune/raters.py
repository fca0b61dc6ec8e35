"""What one person's votes may do to a night: bounded shares, a wait for the newest, each question counted once.

Wires the store's pure functions (`feedback_store.influence`, `feedback_store.agreement`) to a night's examples. Whom
to believe is decided from votes alone; nobody is named anywhere but in the weights.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from statistics import median
from typing import NamedTuple

from assistant.settings import NightSettings
from feedback_store import Store
from feedback_store.agreement import Judged, agreement_with_others, read_judged
from feedback_store.influence import Vote, weigh
from feedback_store.records import Choice
from finetune.collect import Votes, collect_votes
from finetune.examples import Example
from finetune.intervals import share_interval

ENOUGH_IN_COMMON = 10
"""Judgements that somebody must share with others before disagreeing says anything."""
LATEST = 1000
"""Comparisons of a person that are looked at for the side they take, the newest ones."""
CHANCE = 1e-3
"""How improbable a preference for one side must be before somebody is not heard."""
MOSTLY = 0.75
"""And how large: from here on the side decides half of the choices or more (of the others half fall on it, too)."""


class Sides(NamedTuple):
    """How often somebody chose the left and the right reply."""

    left: int
    right: int


def tonights_votes(store: Store, limits: NightSettings, now: datetime) -> Votes:
    """Read what a night may learn from, each vote with the weight that it has tonight."""
    votes = collect_votes(store, now=now, half_life_days=limits.half_life_days)
    return bound_influence(votes, read_judged(store), read_sides(store), limits, now)


def read_sides(store: Store) -> dict[int, Sides]:
    """Count by person the sides chosen; not of imported people, whose files may have shown the better reply first."""
    return {
        person.id: count_sides(shown.choice for shown in store.votes.comparisons(person.id, limit=LATEST))
        for person in store.people.all()
        if person.kind != "imported"
    }


def count_sides(choices: Iterable[Choice | None]) -> Sides:
    """Count the choices of a side; ties and what is not decided yet are none."""
    counted = Counter(choices)
    return Sides(counted["left"], counted["right"])


def bound_influence(
    votes: Votes, judged: Iterable[Judged], sides: Mapping[int, Sides], limits: NightSettings, now: datetime
) -> Votes:
    """Weigh every example by who voted and when, and leave out what weighs nothing tonight.

    Args:
        votes: from collect_votes.
        judged: every side-by-side choice, to see who agrees with nobody.
        sides: by person, to see who takes one side whatever stands there.
        limits: largest_share, quarantine_hours and alike_prompts.
        now: the moment that the quarantine is counted from, UTC.

    Returns:
        The votes with their counts, among them how many were lessened and why.
    """
    contrary = {str(person) for person in contrary_people(judged)}
    sided = {str(person) for person in one_sided_people(sides)}
    heard = [example for example in votes.examples if example.person not in contrary | sided]
    influences = weigh(
        [Vote(e.person, e.created_at, e.prompt[-1]["content"], e.weight) for e in heard],
        now=now,
        largest_share=limits.largest_share,
        quarantine=timedelta(hours=limits.quarantine_hours),
        similarity=limits.alike_prompts,
    )
    flags = Counter(flag for influence in influences for flag in influence.flags)
    examples = tuple(
        replace(example, weight=influence.weight)
        for example, influence in zip(heard, influences, strict=True)
        if influence.weight > 0
    )
    counts = votes.counts | {
        "usable": len(examples),
        "alike": flags["near-duplicate"],
        "waiting": flags["quarantined"],
        "capped": flags["capped"],
        "contrary": sum(example.person in contrary for example in votes.examples),
        "by_side": sum(example.person in sided - contrary for example in votes.examples),
    }
    return Votes(examples, counts)


def bound_ai(examples: Iterable[Example], people_weight: float, limits: NightSettings) -> list[Example]:
    """Weigh what AI judges said: each by ai_weight, and all of it together at most ai_share of the night's weight.

    Args:
        examples: with their weights by age and sureness.
        people_weight: of all that people said and the night trains on.
        limits: ai_weight and ai_share.
    """
    said = list(examples)
    wanted = limits.ai_weight * sum(example.weight for example in said)
    room = people_weight * limits.ai_share / (1 - limits.ai_share)
    factor = limits.ai_weight * min(1.0, room / wanted) if wanted else 0.0
    return [replace(example, weight=example.weight * factor) for example in said if factor > 0]


def contrary_people(judged: Iterable[Judged]) -> set[int]:
    """Return who agrees with others less often than a coin, beyond chance, where the others agree with each other.

    Two people who contradict each other are both kept: nothing says which of them to believe.
    """
    shares = agreement_with_others(judged)
    if not shares or median(same / of for same, of in shares.values()) < 0.5:
        return set()
    return {person for person, (same, of) in shares.items() if of >= ENOUGH_IN_COMMON and _upper_bound(same, of) < 0.5}


def one_sided_people(sides: Mapping[int, Sides]) -> set[int]:
    """Return who mostly takes the same side, beyond chance; which reply stands where is drawn anew each time.

    A slight leaning is human and says something beside it: only who takes one side in more than MOSTLY of the choices
    is not heard.
    """
    return {
        person
        for person, chosen in sides.items()
        if max(chosen) > MOSTLY * sum(chosen) and coin_probability(chosen) < CHANCE
    }


def coin_probability(chosen: Sides) -> float:
    """Return how probable it is that a coin falls on one side so often, or more often, whichever side it is.

    Source: the two-sided binomial test, min(1, 2 Σ_{k ≥ max} C(n, k) / 2ⁿ).
    """
    n = sum(chosen)
    tail = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(max(chosen), n + 1)]
    return min(1.0, 2 * sum(math.exp(logarithm - n * math.log(2)) for logarithm in tail))


def _upper_bound(same: int, of: int) -> float:
    return share_interval([1.0] * same + [0.0] * (of - same), [str(place) for place in range(of)])[1]
