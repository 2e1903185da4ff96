"""Headroom against brute force and closed forms; one verdict for each way in which tuning pays or doesn't."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.contracts import Blame, EpisodeSpec, Failure, Task, Trajectory
from frontier_tune.evaluation.evaluate import EvaluationError
from frontier_tune.evaluation.headroom import Headroom, measure, pass_at


def tried(group: int, member: int, reward: float, success: bool | None = None, failed: bool = False) -> Trajectory:
    task = Task("even" if group % 2 == 0 else "odd", "train", {"n": group})
    failure = Failure("worker-died", Blame.INFRASTRUCTURE) if failed else None
    won = reward == 1.0 if success is None else success
    return Trajectory(EpisodeSpec(task, group, member, 0), mask=[True] * 5, reward=reward, success=won, failure=failure)


def headroom(greedy: Sequence[float], sampled: Sequence[Sequence[float]]) -> Headroom:
    return measure(
        [tried(i, 0, r) for i, r in enumerate(greedy)], [tried(i, j, r) for i, g in enumerate(sampled) for j, r in enumerate(g)]
    )


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_success(outcomes: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    draws = list(itertools.combinations(outcomes, k))
    assert pass_at(len(outcomes), sum(outcomes), k) == pytest.approx(sum(any(d) for d in draws) / len(draws))


def test_figures_by_hand() -> None:
    found = headroom([0, 1.0, 0.2, 0], [[0, 1.0, 0, 0], [1.0] * 4, [0.1, 0.2, 0.1, 0.1], [0.0] * 4])
    assert (found.greedy.successes, found.greedy.n, found.tries) == (1, 4, 4)
    assert found.sampled == 5 / 16 and found.best == 0.5 and found.gain == 0.25
    assert found.passes == {1: pytest.approx(5 / 16), 2: pytest.approx((0.5 + 1) / 4), 4: 0.5}
    assert (found.signal, found.mixed, found.solved, found.never) == (0.5, 0.25, 0.25, 0.5)
    assert found.reward["best"] == pytest.approx((1 + 1 + 0.2 + 0) / 4)
    assert found.by_kind["even"] == {"tasks": 2, "greedy": 0.0, "sampled": 0.125, "best_of_n": 0.5, "signal": 1.0}
    assert found.tokens == 5
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["groups"]["signal"] == 0.5


@pytest.mark.parametrize(
    ("greedy", "sampled", "answer", "why"),
    [
        ([0.0] * 10, [[0.0, 1.0]] * 10, "pass", "Best of 2 is 100.0 % against 0.0 %"),
        ([1.0] * 10, [[1.0, 1.0]] * 10, "fail", "nothing left to gain"),
        ([0.1] * 10, [[0.1, 0.1]] * 10, "fail", "nothing to learn from"),
        ([0.1] * 10, [[0.1, 0.2]] * 10, "warn", "none of 2 tries"),
        ([0.0] * 10, [[0.0, 1.0]] + [[0.0, 0.0]] * 9, "warn", "differ in 10.0 % of groups"),
        ([1.0] * 5 + [0.0] * 5, [[1.0, 0.9]] * 5 + [[0.0, 0.1]] * 5, "warn", "Best of 2 is 50.0 % against 50.0 %"),
    ],
)
def test_verdicts(greedy: list[float], sampled: list[list[float]], answer: str, why: str) -> None:
    verdict = headroom(greedy, sampled).verdict()
    assert verdict.answer == answer and why in verdict.why
    assert bool(verdict.mend) == (answer != "pass")


def test_what_the_infrastructure_failed_is_left_out() -> None:
    greedy = [tried(0, 0, 0.0), tried(1, 0, 0.0, failed=True)]
    sampled = [tried(g, m, float(m == 0), failed=(g, m) == (1, 0)) for g in range(2) for m in range(3)]
    found = measure(greedy, sampled)
    assert (found.greedy.n, found.ungraded, found.tries) == (1, 2, 2)
    assert found.best == pytest.approx((pass_at(3, 1, 2) + 0) / 2)
    many = [tried(g, m, float(m == 0), failed=(g == 7 and m > 1)) for g in range(20) for m in range(4)]
    one_lost_two = measure([tried(g, 0, 0.0) for g in range(20)], many)
    assert one_lost_two.tries == 4 and one_lost_two.best == 1.0  # of the 19 that have four
    even = [tried(2 * g, m, float(m == 0)) for g in range(20) for m in range(4)]
    odd = [tried(g, m, float(m == 0 and g == 103), failed=m == 3) for g in (101, 103) for m in range(4)]
    found = measure([tried(g, 0, 0.0) for g in range(20)], [*even, *odd])
    assert found.tries == 4 and found.by_kind["odd"]["best_of_n"] == 0.5  # of both, in the three tries that they have
    with pytest.raises(EvaluationError, match="0 of 1 greedy"):
        measure(greedy[1:], sampled)
