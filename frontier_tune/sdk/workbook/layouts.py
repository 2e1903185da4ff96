"""Lay tables out on sheets as real workbooks do: titles above, margins, blank rows, totals rows, notes below or beside.

A *family* fixes which mess there is; the draw within it comes from a generator of its own, so that the same structure can be
filled with other values (a hidden copy). Some families are held out: nothing that trains may use them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frontier_tune.sdk.workbook.addresses import letters
from frontier_tune.sdk.workbook.plain_book import PlainBook
from frontier_tune.sdk.workbook.vocabulary import VALUES

if TYPE_CHECKING:
    from openpyxl import Workbook


@dataclass(frozen=True)
class Family:
    """What a layout family allows. Counts are inclusive (low, high) bounds."""

    name: str
    title_rows: tuple[int, int] = (0, 0)
    left_margin: tuple[int, int] = (0, 0)
    blank_every: tuple[int, int] | None = None  # a blank row after so many data rows
    totals_row: bool = False
    notes_below: tuple[int, int] = (0, 0)
    notes_beside: bool = False


TRAIN_FAMILIES = (
    Family("plain"),
    Family("titled", title_rows=(1, 2)),
    Family("shifted", left_margin=(1, 1)),
    Family("gappy", blank_every=(6, 12)),
    Family("totalled", title_rows=(0, 1), totals_row=True),
    Family("annotated", title_rows=(0, 2), notes_below=(1, 3)),
)
HELDOUT_FAMILIES = (
    Family("banner", title_rows=(3, 4), left_margin=(1, 2), notes_below=(0, 1)),
    Family("ragged", title_rows=(0, 1), blank_every=(4, 9), totals_row=True, left_margin=(0, 1)),
    Family("margin", title_rows=(1, 3), notes_beside=True, totals_row=True),
)
FAMILIES = {f.name: f for f in (*TRAIN_FAMILIES, *HELDOUT_FAMILIES)}

_TITLES = ("Month end close", "Management report", "Draft", "Prepared by finance", "Internal use", "Version 2",
           "All figures in thousands", "Entity 12")  # fmt: skip
_NOTES = ("checked by controller", "see memo", "source: subledger", "to be reviewed", "carried over from last month")


@dataclass
class SheetSpec:
    """A table to be laid out. ``rows[i][j]`` belongs under ``headers[j]``; ``totals`` names columns that a totals row sums."""

    name: str
    headers: list[str]
    rows: list[list[Any]]
    totals: list[str] = field(default_factory=list)


def lay_out(sheets: list[SheetSpec], family: Family, structure: random.Random) -> Workbook:
    """openpyxl's workbook of ``lay_out_cells``."""
    return lay_out_cells(sheets, family, structure).workbook


def lay_out_cells(sheets: list[SheetSpec], family: Family, structure: random.Random) -> PlainBook:
    """The cells of a workbook of ``sheets`` in the manner of ``family``. Raises ValueError where two have one name.

    ``structure`` must be in the same state for every copy of one workbook: it is asked for the layout alone, never for values,
    and the same number of times whatever the values are.
    """
    book = PlainBook()
    for spec in sheets:
        _lay_sheet(book, spec, family, structure)
    return book


def _lay_sheet(book: PlainBook, spec: SheetSpec, family: Family, structure: random.Random) -> None:
    sheet = book.add_sheet(spec.name)
    put = sheet.put
    left = structure.randint(*family.left_margin) + 1
    row = 1
    for _ in range(structure.randint(*family.title_rows)):
        put(row, left, structure.choice(_TITLES))
        row += 1
    if row > 1 and structure.random() < 0.5:
        row += 1
    sheet.put_row(row, left, spec.headers)
    header_row = row
    every = structure.randint(*family.blank_every) if family.blank_every else 0
    row += 1
    for i, values in enumerate(spec.rows):
        sheet.put_row(row, left, values)
        row += 1
        if every and (i + 1) % every == 0 and i + 1 < len(spec.rows):
            row += 1
    last = row - 1
    if family.totals_row and spec.totals:
        put(row, left, structure.choice(VALUES["total_label"]))
        for name in spec.totals:
            column = letters(left + spec.headers.index(name))
            put(row, left + spec.headers.index(name), f"=SUM({column}{header_row + 1}:{column}{last})")
        row += 1
    for _ in range(structure.randint(*family.notes_below)):
        row += 1
        put(row, left, structure.choice(_NOTES))
    if family.notes_beside:
        beside = left + len(spec.headers) + 1
        for offset in range(2):
            put(header_row + 1 + offset, beside, structure.choice(_NOTES))
