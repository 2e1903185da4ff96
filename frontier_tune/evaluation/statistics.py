"""Intervals and tests for success and reward: Wilson, bootstrap over clusters, McNemar, Newcombe's paired difference.

Pure functions on numbers, without scipy. Two-sided 95 % unless told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Z95 = 1.959963984540054

Interval = tuple[float, float]


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Wilson's score interval for a proportion (J. Am. Stat. Assoc. 22, 1927, p. 209). ``n`` = 0 gives (0, 1)."""
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At p = 0 and p = 1 the bound is exact; rounding must not move it.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return low, high


def bootstrap_mean(
    clusters: Sequence[Sequence[float]], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean over all values, resampling whole clusters (Efron and Tibshirani 1993, ch. 13).

    Values within a cluster (the members of a group share a task) are not independent; clusters are. Independent values are
    clusters of one. A single cluster has no interval to show: raises ValueError, as do empty clusters.
    """
    if len(clusters) < 2 or any(len(c) == 0 for c in clusters):
        raise ValueError(f"bootstrap_mean: needs at least two clusters, none empty; got sizes {[len(c) for c in clusters]}")
    sums = np.array([float(np.sum(c)) for c in clusters])
    sizes = np.array([len(c) for c in clusters], dtype=float)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(clusters), size=(resamples, len(clusters)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def share_of_clusters(clusters: Sequence[Sequence[float]]) -> Interval:
    """As ``bootstrap_mean``, for values of 0 and 1. Where all are equal resamples tell nothing, and the interval would have no
    width: there it is Wilson's, of as many trials as there are clusters."""
    values = {value for c in clusters for value in c}
    return bootstrap_mean(clusters) if len(values) != 1 else wilson(round(values.pop()) * len(clusters), len(clusters))


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test: under no difference ``gained`` is Binomial(gained + lost, 1/2)."""
    if gained < 0 or lost < 0:
        raise ValueError(f"mcnemar_exact: {gained} gained, {lost} lost")
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1.0, 2 * tail / 2**n)) if n else 1.0


@dataclass(frozen=True)
class Paired:
    """Two policies on the same ``n`` tasks. ``difference`` is tuned minus base."""

    n: int
    gained: int
    lost: int
    difference: float
    ci95: Interval
    p_value: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ci95": list(self.ci95)}


def paired(base: Sequence[bool], tuned: Sequence[bool]) -> Paired:
    """Compare two policies task by task: ``base[i]`` and ``tuned[i]`` are the outcomes on task i.

    The interval is Newcombe's score method for paired proportions (Stat. Med. 17, 1998, p. 2635, method 10 without its
    continuity correction); the p-value is McNemar's exact.
    """
    if len(base) != len(tuned):
        raise ValueError(f"paired: {len(base)} and {len(tuned)} outcomes")
    n = len(base)
    if n == 0:
        return Paired(0, 0, 0, 0.0, (-1.0, 1.0), 1.0)
    both = sum(b and t for b, t in zip(base, tuned, strict=True))
    gained = sum(t and not b for b, t in zip(base, tuned, strict=True))
    lost = sum(b and not t for b, t in zip(base, tuned, strict=True))
    neither = n - both - gained - lost
    p_tuned, p_base = (both + gained) / n, (both + lost) / n
    low_t, high_t = wilson(both + gained, n)
    low_b, high_b = wilson(both + lost, n)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    phi = (both * neither - gained * lost) / math.sqrt(product) if product else 0.0
    down = (p_tuned - low_t) ** 2 - 2 * phi * (p_tuned - low_t) * (high_b - p_base) + (high_b - p_base) ** 2
    up = (high_t - p_tuned) ** 2 - 2 * phi * (high_t - p_tuned) * (p_base - low_b) + (p_base - low_b) ** 2
    d = p_tuned - p_base
    ci = (max(-1.0, d - math.sqrt(max(down, 0.0))), min(1.0, d + math.sqrt(max(up, 0.0))))
    return Paired(n, gained, lost, d, ci, mcnemar_exact(gained, lost))
