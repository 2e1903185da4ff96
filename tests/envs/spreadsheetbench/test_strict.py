"""The strict mode: each loophole of the published rules on a small workbook, closed, and the honest answer beside it."""

from __future__ import annotations

import datetime as dt
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.spreadsheetbench.positions import Area, areas
from envs.spreadsheetbench.published import UnreadablePosition
from envs.spreadsheetbench.scorer import CaseResult
from tests.envs.spreadsheetbench.conftest import save

Judge = Callable[..., CaseResult]


def rewrite(path: Path, old: str, new: str, part: str = "xl/worksheets/sheet1.xml") -> Path:
    """Edit a part's text: what openpyxl can't write itself, such as saved values of formulas."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    text = parts[part].decode()
    assert re.search(old, text), text
    parts[part] = re.sub(old, new, text).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("golden", "output", "reason"),
    [
        (1, True, "wrong-kind"),
        (1000, "1_000", "wrong-kind"),
        (7, " 7 ", "wrong-kind"),
        (0.004, 0.001, "wrong-value"),
        (dt.datetime(2024, 1, 1, 2), dt.datetime(2024, 1, 1, 11), "wrong-value"),
        (dt.datetime(2024, 1, 1), 45292, "wrong-kind"),
        (dt.time(12, 30, 5), dt.time(12, 30, 59), "wrong-value"),
        (dt.time(12, 30), "12:30", "wrong-kind"),
    ],
)
def test_what_passes_for_equal_only_by_coercion(judge: Judge, golden: Any, output: Any, reason: str) -> None:
    result = judge({"A1": golden}, {"A1": output})
    assert result.compatible.passed and result.strict.reason == reason and result.differ
    assert result.strict.where == "Sheet1!A1"
    assert judge({"A1": golden}, {"A1": golden}).strict.passed


def test_arithmetic_on_a_rounding_edge_is_not_refused(judge: Judge) -> None:
    result = judge({"A1": 0.125}, {"A1": 0.12500000000001})
    assert result.strict.passed and not result.compatible.passed


def test_a_formula_that_was_never_calculated_is_no_blank(judge: Judge, tmp_path: Path) -> None:
    """openpyxl saves formulas without values; by the published rules that passes for an empty golden cell."""
    golden = {"A1": 5}
    result = judge(golden, {"A1": 5, "A2": "=1/0"}, "A1:A2")
    assert result.compatible.passed and result.strict.reason == "not-calculated"
    out = rewrite(
        save(tmp_path / "o.xlsx", {"Sheet1": {"A1": 5, "A2": '=""'}}), r'<c r="A2"\s*>(.*?)</c>', r'<c r="A2" t="str">\1</c>'
    )
    assert judge(golden, out, "A1:A2").strict.passed  # an empty text was calculated


def test_an_error_is_not_its_name(judge: Judge, tmp_path: Path) -> None:
    golden = save(tmp_path / "g.xlsx", {"Sheet1": {"A1": "#N/A"}})
    assert 't="e"' in zipfile.ZipFile(golden).read("xl/worksheets/sheet1.xml").decode()
    out = rewrite(golden, r't="e"><v ?/?>?(<v>)?#N/A</v>', 't="str"><v>#N/A</v>')
    result = judge({"A1": "#N/A"}, out)
    assert result.compatible.passed and result.strict.reason == "wrong-kind"


BEFORE = {"Sheet1": {"A1": 1, "B1": "=A1+1"}, "Other": {"A1": "keep"}}
GOLDEN = {"Sheet1": {"A1": 1, "B1": "=A1+1", "C1": 7, "D1": "helper"}, "Other": {"A1": "keep"}}


def edited(title: str, **cells: Any) -> dict[str, dict[str, Any]]:
    book: dict[str, dict[str, Any]] = {**BEFORE, "Sheet1": {**BEFORE["Sheet1"], "C1": 7}}
    return {**book, title: {**book.get(title, {}), **cells}}


@pytest.mark.parametrize(
    ("output", "where"),
    [
        (edited("Sheet1"), ""),
        (edited("Sheet1", D1="helper"), ""),  # as the golden has it
        (edited("Sheet1", B1="= a1 + 1"), ""),  # the same formula
        (edited("Sheet1", B1="=A1+2"), "Sheet1!B1"),
        (edited("Sheet1", B1=2), "Sheet1!B1"),  # a formula overwritten by its value
        (edited("Sheet1", A1=2), "Sheet1!A1"),
        (edited("Sheet1", A1=None), "Sheet1!A1"),
        (edited("Sheet1", D1="mine"), "Sheet1!D1"),
        (edited("Sheet1", Z99=0), "Sheet1!Z99"),
        (edited("Other", A1="gone"), "Other!A1"),
        (edited("Scratch", A1=1), "Scratch!A1"),
        ({"Sheet1": edited("Sheet1")["Sheet1"]}, "Other!A1"),
    ],
)
def test_collateral_damage(judge: Judge, output: dict[str, Any], where: str) -> None:
    result = judge(GOLDEN, output, "C1", BEFORE)
    assert result.compatible.passed
    assert (result.strict.reason, result.strict.where) == (("collateral-damage", where) if where else ("passed", ""))


def test_a_case_that_no_work_passes_is_undecided(judge: Judge) -> None:
    """Its input shows the golden's answer; a wrong output is still wrong."""
    cells = {"A1": 3}
    untouched = judge(cells, cells, before=cells)
    assert untouched.compatible.passed and untouched.strict.reason == "undecided"
    assert judge(cells, {"A1": 4}, before=cells).strict.reason == "wrong-value"


