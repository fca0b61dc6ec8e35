"""The gate's table of decisions, and the intervals it rests on."""

import math
import subprocess
import sys

import pytest

from finetune.gate import Limits, Measures, decide
from finetune.intervals import lower_bound, share_interval

N = 40
CLUSTERS = tuple(f"c{i}" for i in range(N))
LIMITS = Limits(accuracy_margin=0.02, perplexity_rise=0.02, base_perplexity=20.0, clusters=CLUSTERS)
TIES = Measures((0.5,) * N, 20.0, 20, 0)


def measured(right: int, perplexity: float = 20.0, flawed: int = 0, ties: int = 0) -> Measures:
    return Measures((1.0,) * right + (0.5,) * ties + (0.0,) * (N - right - ties), perplexity, 20, flawed)


TABLE = [
    ("better than the bare base", measured(32), TIES, []),
    ("as good as what is live", measured(30), measured(30), []),
    ("better than what is live", measured(36), measured(30), []),
    ("worse than what is live", measured(20), measured(30), ["accuracy"]),
    ("one pair worse, which may be chance or not", measured(29), measured(30), ["accuracy"]),
    ("no better than a coin against the bare base", measured(20), TIES, ["accuracy"]),
    ("perplexity at the limit", measured(32, 20.4), TIES, []),
    ("perplexity above the limit", measured(32, 20.41), TIES, ["Perplexity"]),
    ("perplexity above the base though below what is live", measured(32, 21.0), measured(20, 22.0), ["Perplexity"]),
    ("perplexity not a number", measured(32, math.nan), TIES, ["Perplexity"]),
    ("one looping reply", measured(32, flawed=1), TIES, ["looping"]),
    ("everything wrong", measured(0, 99.0, 20), TIES, ["accuracy", "Perplexity", "looping"]),
]


@pytest.mark.parametrize(("case", "candidate", "live", "failed"), TABLE, ids=[row[0] for row in TABLE])
def test_the_gate_decides(case: str, candidate: Measures, live: Measures, failed: list[str]) -> None:
    decision = decide(candidate, live, LIMITS)
    assert decision.passed == (not failed)
    assert len(decision.reasons) == len(failed)
    for reason, word in zip(decision.reasons, failed, strict=True):
        assert word in reason
    assert len(decision.table()) == 3
    assert {"check", "live", "candidate", "limit", "passed", "note"} == set(decision.table()[0])


def test_without_a_held_out_pair_nothing_passes() -> None:
    empty = Measures((), 20.0, 20, 0)
    assert not decide(empty, empty, Limits(0.02, 0.02, 20.0, ())).passed


def test_a_single_conversation_proves_nothing() -> None:
    limits = Limits(0.02, 0.02, 20.0, ("c",) * N)
    assert not decide(measured(N), TIES, limits).passed


def test_the_base_compared_with_itself_is_a_coin_by_ties() -> None:
    assert TIES.accuracy == 0.5
    assert decide(TIES, TIES, LIMITS).passed


def test_the_interval_is_wilsons_when_every_vote_is_a_conversation() -> None:
    """n = 10, p = 0.8: Wilson's 95 % interval is 0.490 to 0.943."""
    low, high = share_interval([1.0] * 8 + [0.0] * 2, CLUSTERS[:10])
    assert (low, high) == (pytest.approx(0.490, abs=0.02), pytest.approx(0.943, abs=0.01))


def test_votes_of_one_conversation_widen_the_interval() -> None:
    votes = [1.0] * 20 + [0.0] * 20
    alone = share_interval(votes, CLUSTERS)
    together = share_interval(votes, [f"c{i // 10}" for i in range(N)])
    assert together[0] < alone[0] < 0.5 < alone[1] < together[1]


def test_all_right_is_not_certainty_and_nothing_is_ignorance() -> None:
    low, high = share_interval([1.0] * 10, CLUSTERS[:10])
    assert 0.7 < low < 0.75 and high == 1.0
    assert share_interval([], []) == (0.0, 1.0)


def test_the_lower_bound_lies_below_the_mean_by_its_error() -> None:
    """20 of 40 differ by +1: se = sqrt(10 / 1600 · 40 / 39) = 0.0801, bound = 0.5 - 1.2816 · 0.0801."""
    assert lower_bound([1.0, 0.0] * 20, CLUSTERS) == pytest.approx(0.3974, abs=1e-3)
    assert lower_bound([0.0] * N, CLUSTERS) == 0.0


def test_the_gate_needs_no_torch() -> None:
    code = "import sys, finetune.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
