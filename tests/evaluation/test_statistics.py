"""Intervals and tests against closed forms, published figures and exhaustive enumeration."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.evaluation.statistics import bootstrap_mean, mcnemar_exact, paired, share_of_clusters, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_the_published_examples(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17 (1998), table I, method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_inverts_the_score_test(case: tuple[int, int]) -> None:
    successes, n = case
    p, z = successes / n, 1.959963984540054
    for bound in wilson(successes, n):
        assert 0 <= bound <= 1
        if 0 < bound < 1:  # at its bounds the score statistic is exactly z
            assert abs(p - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(z, rel=1e-6)
    low, high = wilson(successes, n)
    assert low <= p <= high
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_of_nothing_knows_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_bootstrap_of_independent_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    low, high = bootstrap_mean([[v] for v in values], resamples=8000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_bootstrap_over_clusters_is_wider_where_members_agree() -> None:
    draw = random.Random(0)
    groups = [[float(draw.random() < 0.5)] * 8 for _ in range(40)]  # every member of a group alike
    low, high = bootstrap_mean(groups)
    flat_low, flat_high = bootstrap_mean([[v] for g in groups for v in g])
    assert (high - low) / (flat_high - flat_low) == pytest.approx(math.sqrt(8), rel=0.15)


def test_bootstrap_is_repeatable_and_refuses_what_it_cannot_do() -> None:
    groups = [[0.0, 1.0], [1.0]]
    assert bootstrap_mean(groups, seed=4) == bootstrap_mean(groups, seed=4)
    for bad in ([[1.0]], [[1.0], []]):
        with pytest.raises(ValueError, match="at least two clusters"):
            bootstrap_mean(bad)


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (1, 8, 0.0390625), (6, 6, 1.0), (0, 1, 1.0)])
def test_mcnemar_matches_the_binomial_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar_exact(gained, lost) == mcnemar_exact(lost, gained) == pytest.approx(p)


def test_mcnemar_matches_enumeration_of_all_coin_tosses() -> None:
    for n in range(1, 9):
        tosses = [sum(t) for t in itertools.product((0, 1), repeat=n)]
        for gained in range(n + 1):
            extreme = sum(abs(t - n / 2) >= abs(gained - n / 2) for t in tosses) / len(tosses)
            assert mcnemar_exact(gained, n - gained) == pytest.approx(extreme)


def test_mcnemar_of_a_large_gain_is_small_and_not_zero() -> None:
    assert 0 < mcnemar_exact(258, 2) < 1e-60


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_lies_in_its_interval_and_turns_with_its_sides(outcomes: list[tuple[bool, bool]]) -> None:
    base, tuned = [b for b, _ in outcomes], [t for _, t in outcomes]
    forth, back = paired(base, tuned), paired(tuned, base)
    assert -1 <= forth.ci95[0] <= forth.difference <= forth.ci95[1] <= 1
    assert forth.difference == pytest.approx(sum(tuned) / len(tuned) - sum(base) / len(base))
    assert back.difference == pytest.approx(-forth.difference)
    assert back.ci95 == pytest.approx((-forth.ci95[1], -forth.ci95[0]))


@pytest.mark.parametrize("cells", [(0.1, 0.6, 0.05, 0.25), (0.4, 0.1, 0.1, 0.4), (0.05, 0.9, 0.0, 0.05)])
def test_paired_interval_covers_the_truth_as_often_as_it_says(cells: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(11)
    truth = cells[1] - cells[2]
    covered = 0
    for both, gained, lost, neither in rng.multinomial(60, cells, size=1500):
        base = [True] * both + [False] * gained + [True] * lost + [False] * neither
        tuned = [True] * both + [True] * gained + [False] * lost + [False] * neither
        low, high = paired(base, tuned).ci95
        covered += low <= truth <= high
    assert 0.93 <= covered / 1500 <= 0.99


def test_a_share_that_is_0_or_1_throughout_still_has_an_interval() -> None:
    assert share_of_clusters([[0.0] * 8] * 24) == wilson(0, 24) and share_of_clusters([[1.0] * 8] * 24) == wilson(24, 24)
    mixed = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert share_of_clusters(mixed) == bootstrap_mean(mixed)
