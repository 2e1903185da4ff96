"""Look at what an episode did to a workbook: cells it should have left alone, formulas that depend on nothing, right values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from frontier_tune.sdk.workbook.formula_text import Block, area, references
from frontier_tune.sdk.workbook.session import Cell, WorkbookSession

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Answered:
    """Calculated values of the answer cells of one hidden copy (None: the edits could not be done there) and the golden ones."""

    values: list[Any] | None
    golden: Sequence[Decimal]

    def right(self) -> int:
        """Cells that are exactly right: within 1e-6, absolute."""
        return sum(equal(v, g) for v, g in zip(self.values or [], self.golden))

    def near(self, relative: float) -> int:
        """Cells within ``relative`` of the golden value."""
        return sum(equal(v, g, relative) for v, g in zip(self.values or [], self.golden))


@dataclass(frozen=True)
class Outcome:
    """All that a rubric over workbooks looks at.

    ``touched``: changed cells that are no answers. ``formulas``: for each answer cell, whether it holds a formula that depends on
    other cells. ``copies``: the hidden copies. ``near``: the relative tolerance of a close answer, 0 for whole numbers.
    """

    submitted: bool
    touched: list[Cell] = field(default_factory=list)
    formulas: list[bool] = field(default_factory=list)
    copies: list[Answered] = field(default_factory=list)
    near: float = 0.02


def equal(value: Any, golden: Decimal, relative: float = 0.0) -> bool:
    """Whether a cell's value is a number within 1e-6, or within ``relative`` where that is more, of ``golden``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    wanted = float(golden)
    return abs(value - wanted) <= max(TOLERANCE, relative * abs(wanted))


def touched(session: WorkbookSession, allowed: Collection[Cell]) -> list[Cell]:
    """Cells outside ``allowed`` that don't hold what they held when the session began. 1 is 1.0, but not "1"."""
    return [
        cell
        for cell, held in session.originals.items()
        if cell not in allowed and not _same(held, session.changed.get(cell, held))
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    return bool(a == b) or (a in (None, "") and b in (None, ""))


def depends(session: WorkbookSession, cell: Cell, answers: Collection[Cell]) -> bool:
    """Whether ``cell`` holds a formula with a reference to some cell that is no answer."""
    formula = session.held(cell)
    if not isinstance(formula, str) or not formula.startswith("="):
        return False
    return any(_reaches_out(sheet, block, answers) for sheet, block in references(formula, cell[0]))


def _reaches_out(sheet: str, block: Block, answers: Collection[Cell]) -> bool:
    r1, c1, r2, c2 = block
    return area(block) > len(answers) or any((sheet, r, c) not in answers for r in range(r1, r2 + 1) for c in range(c1, c2 + 1))
