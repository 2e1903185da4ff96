"""Do an episode's edits again on another copy of its workbook: what a grader trusts instead of the cells that it was shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from frontier_tune.sdk.env import Step
from frontier_tune.sdk.grammar import ToolCall
from frontier_tune.sdk.tools import ToolError
from frontier_tune.sdk.workbook.insert_rows import shift_formula, shift_row
from frontier_tune.sdk.workbook.session import Cell, WorkbookSession

EDITS = ("fill", "write")


@dataclass(frozen=True)
class Insertion:
    """``count`` rows inserted before row ``at`` of ``sheet``."""

    sheet: str
    at: int
    count: int


def edits(trace: Iterable[Step]) -> list[ToolCall]:
    """The calls of an episode that changed its workbook, in order; refused ones are left out."""
    return [step.call for step in trace if step.call is not None and not step.error and step.call.name in EDITS]


def replay(session: WorkbookSession, calls: Sequence[ToolCall]) -> bool:
    """Carry out ``calls`` on a pristine session. False where one that once worked is refused here (and the rest was not done)."""
    try:
        for call in calls:
            getattr(session, call.name)(*call.arguments.values())
    except ToolError:
        return False
    return True


def transfer(done: WorkbookSession, grown: WorkbookSession, insertion: Insertion) -> bool:
    """Bring what was changed in ``done`` to a pristine copy into which rows were inserted, as if they were inserted afterwards.

    Cells move and references are rewritten as Excel does. False where a formula can't be read.
    """
    cells: dict[Cell, object] = {}
    at, count = insertion.at, insertion.count
    try:
        for (sheet, row, column), content in done.changed.items():
            place = shift_row(row, at, count) if sheet == insertion.sheet else row
            if isinstance(content, str) and content.startswith("="):
                content = shift_formula(content, sheet, insertion.sheet, at, count)
            cells[sheet, place, column] = content
        grown.put(cells)
    except (ToolError, ValueError):
        return False
    return True
