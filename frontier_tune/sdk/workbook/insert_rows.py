"""Insert rows into a sheet and rewrite every reference as Excel does. (openpyxl's own insert_rows moves cells alone.)

Excel moves each end of a reference by itself: an end at or below the inserted rows moves down, one above stays. So a cell moves,
a range that spans the place grows, one that ends above stays. ``$`` makes no difference. A cell pushed off the sheet's last row
becomes ``#REF!``, a range's end stays at the last row. Text, names, structured references and other files' are left alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput
from frontier_tune.sdk.workbook.addresses import MAX_ROW, split_sheet
from frontier_tune.sdk.workbook.plain_book import PlainBook

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

_CELL = re.compile(r"(\$?[A-Za-z]{1,3}\$?)([0-9]{1,7})")
_SHEET_COLON = re.compile(r"(?<=[0-9]):(?='|[^\W\d])")  # a colon between a row number and the next end's sheet
_ROWS = re.compile(r"(\$?)([0-9]{1,7}):(\$?)([0-9]{1,7})")


def shift_row(row: int, at: int, count: int) -> int:
    """Where a row stands after ``count`` rows were inserted before row ``at``."""
    return row + count if row >= at else row


def shift_formula(formula: str, own_sheet: str, sheet: str, at: int, count: int) -> str:
    """``formula``, which stands on ``own_sheet``, after ``count`` rows were inserted before row ``at`` of ``sheet``.

    Raises ValueError where the formula can't be read.
    """
    from openpyxl.formula import Tokenizer
    from openpyxl.formula.tokenizer import Token, TokenizerError

    try:
        tokens = Tokenizer(formula).items
    except TokenizerError as e:
        raise ValueError(f"{formula}: {e}") from None
    parts = [
        _shift_operand(t.value, own_sheet, sheet, at, count) if t.type == Token.OPERAND and t.subtype == Token.RANGE else t.value
        for t in tokens
    ]
    return "=" + "".join(parts)


def _shift_operand(text: str, own_sheet: str, sheet: str, at: int, count: int) -> str:
    if text.count("!") > 1 and ":" in text:  # Sheet!A1:Sheet!B9, each end with its sheet
        ends = _SHEET_COLON.split(text)
        return ":".join(_shift_operand(end, own_sheet, sheet, at, count) for end in ends) if len(ends) > 1 else text
    prefix, bang, rest = text.rpartition("!")
    on = split_sheet(prefix + bang)[0] if bang else own_sheet
    if on.casefold() != sheet.casefold():
        return text
    moved = _shift_reference(rest, at, count)
    return "#REF!" if moved is None else prefix + bang + moved


def _shift_reference(text: str, at: int, count: int) -> str | None:
    """A reference without its sheet; None where it was pushed off the sheet. Names and whole columns come back as they are."""
    rows = _ROWS.fullmatch(text)
    if rows:
        first, last = shift_row(int(rows[2]), at, count), shift_row(int(rows[4]), at, count)
        return None if min(first, last) > MAX_ROW else f"{rows[1]}{min(first, MAX_ROW)}:{rows[3]}{min(last, MAX_ROW)}"
    ends = [_CELL.fullmatch(end) for end in text.split(":")]
    if len(ends) > 2 or not all(ends):
        return text
    moved = [shift_row(int(m[2]), at, count) for m in ends if m]
    if min(moved) > MAX_ROW:
        return None
    return ":".join(f"{m[1]}{min(row, MAX_ROW)}" for m, row in zip(ends, moved) if m)


def insert_rows(book: Workbook | PlainBook, sheet: str, at: int, count: int) -> None:
    """Insert ``count`` empty rows before row ``at`` (1-based) of ``sheet``; formulas and defined names of the whole book follow.

    Raises BadInput for a place outside the sheet, where filled cells would leave it (Excel refuses that too), and for a sheet
    with array formulas, tables or merged cells, which this does not move.
    """
    if isinstance(book, PlainBook):
        _insert_plain(book, sheet, at, count)
        return
    ws = book[sheet]
    _check(ws, at, count)
    if not count:
        return
    for (row, _), cell in sorted(ws._cells.items(), reverse=True):
        if row >= at:
            ws._move_cell(row, cell.column, count, 0)
    for other in book.worksheets:
        for cell in other._cells.values():
            if cell.data_type == "f":
                cell.value = _shifted(cell.value, other.title, sheet, at, count)
        for name in other.defined_names.values():
            name.attr_text = _shifted("=" + name.attr_text, other.title, sheet, at, count)[1:]
    for name in book.defined_names.values():
        name.attr_text = _shifted("=" + name.attr_text, "", sheet, at, count)[1:]


def _insert_plain(book: PlainBook, sheet: str, at: int, count: int) -> None:
    if book.made:  # first, for what it may refuse
        insert_rows(book.workbook, sheet, at, count)
    rows = book.sheets[sheet].rows
    _check_place(sheet, at, count, max((r for r, cells in rows.items() if any(v is not None for v in cells.values())), default=0))
    if not count:
        return
    book.sheets[sheet].rows = {shift_row(row, at, count): cells for row, cells in rows.items()}
    for title, other in book.sheets.items():
        for cells in other.rows.values():
            for column, value in cells.items():
                if isinstance(value, str) and value.startswith("="):
                    cells[column] = _shifted(value, title, sheet, at, count)
    for name, reference in book.names.items():
        book.names[name] = _shifted("=" + reference, "", sheet, at, count)[1:]


def _shifted(value: Any, own_sheet: str, sheet: str, at: int, count: int) -> Any:
    if isinstance(value, str) and value.startswith("="):
        return shift_formula(value, own_sheet, sheet, at, count)
    return value


def _check_place(sheet: str, at: int, count: int, last: int) -> None:
    if not (1 <= at <= MAX_ROW and count >= 0):
        raise BadInput(f"insert_rows: {count} rows before row {at} of {sheet}: rows are numbered 1 to {MAX_ROW}")
    if last >= at and last + count > MAX_ROW:
        raise BadInput(f"insert_rows: {count} rows before row {at} would push row {last} of {sheet} off the sheet")


def _check(ws: Worksheet, at: int, count: int) -> None:
    last = max((row for (row, _), cell in ws._cells.items() if cell.value is not None), default=0)
    _check_place(ws.title, at, count, last)
    arrays = any(cell.data_type == "f" and not isinstance(cell.value, str) for cell in ws._cells.values())
    if arrays or ws.tables or ws.merged_cells.ranges:
        raise BadInput(f"insert_rows: {ws.title} holds array formulas, tables or merged cells, which this does not move")
