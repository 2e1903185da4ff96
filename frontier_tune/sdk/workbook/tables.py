"""Find the table of a sheet amid the mess of real ones: titles above, blank rows within, totals and notes below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frontier_tune.sdk.workbook.plain_book import PlainSheet
from frontier_tune.sdk.workbook.references import Table

if TYPE_CHECKING:
    from openpyxl.worksheet.worksheet import Worksheet

HEADER_SEARCH_ROWS = 15
TOTAL_WORDS = ("total", "subtotal", "grand total", "sum total")


def find_table(sheet: Worksheet | PlainSheet) -> Table | None:
    """The sheet's table, or None.

    The header is the first of the top rows with the longest unbroken run of texts (two at least). Data rows are those below with
    two filled cells or more under the header (one where the table is two columns wide); a row whose first filled cell says total
    ends the table.
    """
    # Only what is there: a stray cell in the last row costs nothing.
    rows = (sheet if isinstance(sheet, PlainSheet) else PlainSheet.of(sheet)).rows
    best = (0, 0, 0)  # length, row, first column
    for r in range(1, HEADER_SEARCH_ROWS + 1):
        length, start = _longest_text_run(rows.get(r, {}))
        if length >= 2 and length > best[0]:
            best = (length, r, start)
    length, header, start = best
    if not length:
        return None
    span = range(start, start + length)
    data = []
    for r in sorted(rows):
        if r <= header:
            continue
        filled = [v for c in span if (v := rows[r].get(c)) is not None and v != ""]
        if filled and isinstance(filled[0], str) and filled[0].strip().casefold() in TOTAL_WORDS:
            break
        if len(filled) >= min(2, length - 1):
            data.append(r)
    columns: dict[str, int] = {}
    for c in span:
        columns.setdefault(str(rows[header][c]).strip(), c)
    return Table(sheet.title, header, columns, tuple(data))


def _longest_text_run(row: dict[int, Any]) -> tuple[int, int]:
    """Length and first column of the longest unbroken run of texts in a row (the first of several)."""
    best = (0, 0)
    start = length = previous = 0
    for column in sorted(row):
        value = row[column]
        text = isinstance(value, str) and value != "" and not value.startswith("=")
        if not text:
            length = 0
            continue
        if length == 0 or column != previous + 1:
            start, length = column, 0
        length, previous = length + 1, column
        if length > best[0]:
            best = (length, start)
    return best
