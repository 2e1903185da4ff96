"""Inserted rows against Excel's rules by cases, and against an engine: blank rows change no result."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from openpyxl.workbook.defined_name import DefinedName

from frontier_tune.contracts import BadInput
from frontier_tune.sdk.workbook.engine import Engine
from frontier_tune.sdk.workbook.insert_rows import insert_rows, shift_formula, shift_row
from tests.sdk.workbook.conftest import make_book


@pytest.mark.parametrize(
    ("formula", "wanted"),  # 3 rows inserted before row 5 of Data; the formula stands on Data
    [
        ("=A4", "=A4"),
        ("=A5", "=A8"),
        ("=$A$5+A$5+$A5", "=$A$8+A$8+$A8"),
        ("=SUM(A2:A4)", "=SUM(A2:A4)"),
        ("=SUM(A2:A5)", "=SUM(A2:A8)"),
        ("=SUM(A5:A9)", "=SUM(A8:A12)"),
        ("=SUM(A9:A2)", "=SUM(A12:A2)"),
        ("=SUM($A$1:$C$9,D5)", "=SUM($A$1:$C$12,D8)"),
        ("=SUM(A:A)", "=SUM(A:A)"),
        ("=SUM(A:C,5:9,$2:$4)", "=SUM(A:C,8:12,$2:$4)"),
        ("=Data!A5", "=Data!A8"),
        ("='Data'!A5+DATA!a5", "='Data'!A8+DATA!a8"),
        ("=Other!A5+'My data'!A5", "=Other!A5+'My data'!A5"),
        ("='[Book.xlsx]Data'!A5", "='[Book.xlsx]Data'!A5"),
        ("=Data!A2:Data!A7", "=Data!A2:Data!A10"),
        ('="A5"&A5', '="A5"&A8'),
        ("=LOG10(A5)+Rate5_x", "=LOG10(A8)+Rate5_x"),
        ("=SUM(Sales[Net])+A5", "=SUM(Sales[Net])+A8"),
        ("=A1048576", "=#REF!"),
        ("=SUM(A1:A1048576)", "=SUM(A1:A1048576)"),
        ("=SUM(A1048574:A1048576)", "=#REF!".replace("#REF!", "SUM(#REF!)")),
        ('=SUMIFS(B2:B9,A2:A9,A5,C2:C9,"Posted")', '=SUMIFS(B2:B12,A2:A12,A8,C2:C12,"Posted")'),
        ("=A4:INDEX(A:A,5)", "=A4:INDEX(A:A,5)"),
        ("=-A5%^2", "=-A8%^2"),
        ("={1,2;3,4}*A5", "={1,2;3,4}*A8"),
    ],
)
def test_references_move_as_in_excel(formula: str, wanted: str) -> None:
    assert shift_formula(formula, "Data", "Data", 5, 3) == wanted


def test_a_formula_elsewhere_moves_only_what_speaks_of_the_sheet() -> None:
    assert shift_formula("=A5+Data!A5", "Other", "data", 5, 1) == "=A5+Data!A6"


def test_what_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="=A1#"):
        shift_formula("=A1#", "Data", "Data", 5, 3)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 50), st.integers(0, 50))
def test_inserting_twice_is_inserting_once(row: int, at: int, one: int, two: int) -> None:
    assert shift_row(shift_row(row, at, one), at, two) == shift_row(row, at, one + two)


def test_cells_names_and_other_sheets_follow() -> None:
    book = make_book()
    book.defined_names["Gross"] = DefinedName("Gross", attr_text="Sales!$B$4:$B$7")
    book["FX table"]["C1"] = "=Sales!B7"
    insert_rows(book, "Sales", 5, 2)
    assert [book["Sales"].cell(r, 1).value for r in range(3, 11)] == ["Ref", "A1", None, None, "B2", None, "C3", "Total"]
    assert book["Sales"]["B10"].value == "=SUM(B4:B9)" and book["FX table"]["C1"].value == "=Sales!B9"
    assert book.defined_names["Gross"].attr_text == "Sales!$B$4:$B$9"
    assert book["Sales"]["D7"].number_format == "yyyy-mm-dd h:mm:ss" and book["Sales"]["D7"].row == 7


FORMULAS = (
    "SUM(A{a}:A{b})",
    "AVERAGE($A${a}:$A${b})",
    "A{a}*2-$A{b}",
    "MAX(Data!A{a}:A{b})",
    "COUNT(A:A)",
    "SUMIFS(A{a}:A{b},B{a}:B{b},B{a})",
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blank_rows_change_no_result(data: st.DataObject) -> None:
    """The engine is the oracle: every formula has the value that it had."""
    book = Workbook()
    sheet, other = book.active, book.create_sheet("Other")
    sheet.title = "Data"
    for r in range(1, 13):
        sheet.cell(r, 1).value, sheet.cell(r, 2).value = r * 1.5, "xy"[r % 2]
    for r in range(1, 9):
        a, b = sorted((data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))))
        text = data.draw(st.sampled_from(FORMULAS)).format(a=a, b=b)
        sheet.cell(r, 4).value = "=" + text
        if text.startswith("MAX"):
            other.cell(r, 1).value = "=" + text
    before = Engine(book)
    at, count = data.draw(st.integers(1, 14)), data.draw(st.integers(0, 4))
    old = {("Data", r, 4): before.value("Data", r, 4) for r in range(1, 9)}
    old |= {("Other", r, 1): before.value("Other", r, 1) for r in range(1, 9)}
    insert_rows(book, "Data", at, count)
    after = Engine(book)
    for (name, r, c), value in old.items():
        assert after.value(name, shift_row(r, at, count) if name == "Data" else r, c) == value


@pytest.mark.parametrize(
    ("at", "count", "message"), [(0, 1, "rows are numbered"), (5, -1, "rows are numbered"), (3, 1_048_570, "push row 8")]
)
def test_places_that_do_not_exist(at: int, count: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        insert_rows(make_book(), "Sales", at, count)


def test_merged_cells_are_refused() -> None:
    book = make_book()
    book["Sales"].merge_cells("A1:C1")
    with pytest.raises(BadInput, match="merged cells"):
        insert_rows(book, "Sales", 5, 1)
