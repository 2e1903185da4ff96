"""How work in a workbook is graded: in formulas, right on copies that the agent never saw, nothing else touched."""

from __future__ import annotations

from frontier_tune.sdk import Component, Rubric
from frontier_tune.sdk.workbook.compare import Outcome


def submitted(outcome: Outcome) -> bool:
    """The workbook was handed in, not left lying."""
    return outcome.submitted


def untouched(outcome: Outcome) -> bool:
    """Every cell outside the answer is as it was."""
    return not outcome.touched


def formulas(outcome: Outcome) -> bool:
    """Every answer cell is a formula that depends on inputs."""
    return bool(outcome.formulas) and all(outcome.formulas)


def close(outcome: Outcome) -> float:
    """Share of answer cells of the hidden copies that are nearly right: partial credit that success does not count.

    None where an input was overwritten: damage must not pay, not even while it helps to learn.
    """
    return 0.0 if outcome.touched else _share(sum(c.near(outcome.near) for c in outcome.copies), outcome)


def exact(outcome: Outcome) -> float:
    """Share of answer cells of the hidden copies that are right to the last digit. None where an input was overwritten."""
    return 0.0 if outcome.touched else _share(sum(c.right() for c in outcome.copies), outcome)


def complete(outcome: Outcome) -> bool:
    """Every answer cell of every hidden copy is exactly right, and no input was overwritten.

    It has the largest weight: where a wrong way has many cells right by chance (small whole numbers), shares alone would
    pay it more than half of what the right way earns, and a model would be drawn to whichever wrong way is best.
    """
    return exact(outcome) == 1.0


def _share(count: int, outcome: Outcome) -> float:
    total = sum(len(c.golden) for c in outcome.copies)
    return count / total if total else 0.0


RUBRIC: Rubric[Outcome] = Rubric(
    [
        Component("submitted", 0.05, submitted, required=True),
        Component("untouched", 0.05, untouched, required=True),
        Component("formulas", 0.05, formulas, required=True),
        Component("close", 0.15, close),
        Component("exact", 0.15, exact),
        Component("complete", 0.55, complete, required=True),
    ]
)
