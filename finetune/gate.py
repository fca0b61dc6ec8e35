"""The gate: may tonight's adapter go live? Pure; knows no torch, no store, no files.

The live side is the bare base when nothing is live. The base has no log-ratio to itself: every pair is a
tie, its accuracy 0.5. Perplexity is held against the bare base, not against the live adapter, so that
many nights of a small rise each cannot add up.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from finetune.intervals import lower_bound


@dataclass(frozen=True)
class Measures:
    """What the examination found for one adapter, on the model as it is served."""

    outcomes: tuple[float, ...]
    """A held-out pair each: 1 the chosen reply scores higher, 0 lower, 0.5 tie; by log-ratio to the base."""
    perplexity: float
    """Of the fixed text."""
    replies: int
    """How many fixed prompts were answered."""
    flawed_replies: int
    """How many answers are empty or loop."""

    @property
    def accuracy(self) -> float:
        """Share of held-out pairs ranked as the person ranked them."""
        return sum(self.outcomes) / len(self.outcomes) if self.outcomes else math.nan


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to."""

    accuracy_margin: float
    """The paired 90 % lower bound of the accuracy difference must lie above minus this."""
    perplexity_rise: float
    """Largest relative rise over the bare base."""
    base_perplexity: float
    """Of the fixed text under the bare base, served in the same form."""
    clusters: tuple[str, ...]
    """The conversation of each held-out pair."""


@dataclass(frozen=True)
class Check:
    """One row of the gate table."""

    check: str
    live: float
    candidate: float
    limit: float
    passed: bool
    note: str


@dataclass(frozen=True)
class Decision:
    """The verdict, the sentences for what failed, and the table."""

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [asdict(check) for check in self.checks]


def decide(candidate: Measures, live: Measures, limits: Limits) -> Decision:
    """Compare a candidate with what is live.

    Args:
        candidate: tonight's adapter.
        live: the live adapter, or the bare base; measured on the same items in the same order.
        limits: from the settings.
    """
    checks = [
        _accuracy(candidate, live, limits),
        _perplexity(candidate, live, limits),
        _replies(candidate, live),
    ]
    reasons = tuple(check.note for check in checks if not check.passed)
    return Decision(not reasons, reasons, tuple(checks))


def _accuracy(candidate: Measures, live: Measures, limits: Limits) -> Check:
    differences = [new - old for new, old in zip(candidate.outcomes, live.outcomes, strict=True)]
    bound = lower_bound(differences, limits.clusters)
    limit = -limits.accuracy_margin
    passed = bool(differences) and bound > limit
    where = f"the paired 90 % lower bound of the difference is {bound:+.3f} on {len(differences)} held-out pairs"
    note = (
        f"Held-out preference accuracy holds: {where}, above {limit:+.3f}."
        if passed
        else f"Held-out preference accuracy may have fallen: {where}, and it must lie above {limit:+.3f}."
    )
    return Check("held-out preference accuracy", live.accuracy, candidate.accuracy, limit, passed, note)


def _perplexity(candidate: Measures, live: Measures, limits: Limits) -> Check:
    limit = limits.base_perplexity * (1 + limits.perplexity_rise)
    passed = candidate.perplexity <= limit  # false for NaN, too
    rise = candidate.perplexity / limits.base_perplexity - 1
    note = (
        f"Perplexity of the fixed text changes by {rise:+.1%} from the bare base, "
        f"{'within' if passed else 'and it may rise by at most'} {limits.perplexity_rise:.1%}."
    )
    return Check("perplexity of the fixed text", live.perplexity, candidate.perplexity, limit, passed, note)


def _replies(candidate: Measures, live: Measures) -> Check:
    passed = candidate.flawed_replies == 0
    found = "no" if passed else str(candidate.flawed_replies)
    note = f"The {candidate.replies} fixed prompts bring {found} empty or looping replies."
    return Check("empty or looping replies", live.flawed_replies, candidate.flawed_replies, 0, passed, note)
