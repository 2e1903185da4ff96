"""The workbook rubric on made-up outcomes."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from frontier_tune.sdk.workbook.compare import Answered, Outcome
from rewards.workbook import RUBRIC

GOLDEN = [Decimal("10.00"), Decimal("20.00")]
RIGHT = Outcome(True, [], [True, True], [Answered([10.0, 20.0], GOLDEN), Answered([10.0, 20.0], GOLDEN)])


def test_all_right() -> None:
    grade = RUBRIC.score(RIGHT)
    assert grade.success and grade.reward == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("outcome", "reward"),
    [
        (replace(RIGHT, submitted=False), 0.95),
        (replace(RIGHT, touched=[("S", 1, 1)]), 0.10),
        (replace(RIGHT, formulas=[True, False]), 0.95),
        (replace(RIGHT, copies=[Answered([10.1, 20.0], GOLDEN), Answered([10.0, 20.0], GOLDEN)]), 0.15 + 0.15 + 0.15 * 3 / 4),
        (replace(RIGHT, copies=[Answered(None, GOLDEN), Answered([10.0, 20.0], GOLDEN)]), 0.15 + 0.3 / 2),
        (replace(RIGHT, copies=[]), 0.15),
        (Outcome(False), 0.05),
    ],
)
def test_anything_less_is_no_success(outcome: Outcome, reward: float) -> None:
    grade = RUBRIC.score(outcome)
    assert not grade.success and grade.reward == pytest.approx(reward)


def test_whole_numbers_are_close_only_when_exact() -> None:
    outcome = replace(RIGHT, near=0.0, copies=[Answered([10.1, 20.0], GOLDEN)])
    assert RUBRIC.score(outcome).components["close"] == RUBRIC.score(outcome).components["exact"] == 0.5
