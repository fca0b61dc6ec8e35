"""How much each vote may count: nobody's too much, nobody's newest at once, no question twice. Pure functions.

Training on people's votes is open to whoever votes most: two poisoned pairs in 400 can move a model. No filter sees
two pairs, so what one person can do is bounded. Nothing is dropped here: every example gets a weight from 0 to 1 and
the reasons for it, and the caller multiplies.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

Flag = Literal["capped", "quarantined", "near-duplicate"]
_MANY = 60
"""Halvings of the search for a common weight: more than a float can tell apart."""
_SHINGLE_CHARS = 5
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Vote:
    """What is looked at of an example."""

    person: str
    created_at: str
    """ISO 8601."""
    prompt: str
    """The person's words that were answered."""
    weight: float = 1.0
    """What it would weigh if nobody looked."""


@dataclass(frozen=True)
class Influence:
    """What an example may weigh, and why less than it would."""

    weight: float
    flags: tuple[Flag, ...]


def weigh(
    votes: Sequence[Vote],
    *,
    now: datetime,
    largest_share: float = 1.0,
    quarantine: timedelta = timedelta(0),
    similarity: float | None = None,
) -> list[Influence]:
    """Return each example's influence, in the same order: duplicates first, then quarantine, then shares.

    Args:
        now: the moment that quarantine is counted from, with its time zone.
        largest_share: of all weight that any one person may have, above 0; 1 sets no cap.
        quarantine: votes younger than this wait.
        similarity: prompts at least so alike, 0 to 1, count once together for each person; None compares nothing.
    """
    found = [Influence(vote.weight, ()) for vote in votes]
    if similarity is not None:
        found = _count_once(votes, found, similarity)
    found = _set_waiting(votes, found, now - quarantine)
    return _cap_shares(votes, found, largest_share)


def cap_factors(weights: dict[str, float], largest_share: float) -> dict[str, float]:
    """Return by person the factor, 0 to 1, after which nobody has more than that share of all weight.

    Shares are of what remains after capping, so everybody above the cap comes down to one common weight. Where there
    are too few people for anybody to keep it (1 / share or fewer) nothing is capped: a household of two would learn
    next to nothing from the one who votes.
    """
    assert 0 < largest_share <= 1
    heavy = {person: weight for person, weight in weights.items() if weight > 0}
    if len(heavy) * largest_share <= 1:
        return dict.fromkeys(weights, 1.0)
    low, high = min(heavy.values()), max(heavy.values())
    if not _keeps(heavy, high, largest_share):
        for _ in range(_MANY):
            middle = (low + high) / 2
            low, high = (middle, high) if _keeps(heavy, middle, largest_share) else (low, middle)
        high = low
    return {person: min(1.0, high / weight) if weight > 0 else 1.0 for person, weight in weights.items()}


def likeness(one: str, other: str) -> float:
    """Return how alike two prompts are: shared runs of 5 characters over all, in lower case, words only; 0 to 1."""
    return _overlap(_shingles(one), _shingles(other))


def group_alike(prompts: Sequence[str], similarity: float) -> list[int]:
    """Return for each prompt the place of the first one it is alike to, itself when it is the first.

    Only prompts that share a run of characters are compared, so that the time grows with what is alike.
    """
    shingles = [_shingles(prompt) for prompt in prompts]
    firsts: dict[frozenset[str], int] = {}
    holders: defaultdict[str, list[int]] = defaultdict(list)
    groups: list[int] = []
    for place, mine in enumerate(shingles):
        group = firsts.get(mine, place)
        if group == place:
            near = {other for shingle in mine for other in holders[shingle]}
            group = next((o for o in sorted(near) if _overlap(mine, shingles[o]) >= similarity), place)
            firsts[mine] = group
        if group == place:
            for shingle in mine:
                holders[shingle].append(place)
        groups.append(group)
    return groups


def _keeps(weights: dict[str, float], cap: float, share: float) -> bool:
    capped = [min(weight, cap) for weight in weights.values()]
    return max(capped) <= share * sum(capped) * (1 + 1e-12)


def _shingles(text: str) -> frozenset[str]:
    words = " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
    return frozenset(words[i : i + _SHINGLE_CHARS] for i in range(max(1, len(words) - _SHINGLE_CHARS + 1)))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _count_once(votes: Sequence[Vote], found: list[Influence], similarity: float) -> list[Influence]:
    """Share one vote's weight among each person's votes on prompts that are alike."""
    groups = group_alike([vote.prompt for vote in votes], similarity)
    members: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for place, (vote, group) in enumerate(zip(votes, groups, strict=True)):
        members[vote.person, group].append(place)
    weighed = list(found)
    for places in members.values():
        for place in places if len(places) > 1 else ():
            weighed[place] = _lessen(found[place], 1 / len(places), "near-duplicate")
    return weighed


def _set_waiting(votes: Sequence[Vote], found: list[Influence], since: datetime) -> list[Influence]:
    return [
        _lessen(influence, 0.0, "quarantined") if datetime.fromisoformat(vote.created_at) > since else influence
        for vote, influence in zip(votes, found, strict=True)
    ]


def _cap_shares(votes: Sequence[Vote], found: list[Influence], largest_share: float) -> list[Influence]:
    totals: defaultdict[str, float] = defaultdict(float)
    for vote, influence in zip(votes, found, strict=True):
        totals[vote.person] += influence.weight
    factors = cap_factors(totals, largest_share)
    return [
        _lessen(influence, factors[vote.person], "capped") if factors[vote.person] < 1 else influence
        for vote, influence in zip(votes, found, strict=True)
    ]


def _lessen(influence: Influence, factor: float, flag: Flag) -> Influence:
    return replace(influence, weight=influence.weight * factor, flags=(*influence.flags, flag))
