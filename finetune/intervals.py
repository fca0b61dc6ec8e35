"""Intervals for shares of clustered votes: several votes of one conversation count as less than that many. Pure."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist

TO_AN_END = 1.645
"""Standard errors from a mean to either end of its 90 % interval."""


def clustered_error(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Compute the standard error of the mean when values of one cluster hang together.

    Source: cluster-robust variance, Miller 2024 (arXiv:2411.00640) eq. 4, with the factor C / (C - 1).

    Args:
        values: n numbers.
        clusters: the n names of their clusters; at least two different ones.
    """
    n = len(values)
    mean = sum(values) / n
    sums: dict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    count = len(sums)
    return math.sqrt(sum(s * s for s in sums.values()) * count / (count - 1)) / n


def share_interval(values: Sequence[float], clusters: Sequence[str], confidence: float = 0.95) -> tuple[float, float]:
    """Compute the Wilson interval of a share, with n shrunk to what the clusters leave of it.

    Source: Wilson 1927, centre (p + z²/2n) / (1 + z²/n); n is divided by the design effect.

    Args:
        values: 1 right, 0 wrong, 0.5 tie.
        clusters: a name for each value.
        confidence: of the two-sided interval.

    Returns:
        Low and high; (0, 1) where nothing is known.
    """
    if not values:
        return 0.0, 1.0
    p = sum(values) / len(values)
    count = len(set(clusters))
    spread = p * (1 - p)
    n = float(count)
    if spread > 0 and count > 1:
        effect = clustered_error(values, clusters) ** 2 / (spread / len(values))
        n = len(values) / max(1.0, effect)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(spread / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def lower_bound(differences: Sequence[float], clusters: Sequence[str], confidence: float = 0.90) -> float:
    """Compute the one-sided lower bound of a mean paired difference.

    Args:
        differences: candidate minus live, item by item.
        clusters: a name for each.
        confidence: that the true mean lies above.

    Returns:
        The bound; -1, the worst there is, for fewer than two clusters: they show nothing.
    """
    if len(set(clusters)) < 2:
        return -1.0
    mean = sum(differences) / len(differences)
    return mean - NormalDist().inv_cdf(confidence) * clustered_error(differences, clusters)
