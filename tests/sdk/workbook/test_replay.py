"""Edits done again on other copies, and what a grader sees of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from frontier_tune.sdk import Step, ToolCall
from frontier_tune.sdk.workbook.compare import Answered, depends, equal, touched
from frontier_tune.sdk.workbook.insert_rows import insert_rows
from frontier_tune.sdk.workbook.replay import Insertion, edits, replay, transfer
from frontier_tune.sdk.workbook.session import WorkbookSession
from tests.sdk.workbook.conftest import make_book

FILL = ToolCall("fill", {"sheet": "Sales", "column": "Net", "formula": "=SUM([Gross])-[@Returns]"})
ANSWERS = frozenset({("Sales", 4, 5), ("Sales", 5, 5), ("Sales", 7, 5)})


def test_only_successful_edits_count() -> None:
    read, write = ToolCall("read", {"where": "Sales"}), ToolCall("write", {"cell": "Sales!A1", "value": "1"})
    trace = [
        Step("", read, "", False),
        Step("", FILL, "", False),
        Step("", write, "error: no", True),
        Step("?", None, "error", True),
    ]
    assert edits(trace) == [FILL]


def test_replay_gives_the_same_cells(session: WorkbookSession) -> None:
    assert replay(session, [FILL])
    assert session.book["Sales"]["E5"].value == "=SUM(Sales!$B$4:$B$7)-C5"
    other = make_book()
    other["Sales"]["E3"] = "Renamed"
    assert not replay(WorkbookSession(other), [FILL])


def test_rows_inserted_after_the_edits(session: WorkbookSession) -> None:
    """Edits brought to a grown copy are what Excel shows when the rows come after the edits."""
    assert replay(session, [FILL, ToolCall("write", {"cell": "FX table!C9", "value": "=Sales!B5"})])
    book = make_book()
    insert_rows(book, "Sales", 5, 2)
    book["Sales"]["B5"] = 1000
    grown = WorkbookSession(book)
    assert transfer(session, grown, Insertion("Sales", 5, 2))
    assert book["Sales"]["E9"].value == "=SUM(Sales!$B$4:$B$9)-C9" and book["FX table"]["C9"].value == "=Sales!B7"
    assert grown.engine.value("Sales", 4, 5) == 100.5 + 1000 + 200 + 300.125 - 1.25
    insert_rows(session.book, "Sales", 5, 2)
    session.book["Sales"]["B5"] = 1000
    assert {p: c.value for p, c in session.book["Sales"]._cells.items() if c.value is not None} == {
        p: c.value for p, c in book["Sales"]._cells.items() if c.value is not None
    }


def test_cells_that_were_touched(session: WorkbookSession) -> None:
    session.fill("Sales", "Net", "=1")
    assert touched(session, ANSWERS) == []
    session.write("Sales!B4", "100.5")  # what it held
    assert touched(session, ANSWERS) == []
    session.write("Sales!B4", "100.4")
    session.write("Sales!E8", "=1")  # in the answer's column, but below the table
    assert touched(session, ANSWERS) == [("Sales", 4, 2), ("Sales", 8, 5)]


@pytest.mark.parametrize(
    ("formula", "wanted"),
    [
        ("=B4", True),
        ("=SUM(A:A)", True),
        ("=SUM('FX table'!$B$2:$B$3)", True),
        ("=INDEX({1;2;3},ROW())", False),
        ('="B4"', False),
        ("=E5+E7", False),
        ("=B9999999", False),
        ("=LOG10(7)", False),
        ("=1e5", False),
        ("=SUM(E5:E7)", True),  # row 6 is no answer
        ("=SUM(E7:E7)", False),
        ("5", False),
    ],
)
def test_a_formula_that_depends_on_inputs(session: WorkbookSession, formula: str, wanted: bool) -> None:
    session.write("Sales!E4", formula)
    assert depends(session, ("Sales", 4, 5), ANSWERS) is wanted


@pytest.mark.parametrize(
    ("value", "golden", "relative", "wanted"),
    [
        (1.1, "1.1", 0.0, True),
        (1.10000099, "1.1", 0.0, True),
        (1.101, "1.1", 0.0, False),
        (1.101, "1.1", 0.02, True),
        (123456.78, "123456.77", 0.0, False),
        (1, "1", 0.0, True),
        (True, "1", 0.0, False),
        ("1", "1", 0.0, False),
        (None, "0", 0.0, False),
        (float("nan"), "0", 0.02, False),
        (float("inf"), "1", 0.02, False),
        (-9.9, "-10", 0.02, True),
    ],
)
def test_equal(value: Any, golden: str, relative: float, wanted: bool) -> None:
    assert equal(value, Decimal(golden), relative) is wanted


def test_a_copy_that_could_not_be_edited_has_no_right_cells() -> None:
    assert Answered(None, [Decimal(0), Decimal(1)]).right() == Answered(None, [Decimal(0)]).near(0.02) == 0
