"""Set cells of an openpyxl worksheet as openpyxl does, several times as fast.

openpyxl searches every text for what may not stand in a cell and looks every date's format up again. Making a workbook of values
that are known is little else than setting its cells, so this takes the short way where a value needs neither.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime
from typing import TYPE_CHECKING, Any

from frontier_tune.sdk.workbook.addresses import MAX_ROW

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell
    from openpyxl.styles.cell_style import StyleArray
    from openpyxl.worksheet.worksheet import Worksheet

LONGEST = 32_767  # characters of a text; openpyxl cuts longer ones


class CellWriter:
    """``put`` leaves a worksheet as ``sheet.cell(row, column).value = value`` does, and raises what that raises."""

    def __init__(self, sheet: Worksheet) -> None:
        from openpyxl.cell.cell import Cell

        self._sheet, self._cells = sheet, sheet._cells
        self._new: type[Cell] = Cell
        self._dated: StyleArray | None = None  # the style that openpyxl gives to a new cell for a date

    def put(self, row: int, column: int, value: Any) -> None:
        place = (row, column)
        cell = self._cells.get(place)
        if cell is None:
            if not (1 <= row <= MAX_ROW and column >= 1):
                self._sheet.cell(row, column)  # raises
            cell = self._cells[place] = self._new(self._sheet, row, column)
            if row > self._sheet._current_row:
                self._sheet._current_row = row
        kind = type(value)
        if type(cell) is not self._new:  # a merged cell takes no value
            cell.value = value
        elif kind is float or kind is int:
            cell.data_type, cell._value = "n", value
        elif kind is str and value.isprintable() and value[:1] not in ("", "#") and len(value) <= LONGEST:
            # Printable: no control character that openpyxl would refuse. No "#": no error value.
            cell.data_type, cell._value = "f" if value[0] == "=" and len(value) > 1 else "s", value
        elif kind is datetime and cell._style is None:
            self._put_date(cell, value)
        else:
            cell.value = value

    def _put_date(self, cell: Cell, value: datetime) -> None:
        if self._dated is None:
            cell.value = value
            self._dated = copy(cell._style)
        else:  # a style of its own: whoever changes one cell's format changes no other's
            cell.data_type, cell._value, cell._style = "d", value, copy(self._dated)
