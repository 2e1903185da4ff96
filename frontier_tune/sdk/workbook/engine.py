"""The formula engine beside a workbook: formualizer, told of every edit, never reloaded.

openpyxl keeps the file's cells and never calculates; this keeps the values. Both see each edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from frontier_tune.sdk.tools import ToolError
from frontier_tune.sdk.workbook.formula_text import reason

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

ERRORS = {
    "Ref": "#REF!",
    "Name": "#NAME?",
    "Div": "#DIV/0!",
    "Value": "#VALUE!",
    "Num": "#NUM!",
    "Na": "#N/A",
    "Null": "#NULL!",
    "Circ": "#CIRC!",
    "Spill": "#SPILL!",
    "Calc": "#CALC!",
}
_EPOCH = datetime(1899, 12, 30)
DENSE = 50  # a sheet is loaded as one block unless so many cells of it are empty for each filled one


class CellError(str):
    """A calculated error value such as ``#REF!``. Equal to the same error alone."""


def serial(value: date | datetime) -> float:
    """Excel's date serial (1900 system): days since 1899-12-30, with the time as a fraction."""
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    return (moment - _EPOCH) / timedelta(days=1)


class Engine:
    """Values of a workbook's cells. Rows and columns are 1-based."""

    def __init__(self, book: Workbook) -> None:
        import formualizer

        config = formualizer.EvaluationConfig()
        config.enable_parallel = False  # many episodes share two cores
        self._range = formualizer.RangeAddress
        self._book = formualizer.Workbook(
            config=formualizer.WorkbookConfig(mode=formualizer.WorkbookMode.Ephemeral, eval_config=config)
        )
        for sheet in book.worksheets:
            self._book.add_sheet(sheet.title)
        for sheet in book.worksheets:
            self._load(sheet)
        self._book.evaluate_all()

    def _load(self, sheet: Worksheet) -> None:
        target = self._book.sheet(sheet.title)
        constants: dict[tuple[int, int], Any] = {}
        formulas: dict[tuple[int, int], str] = {}
        height = width = 0
        for (r, c), cell in sheet._cells.items():
            value = cell.value
            if value is None:
                continue
            if isinstance(value, str) and value.startswith("="):
                formulas[r, c] = value
                continue
            constants[r, c] = value
            height, width = max(height, r), max(width, c)
        if constants and height * width <= DENSE * len(constants):
            block: list[list[Any]] = [[None] * width for _ in range(height)]
            for (r, c), value in constants.items():
                block[r - 1][c - 1] = value
            target.set_values_batch(1, 1, height, width, block)
        else:  # a stray cell far out: one by one
            for (r, c), value in constants.items():
                target.set_value(r, c, value)
        for (r, c), formula in formulas.items():
            target.set_formula(r, c, formula)

    def set_cells(self, cells: Mapping[tuple[str, int, int], Any]) -> None:
        """Set values and formulas (text that starts with =) by (sheet, row, column), then recalculate once.

        Raises ToolError where a formula can't be read; cells set before it stay set.
        """
        targets: dict[str, Any] = {}
        try:
            for (sheet, row, column), content in cells.items():
                target = targets.get(sheet) or targets.setdefault(sheet, self._book.sheet(sheet))
                if isinstance(content, str) and content.startswith("="):
                    target.set_formula(row, column, content)
                else:
                    target.set_value(row, column, content)
            self._book.evaluate_all()
        except RuntimeError as e:
            raise ToolError(reason(e)) from None

    def value(self, sheet: str, row: int, column: int) -> Any:
        """Calculated value: None, bool, float, str, date, datetime or CellError."""
        return plain(self._book.get_value(sheet, row, column))

    def values(self, sheet: str, first_row: int, first_column: int, last_row: int, last_column: int) -> list[list[Any]]:
        block = self._range(sheet, first_row, first_column, last_row, last_column)
        return [[plain(v) for v in row] for row in self._book.sheet(sheet).get_values(block)]


def plain(value: Any) -> Any:
    """A value as formualizer gives it, its errors as CellError."""
    if isinstance(value, dict):
        return CellError(ERRORS.get(value.get("kind", ""), "#VALUE!"))
    return value
