"""Who votes how: do people agree, does anybody agree with nobody, is the left side favoured, who is how fast.

Functions over judgements, all but `read_judged` pure; nothing here writes, and nothing here judges anybody alone: the
numbers become weights and flags in `influence.py`. An item is what was judged, by content: the same prompt with the
same two replies, on whichever side they stood. Percent agreement counts pairs of judgements by different people on one
item, all items pooled.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Literal

from feedback_store.connection import rows
from feedback_store.examples import read_prompt
from feedback_store.records import Choice, Turn
from feedback_store.store import Store

Verdict = Literal["first", "second", "neither"]
"""Which of an item's two replies was preferred, in the item's own order; `neither` is a tie or both bad."""
Z95 = 1.959964
_CHOICES = """
    SELECT person_id, choice, prompt_message_id, l.text AS left, r.text AS right, system_prompt.text AS system,
        coalesce(l_origin.adapter_id, l_origin.base_id) AS left_model,
        coalesce(r_origin.adapter_id, r_origin.base_id) AS right_model
    FROM comparison
    JOIN message AS l ON l.id = left_message_id
    JOIN message AS r ON r.id = right_message_id
    JOIN origin AS l_origin ON l_origin.message_id = l.id
    JOIN origin AS r_origin ON r_origin.message_id = r.id AND r_origin.system_id = l_origin.system_id
    JOIN system_prompt ON system_prompt.id = l_origin.system_id
    WHERE choice IS NOT NULL ORDER BY chosen_at, comparison.seq"""


@dataclass(frozen=True)
class Judged:
    """What one person said about one item."""

    item: str
    person_id: int
    verdict: Verdict


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
    shown = ((left, models[0]), (right, models[1]))
    first, second = sorted(shown)
    text = json.dumps([list(prompt), first, second], ensure_ascii=False)
    verdict: Verdict = "neither"
    if choice in ("left", "right") and first != second:
        verdict = "first" if shown[choice == "right"] == first else "second"
    return Judged(hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(), person_id, verdict)


def read_judged(store: Store) -> Iterator[Judged]:
    """Yield every choice between two replies to one prompt as a verdict, oldest first; equal words of two adapters are
    told apart. What people keep from teaching counts too: this is about how they vote."""
    with store.connections.snapshot() as db:
        for row in rows(db, _CHOICES):
            prompt = read_prompt(db, row["system"], row["prompt_message_id"])
            models = (row["left_model"], row["right_model"])
            yield judge(prompt, row["left"], row["right"], row["choice"], row["person_id"], models=models)


def measure(judged: Iterable[Judged]) -> Agreement:
    """Measure agreement; of one person's judgements of one item the last counts."""
    items = [votes for votes in _by_item(judged).values() if len(votes) > 1]
    pairs = [pair for votes in items for pair in combinations(votes.values(), 2)]
    decided = [pair for pair in pairs if "neither" not in pair]
    return Agreement(
        items=len(items),
        pairs=len(pairs),
        percent=_share(pairs),
        decided_pairs=len(decided),
        decided_percent=_share(decided),
        kappa=fleiss_kappa([Counter(votes.values()) for votes in items]),
    )


def fleiss_kappa(items: Sequence[Mapping[Verdict, int]]) -> float | None:
    """Return how far agreement exceeds chance, over items with two or more judgements each.

    Items may have different numbers of judgements n_i: the observed agreement is the mean of P_i over items, chance
    the sum of the squared overall shares p_j.

    Source: Fleiss 1971, "Measuring nominal scale agreement among many raters", equations 1 to 7.
    """
    totals: Counter[Verdict] = Counter()
    observed = []
    for item in items:
        n = sum(item.values())
        assert n > 1, "an item that one person judged says nothing about agreement"
        observed.append(sum(count * (count - 1) for count in item.values()) / (n * (n - 1)))  # P_i
        totals.update(item)
    if not observed:
        return None
    chance = sum((count / totals.total()) ** 2 for count in totals.values())
    return (sum(observed) / len(observed) - chance) / (1 - chance) if chance < 1 else None


def agreement_with_others(judged: Iterable[Judged]) -> dict[int, tuple[int, int]]:
    """Return by person how many judgements of others on the same items said the same, and of how many."""
    found: dict[int, tuple[int, int]] = {}
    for votes in _by_item(judged).values():
        for (one, said), (other, told) in combinations(votes.items(), 2):
            for person in (one, other):
                same, count = found.get(person, (0, 0))
                found[person] = (same + (said == told), count + 1)
    return found


def left_bias(choices: Iterable[Choice]) -> LeftBias:
    """Return how often left was chosen, with Wilson's 95 % interval.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    counted = Counter(choices)
    left, n = counted["left"], counted["left"] + counted["right"]
    if not n:
        return LeftBias(0, 0, None, None, None)
    share = left / n
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return LeftBias(n, left, share, max(0.0, middle - reach), min(1.0, middle + reach))


def votes_a_minute(times: Iterable[str], *, gap_s: float = 300.0) -> float | None:
    """Return how many votes a minute somebody gave while voting; None for fewer than two close to each other.

    Args:
        times: when they voted, ISO 8601, in any order.
        gap_s: a longer pause, in seconds, is not voting.
    """
    moments = sorted(datetime.fromisoformat(time).timestamp() for time in times)
    gaps = [later - earlier for earlier, later in zip(moments, moments[1:], strict=False) if later - earlier <= gap_s]
    if not gaps:
        return None
    return 60 * len(gaps) / max(sum(gaps), 1e-6)


def _by_item(judged: Iterable[Judged]) -> dict[str, dict[int, Verdict]]:
    items: defaultdict[str, dict[int, Verdict]] = defaultdict(dict)
    for one in judged:
        items[one.item][one.person_id] = one.verdict
    return items


def _share(pairs: Sequence[tuple[Verdict, Verdict]]) -> float | None:
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None
