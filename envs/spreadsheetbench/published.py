"""The published comparison, its quirks included: what SpreadsheetBench's own evaluation says of an output.

Written from the behaviour of ``evaluation/evaluation.py`` at commit 49b73a9 of RUCKBReasoning/SpreadsheetBench (its colour checks
are switched off there). Where it raises it counts the case as failed; so do our callers, who give the exception a name.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from openpyxl import Workbook

MAX_CELLS = 1_000_000
_EPOCH = datetime.datetime(1899, 12, 30)


class UnreadablePosition(ValueError):
    """The answer position can't be read by these rules."""


def normal(value: Any) -> Any:
    """A value as it is compared: numbers (True and False among them) to two places, dates to the day, times to the minute.

    Text that Python reads as a number ("1_000", " 7 ", "nan") becomes one. All else stays. Raises OverflowError past floats.
    """
    if isinstance(value, int | float):
        return round(float(value), 2)
    if isinstance(value, datetime.time):
        # The last three characters go: the seconds, or half of the microseconds where there are some.
        return str(value)[:-3]
    if isinstance(value, datetime.datetime):
        since = value - _EPOCH
        return round(since.days + since.seconds / 86400, 0)
    if isinstance(value, str):
        try:
            return round(float(value), 2)
        except ValueError:
            return value
    return value


def same(golden: Any, output: Any) -> bool:
    """Whether two values pass for equal: of one type and equal after ``normal``, or both empty."""
    a, b = normal(golden), normal(output)
    if a in (None, "") and b in (None, ""):
        return True
    return type(a) is type(b) and bool(a == b)


def targets(position: str, first_sheet: str) -> Iterator[tuple[str, list[str]]]:
    """(sheet, cell names) of each part of an answer position. Raises UnreadablePosition.

    Parts are separated by commas, sheet and range by one "!", and quotes are taken off the ends of either; blanks are not. A part
    without "!" is on the golden's first sheet. A single cell is looked up as it stands.
    """
    for part in position.split(","):
        pieces = part.split("!")
        if len(pieces) > 2:
            raise UnreadablePosition(f"{part!r} has more than one '!'")
        sheet = pieces[0].strip("'") if len(pieces) == 2 else first_sheet
        yield sheet.strip("'"), _names(pieces[-1].strip("'"))


def compare(golden: Workbook, output: Workbook, position: str) -> str:
    """Empty where the output passes, else what differs first. Both loaded with ``data_only``. What it raises is a failed case."""
    for sheet, names in targets(position, golden.sheetnames[0]):
        if sheet not in output:
            return f"sheet {sheet!r} is missing"
        expected, actual = golden[sheet], output[sheet]
        for name in names:
            if not same(expected[name].value, actual[name].value):
                return f"{sheet}!{name} differs"
    return ""


def _names(cells: str) -> list[str]:
    """Cell names of a range, column by column. An upside-down range has none, and with none nothing differs."""
    if ":" not in cells:
        return [cells]
    corners = cells.split(":")
    if len(corners) != 2:
        raise UnreadablePosition(f"{cells!r} has more than one ':'")
    (first_column, first_row), (last_column, last_row) = map(_corner, corners)
    if max(last_column - first_column + 1, 0) * max(last_row - first_row + 1, 0) > MAX_CELLS:
        raise UnreadablePosition(f"{cells!r} has more than {MAX_CELLS} cells")
    rows = range(first_row, last_row + 1)
    return [f"{_letters(column)}{row}" for column in range(first_column, last_column + 1) for row in rows]


def _corner(text: str) -> tuple[int, int]:
    """(column, row). Digits make the row wherever they stand; every other character counts as a letter, upper case or not."""
    digits = "".join(c for c in text if c.isdigit())
    column = 0
    for character in text:
        if not character.isdigit():
            column = column * 26 + ord(character) - 64
    try:
        return column, int(digits)
    except ValueError:
        raise UnreadablePosition(f"{text!r} has no row") from None


def _letters(column: int) -> str:
    """Like addresses.letters, but for any integer: below 1 there are none."""
    out = ""
    while column > 0:
        column, rest = divmod(column - 1, 26)
        out = chr(65 + rest) + out
    return out