def test_an_upside_down_range_is_not_empty(judge: Judge) -> None:
    result = judge({"A1": 1, "B2": 2}, {"A1": 5}, "B2:A1")
    assert result.compatible.passed and result.strict.reason == "wrong-value"


def test_positions_that_the_published_rules_cannot_read(judge: Judge) -> None:
    for position in ("A:B", "$A$1:$B$2", "a1:b2", "sheet1!A1:B2", "A1：B2", " 'Sheet1' ! A1:B2", "A1:\u00a0B2"):
        golden = {"A1": 1, "B2": 2}
        assert judge(golden, golden, position).strict.passed, position
        assert judge(golden, {"A1": 1, "B2": 3}, position).strict.reason == "wrong-value", position
    assert judge({"A1": 1}, {"A1": 1}, "somewhere").strict.reason == "position-unreadable"
    assert judge({"A1": 1}, {"A1": 1}, "Nowhere!A1").strict.reason == "position-unreadable"
    assert judge({"A1": 1, "A9": 2}, {"A1": 1, "A9": 2, "A30": "too much"}, "A:A").strict.reason == "wrong-kind"


def test_whole_columns_reach_as_far_as_the_input_does(judge: Judge) -> None:
    golden, before = {"A1": 1}, {"A1": 1, "A5": "to be deleted"}
    assert judge(golden, golden, "A:A", before).strict.passed
    assert judge(golden, before, "A:A", before).strict.reason == "wrong-kind"


def test_cells_that_strict_cannot_place_leave_the_published_verdict_alone(judge: Judge, tmp_path: Path) -> None:
    cells = {"Sheet1": {"A1": 5, "A2": "=A1"}}
    out = rewrite(save(tmp_path / "o.xlsx", cells), 'r="A2"', 'r="A1048577"')
    result = judge({"A1": 5}, out)
    assert result.compatible.passed and result.strict.reason == "output-broken"


def test_the_tasks_answer_sheet_counts_where_the_position_names_none(judge: Judge) -> None:
    golden = {"Data": {"A1": 1}, "Result": {"A1": 2}}
    output = {"Data": {"A1": 1}, "Result": {"A1": 9}}
    assert judge(golden, output, "A1", answer_sheet="Result").strict.where == "Result!A1"
    assert judge(golden, {"Data": {"A1": 1}}, "Result!A1").strict.reason == "sheet-missing"


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 5), st.integers(0, 5), st.sampled_from(["", "Sheet1", "It's, so"]))
def test_positions_mean_what_they_say(row: int, column: int, rows: int, columns: int, sheet: str) -> None:
    from openpyxl.utils import get_column_letter as letter

    text = f"{letter(column)}{row}:{letter(column + columns)}{row + rows}"
    quoted = "'" + sheet.replace("'", "''") + "'!" if sheet else ""
    area = Area(sheet, row, column, row + rows, column + columns)
    assert areas(quoted + text) == [area]
    assert areas(f"{quoted}{text}, B1") == [area, Area("", 1, 2, 1, 2)]
    cells = list(area.cells(0))
    assert len(set(cells)) == (rows + 1) * (columns + 1) and all(map(area.contains, cells))


@pytest.mark.parametrize("text", ["", "!", "Sheet1", "A1:ZZ1000000,", "A0", "A1,Sheet"])
def test_positions_without_meaning(text: str) -> None:
    with pytest.raises(UnreadablePosition):
        areas(text)
