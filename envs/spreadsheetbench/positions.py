"""Answer positions, read for what they mean: stray quotes and blanks, ``$``, lower case, whole columns, commas in sheet names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from envs.spreadsheetbench.published import MAX_CELLS, UnreadablePosition
from frontier_tune.sdk.workbook.addresses import MAX_ROW, parse_range
from frontier_tune.sdk.workbook.snapshot import Position

_AROUND = "'’ \t\r\n\u00a0"
_COLUMNS = re.compile(r"([A-Z]{1,3}):([A-Z]{1,3})")
_SHORT = re.compile(r"([A-Z]{1,3}[0-9]+):([0-9]+)")


@dataclass(frozen=True)
class Area:
    """A rectangle of one sheet. ``sheet`` is empty where the position names none; ``last_row`` None: to the end of the sheet."""

    sheet: str
    first_row: int
    first_column: int
    last_row: int | None
    last_column: int

    def contains(self, position: Position) -> bool:
        row, column = position
        inside = self.first_row <= row and (self.last_row is None or row <= self.last_row)
        return inside and self.first_column <= column <= self.last_column

    def cells(self, last_used_row: int) -> Iterator[Position]:
        """Row by row; a whole column ends where the used rows do."""
        for row in range(self.first_row, (last_used_row if self.last_row is None else self.last_row) + 1):
            for column in range(self.first_column, self.last_column + 1):
                yield row, column


def areas(text: str) -> list[Area]:
    """The areas that an answer position names. Raises UnreadablePosition, which says which part means nothing."""
    found: list[Area] = []
    held = ""
    for part in text.replace("：", ":").split(","):
        held = f"{held},{part}" if held else part
        area = _area(held)
        if area is None:
            continue  # a comma within a sheet's name: the next part goes on with it
        found.append(area)
        held = ""
    if held.strip() or not found:
        raise UnreadablePosition(f"{(held or text)!r} names no range")
    return found


def _area(part: str) -> Area | None:
    sheet, _, cells = part.rpartition("!")
    sheet, cells = sheet.strip(_AROUND).replace("''", "'"), re.sub(rf"[{_AROUND}$]", "", cells).upper()
    columns = _COLUMNS.fullmatch(cells)
    if columns:
        _, first, _, last = parse_range(f"{columns[1]}1:{columns[2]}1")
        return Area(sheet, 1, first, None, last)
    short = _SHORT.fullmatch(cells)
    if short:  # BD2:308 is BD2:BD308
        cells = f"{short[1]}:{re.sub('[0-9]', '', short[1])}{short[2]}"
    try:
        first_row, first, last_row, last = parse_range(cells)
    except ValueError:
        return None
    if min(last_row - first_row + 1, MAX_ROW) * (last - first + 1) > MAX_CELLS:
        raise UnreadablePosition(f"{part!r} has more than {MAX_CELLS} cells")
    return Area(sheet, first_row, first, last_row, last)
