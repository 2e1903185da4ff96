"""A1 addresses: letters and numbers of columns, ranges, quoted sheet names. 1-based, as in Excel."""

from __future__ import annotations

import re
from functools import lru_cache

MAX_ROW, MAX_COLUMN = 1_048_576, 16_384
_ADDRESS = re.compile(r"^\$?([A-Za-z]{1,3})\$?([0-9]{1,7})$")
_PLAIN_SHEET = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


@lru_cache(maxsize=4096)
def letters(column: int) -> str:
    """27 -> 'AA'."""
    out = ""
    while column:
        column, r = divmod(column - 1, 26)
        out = chr(65 + r) + out
    return out


def number(column: str) -> int:
    """'AA' -> 27."""
    n = 0
    for ch in column.upper():
        n = n * 26 + ord(ch) - 64
    return n


def parse_cell(text: str) -> tuple[int, int]:
    """'B7' -> (7, 2), row before column. Raises ValueError."""
    m = _ADDRESS.match(text.strip())
    if not m:
        raise ValueError(f"{text.strip()} is no cell address")
    row, column = int(m[2]), number(m[1])
    if not (1 <= row <= MAX_ROW and 1 <= column <= MAX_COLUMN):
        raise ValueError(f"{text.strip()} lies outside the sheet")
    return row, column


def parse_range(text: str) -> tuple[int, int, int, int]:
    """'A3:C9' -> (3, 1, 9, 3): first row, first column, last row, last column. Raises ValueError."""
    first, _, last = text.partition(":")
    r1, c1 = parse_cell(first)
    r2, c2 = parse_cell(last) if last else (r1, c1)
    return min(r1, r2), min(c1, c2), max(r1, r2), max(c1, c2)


def cell(row: int, column: int) -> str:
    return f"{letters(column)}{row}"


def quote_sheet(name: str) -> str:
    return name if _PLAIN_SHEET.match(name) else "'" + name.replace("'", "''") + "'"


def split_sheet(text: str) -> tuple[str, str]:
    """'Sales!A1:B2' -> ('Sales', 'A1:B2'); 'Sales' -> ('Sales', ''). Quotes around the sheet are taken off."""
    sheet, _, rest = text.strip().rpartition("!") if "!" in text else (text.strip(), "", "")
    sheet = sheet.strip()
    if len(sheet) >= 2 and sheet[0] == sheet[-1] == "'":
        sheet = sheet[1:-1].replace("''", "'")
    return sheet, rest.strip()
