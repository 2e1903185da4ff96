"""Small workbooks laid out as one task of the benchmark: the same three cases, made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from envs.spreadsheetbench.loader import SpreadsheetTask
from envs.spreadsheetbench.scorer import CaseResult, grade_case

Cells = Mapping[str, Any]


def save(path: Path, sheets: Mapping[str, Cells]) -> Path:
    book = Workbook()
    book.remove(book.active)
    for title, cells in sheets.items():
        sheet = book.create_sheet(title)
        for address, value in cells.items():
            sheet[address] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def as_sheets(cells: Mapping[str, Any]) -> Mapping[str, Cells]:
    """Cells of one sheet, or sheets already."""
    return cells if all(isinstance(v, Mapping) for v in cells.values()) else {"Sheet1": cells}


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., CaseResult]:
    """Grade ``output`` against ``golden`` at ``position``; ``before`` is the input, empty by default."""

    def call(
        golden: Mapping[str, Any],
        output: Mapping[str, Any] | Path,
        position: str = "A1",
        before: Mapping[str, Any] | None = None,
        answer_sheet: str = "",
    ) -> CaseResult:
        task = SpreadsheetTask("1-1", "", "Cell-Level Manipulation", position, tmp_path, answer_sheet)
        save(task.golden(1), as_sheets(golden))
        save(task.input(1), as_sheets(before if before is not None else {"A1": "nothing yet"}))
        path = output if isinstance(output, Path) else save(tmp_path / "out.xlsx", as_sheets(output))
        return grade_case(task, 1, path)

    return call
