"""The short way of setting cells, held against openpyxl's own, value by value and in the saved file."""

from __future__ import annotations

import datetime as dt
import io
import zipfile
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from openpyxl import Workbook
from openpyxl.cell.rich_text import CellRichText

from frontier_tune.sdk.workbook.cells import CellWriter

PLACES = st.tuples(st.integers(1, 4), st.integers(1, 3))
ODD = ("", "=", "=A1", "#REF!", "#REF", "#N/A", "'", "a\nb", "a\tb", "tab\x0b", "\ud800", "x" * 40_000, "=" * 40_000, b"bytes")
OTHER = (None, True, float("nan"), 10**30, dt.date(2024, 2, 29), dt.time(1, 2), dt.timedelta(days=1), CellRichText("rich"), 1j)
VALUES = st.one_of(
    st.sampled_from(ODD + OTHER),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2100, 1, 1)),
)


def cells(book: Workbook) -> list[Any]:
    ws = book.active
    held = [
        (p, repr(c.value), c.data_type, c._style, c.number_format, c.parent is ws, c.row, c.column) for p, c in ws._cells.items()
    ]
    return [held, ws._current_row, list(book._number_formats)]


def put(book: Workbook, ours: bool, steps: list[tuple[tuple[int, int], Any]]) -> list[str]:
    """Set cells in one of the two ways; what each raised."""
    raised, writer = [], CellWriter(book.active)
    for (row, column), value in steps:
        try:
            if ours:
                writer.put(row, column, value)
            else:
                book.active.cell(row, column).value = value
            raised.append("")
        except Exception as e:
            raised.append(repr(e))
    return raised


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.tuples(PLACES, VALUES), max_size=12), st.sampled_from(["General", "0.00", "yyyy-mm-dd"]))
def test_cells_are_as_openpyxl_sets_them(steps: list[tuple[tuple[int, int], Any]], before: str) -> None:
    books = []
    for _ in range(2):
        book = Workbook()
        book.active["B2"] = 1.5
        book.active["B2"].number_format = before
        book.active.merge_cells("A4:B4")
        books.append(book)
    assert put(books[0], True, steps) == put(books[1], False, steps)
    assert cells(books[0]) == cells(books[1])


def test_the_saved_files_are_the_same() -> None:
    files = []
    for ours in (True, False):
        book, out = Workbook(), io.BytesIO()
        day = dt.datetime(2024, 1, 31)
        put(book, ours, [((r, c), v) for r in range(1, 9) for c, v in enumerate(["Ä", r, r / 3, day, "=A1", "#N/A", "=1<2"], 1)])
        book.save(out)
        with zipfile.ZipFile(out) as archive:
            files.append({name: archive.read(name) for name in archive.namelist() if name != "docProps/core.xml"})
    assert files[0] == files[1]


def test_one_dates_format_is_not_anothers() -> None:
    book = Workbook()
    writer = CellWriter(book.active)
    for row in (1, 2, 3):
        writer.put(row, 1, dt.datetime(2024, 1, row))
    book.active["A1"].number_format = "0.00"
    assert [book.active.cell(r, 1).number_format for r in (1, 2, 3)] == ["0.00", "yyyy-mm-dd h:mm:ss", "yyyy-mm-dd h:mm:ss"]


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (1_048_577, 1), (-1, 1)])
def test_places_off_the_sheet_are_refused(place: tuple[int, int]) -> None:
    book = Workbook()
    with pytest.raises(ValueError):
        CellWriter(book.active).put(*place, 1)
    assert not book.active._cells
