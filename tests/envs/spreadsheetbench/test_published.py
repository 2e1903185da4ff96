"""The compatible mode, rule by rule; and against the published code itself where the user has it."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import io
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook

from envs.spreadsheetbench.published import MAX_CELLS, UnreadablePosition, compare, same, targets

EVALUATION = "FRONTIER_TUNE_SPREADSHEETBENCH_EVALUATION"
noon = dt.datetime(2024, 1, 1, 12)

EQUAL: list[tuple[Any, Any]] = [
    (1, 1.004),
    (0, 0.004),  # absolute rounding: a small rate is nothing
    (True, 1),
    ("1.004", 1),
    ("1_000", 1000),
    (" 7 ", 7),
    ("inf", float("inf")),
    (None, ""),
    ("", ""),
    (None, None),
    (dt.datetime(2024, 1, 1), 45292),
    (dt.datetime(2024, 1, 1), "45292"),
    (dt.datetime(2024, 1, 1, 2), dt.datetime(2024, 1, 1, 11)),
    (dt.datetime(2024, 1, 1, 13), dt.datetime(2024, 1, 2)),
    (dt.time(12, 30, 5), dt.time(12, 30, 59)),
    (dt.time(12, 30), "12:30"),
    (dt.timedelta(hours=30), dt.timedelta(hours=30)),
    ("#N/A", "#N/A"),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (1, 1.006),
    (0.125, 0.12500001),  # halves go to the even neighbour: on the two sides of a rounding edge
    (None, 0),
    ("", 0),
    (" ", None),
    ("a", "A"),
    ("a", "a "),
    ("1,000", 1000),
    ("5%", 0.05),
    ("nan", "nan"),
    (float("nan"), float("nan")),
    (dt.datetime(2024, 1, 1, 11), dt.datetime(2024, 1, 1, 13)),
    (dt.time(12, 30), 0.5208333333),
    (dt.time(12, 30), dt.time(12, 31)),
    (dt.time(12, 30, 0, 1000), dt.time(12, 30)),
    (dt.timedelta(hours=30), 1.25),
    ("TRUE", True),
]
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(width=32),
    st.text(max_size=4),
    st.sampled_from(["", " ", "1_0", "nan", "1e3", "-0", "12:30", "45292"]),
    st.datetimes(dt.datetime(1900, 3, 1), dt.datetime(2100, 1, 1)),
    st.times(),
    st.timedeltas(dt.timedelta(0), dt.timedelta(days=3)),
)
positions = st.text("ABZab19:!',$ ", max_size=12)


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_pass_for_equal(a: Any, b: Any) -> None:
    assert same(a, b) and same(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_differ(a: Any, b: Any) -> None:
    assert not same(a, b) and not same(b, a)


@pytest.mark.parametrize(
    ("position", "found"),
    [
        ("B2", [("First", ["B2"])]),
        ("A1:B2", [("First", ["A1", "A2", "B1", "B2"])]),
        ("'Two words'!Z9:AA9", [("Two words", ["Z9", "AA9"])]),
        ("'Q!'A1,B'!F4", [("Q", ["A1"]), ("B", ["F4"])]),
        ("X!A1, 'Y'!B1", [("X", ["A1"]), (" 'Y", ["B1"])]),  # no blank is taken off, and it shields the quote
        ("B5:A1", [("First", [])]),  # upside down: nothing to compare
        ("a1:b1", [("First", ["AG1", "AH1"])]),  # lower case counts on past Z
        ("A1:B", None),
        ("A:G", None),
        ("A1:B2:C3", None),
        ("X!Y!A1", None),
        ("A1：B2", [("First", ["A1：B2"])]),
    ],
)
def test_positions(position: str, found: list[tuple[str, list[str]]] | None) -> None:
    if found is None:
        with pytest.raises(UnreadablePosition):
            list(targets(position, "First"))
    else:
        assert list(targets(position, "First")) == found


def test_a_range_past_the_limit_is_refused() -> None:
    with pytest.raises(UnreadablePosition, match=str(MAX_CELLS)):
        list(targets("A1:ZZ999999", "S"))


def book(**sheets: dict[str, Any]) -> Workbook:
    made = Workbook()
    made.remove(made.active)
    for title, cells in sheets.items():
        sheet = made.create_sheet(title)
        for address, value in cells.items():
            sheet[address] = value
    return made


def test_a_part_without_a_sheet_is_on_the_goldens_first_and_all_parts_must_match() -> None:
    golden = book(One={"A1": 1}, Two={"A1": 2})
    output = book(Two={"A1": 2}, One={"A1": 1, "C9": "damage elsewhere is not looked at"})
    assert compare(golden, output, "A1,Two!A1") == ""
    output["Two"]["A1"] = 3
    assert compare(golden, output, "A1,Two!A1") == "Two!A1 differs"
    assert "missing" in compare(golden, book(Two={}), "A1")
    assert "missing" in compare(golden, output, "one!A1")  # by exact title
    with pytest.raises(KeyError):
        compare(golden, book(Three={}), "Three!A1")


@pytest.fixture(scope="module")
def evaluation() -> ModuleType:
    """The published evaluation.py, brought by the user."""
    path = os.environ.get(EVALUATION)
    if not path or not Path(path).is_file():
        pytest.skip(f"${EVALUATION} names no evaluation.py of the SpreadsheetBench repository")
    spec = importlib.util.spec_from_file_location("spreadsheetbench_evaluation", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(values, values)
def test_values_as_published(evaluation: ModuleType, a: Any, b: Any) -> None:
    for x, y in ((a, b), (b, a), (a, a), (a, str(a))):
        assert same(x, y) == evaluation.compare_cell_value(x, y), (x, y)


@given(positions)
def test_ranges_as_published(evaluation: ModuleType, text: str) -> None:
    golden, output = book(A={"A1": 1, "B1": 2}, B={"A1": 3}), book(A={"A1": 1, "B1": 9}, B={"A1": 3})
    with contextlib.redirect_stdout(io.StringIO()):
        for cells in text.split(","):
            try:
                theirs = bool(evaluation.cell_level_compare(golden, output, "A", cells)[0])
            except Exception:
                theirs = False
            if "!" not in cells and not cells.startswith("'") and not cells.endswith("'"):
                try:
                    ours = compare(golden, output, cells) == ""
                except Exception:
                    ours = False
                assert ours == theirs, cells
