"""Generated workbooks: rebuilt from the task's data, messy, clear of clashes and of ties; hidden copies share the structure."""

from __future__ import annotations

import io
import random
from statistics import median
from typing import Any

import pytest
from openpyxl import Workbook, load_workbook

from envs.month_end_close import MonthEndClose
from envs.month_end_close.generator import build
from envs.month_end_close.values import amount, below, tied
from frontier_tune.contracts import canonical_json, content_hash
from frontier_tune.sdk.workbook.layouts import HELDOUT_FAMILIES, TRAIN_FAMILIES
from frontier_tune.sdk.workbook.tables import find_table


def dump(book: Workbook) -> str:
    sheets = {
        ws.title: [[p, repr(c.value)] for p, c in sorted(ws._cells.items()) if c.value is not None] for ws in book.worksheets
    }
    return canonical_json([book.sheetnames, sheets, {n: d.attr_text for n, d in book.defined_names.items()}])


def plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.fixture(scope="module")
def plans(env: MonthEndClose) -> list[Any]:
    return [env.plan(t) for split in ("train", "heldout") for t in env.tasks(split, 48, 11)]


def test_same_data_same_bytes(plans: list[Any]) -> None:
    for plan in plans[::5]:
        assert dump(build(plan, 0).book) == dump(build(plan, 0).book) != dump(build(plan, 1).book)


def test_workbooks_never_change(env: MonthEndClose) -> None:
    """Bases are trained, and figures taken, on these: a change of any cell is one of the environment's version."""
    tasks = [*env.tasks("train", 16, 3), *env.tasks("heldout", 8, 3)]
    dumps = [dump(build(env.plan(t), copy).book) for t in tasks for copy in (0, 1, 2)]
    dumps += [dump(build(env.plan(t), 2, grown=True).book) for t in tasks if env.plan(t).kind.grows]
    assert content_hash(dumps) == "e9414338ab3ad989982bf7bbb47977250074becdb021d3fd96475cf512ee168f"


def test_a_file_holds_the_same_cells(plans: list[Any]) -> None:
    for plan in plans[::12]:
        book = build(plan, 0).book
        stream = io.BytesIO()
        book.save(stream)
        again = load_workbook(stream)
        assert again.sheetnames == book.sheetnames and set(again.defined_names) == set(book.defined_names)
        for ws in book.worksheets:
            mine = {p: plain(c.value) for p, c in ws._cells.items() if c.value is not None}
            assert mine == {p: plain(c.value) for p, c in again[ws.title]._cells.items() if c.value is not None}


def test_workbooks_are_as_messy_as_promised(plans: list[Any]) -> None:
    books = [build(plan, 0).book for plan in plans]
    filled = [sum(c.value is not None for ws in book.worksheets for c in ws._cells.values()) for book in books]
    assert median(filled) >= 200 and min(filled) >= 100
    assert all(2 <= len(book.sheetnames) <= 5 and 1 <= len(book.defined_names) <= 2 for book in books)
    assert len({content_hash(dump(book)) for book in books}) == len(books)


def test_names_do_not_clash(plans: list[Any]) -> None:
    for plan in plans:
        sheets = [s.casefold() for s in plan.order]
        assert len(set(sheets)) == len(sheets)
        answer = plan.target.name.headers[plan.kind.answer].casefold()
        for table in plan.tables:
            headers = [h.casefold() for h in table.name.headers.values()]
            assert len(set(headers)) == len(headers)
            assert table is plan.target or answer not in headers
        roles = [t.name.role for t in plan.tables]
        assert len(set(roles)) == len(roles)


def test_hidden_copies_share_the_structure_alone(plans: list[Any]) -> None:
    for plan in plans[::3]:
        seen, hidden = build(plan, 0), build(plan, 1)
        assert seen.cells == hidden.cells and seen.rows != hidden.rows
        assert [ws.dimensions for ws in seen.book.worksheets] == [ws.dimensions for ws in hidden.book.worksheets]
        for ws in seen.book.worksheets:
            assert {p for p, c in ws._cells.items() if isinstance(c.value, str) and c.value.startswith("=")} == {
                p for p, c in hidden.book[ws.title]._cells.items() if isinstance(c.value, str) and c.value.startswith("=")
            }


def test_grown_copies_have_rows_within_the_source(plans: list[Any]) -> None:
    growing = [p for p in plans if p.kind.grows]
    assert {p.kind.name for p in growing} == {"account_total", "account_average"}
    for plan in growing:
        grown = build(plan, 2, grown=True)
        assert len(grown.source_rows) == plan.source.rows + plan.inserted and plan.inserted >= 2
        sheet, at, count = grown.inserted
        amounts = {c.value for c in grown.book[sheet]._cells.values() if isinstance(c.value, float)}
        assert {r["amount"] for r in grown.source_rows} <= amounts
        table = find_table(grown.book[sheet])
        assert table and table.rows[0] < at < table.rows[-1] - count + 1 and len(table.rows) == len(grown.source_rows)
        assert grown.cells == build(plan, 2).cells


def test_families_and_seeds_of_the_splits_are_apart(env: MonthEndClose) -> None:
    train, heldout = env.tasks("train", 400, 0), env.tasks("heldout", 400, 0)
    assert {t.family for t in train} == {f.name for f in TRAIN_FAMILIES}
    assert {t.family for t in heldout} == {f.name for f in HELDOUT_FAMILIES}
    assert not {t.data["seed"] for t in train} & {t.data["seed"] for t in heldout}


def test_draws_are_pythons_own() -> None:
    """Tasks of earlier versions were drawn with randrange, randint and choice."""
    ours, pythons = random.Random(5), random.Random(5)
    for n in (1, 2, 3, 5, 8, 161, 1000, 9900, 2**20, 2**20 + 1, 3_980_000) * 20:
        assert below(ours, n) == pythons.randrange(n)
        assert 7 + below(ours, n) == pythons.randint(7, 6 + n)
        assert "ABKRV"[below(ours, 5)] == pythons.choice("ABKRV")
        assert amount(ours, 20, 4000) == pythons.randint(20_000, 3_999_999)


@pytest.mark.parametrize(
    ("numerator", "denominator", "wanted"),
    [
        (12340, 1, True),
        (12345, 1, True),
        (12344, 1, False),
        (12346, 1, False),
        (0, 7, True),
        (5, 3, False),
        (15, 3, True),
        (-5, 1, True),
    ],
)
def test_ties(numerator: int, denominator: int, wanted: bool) -> None:
    assert tied(numerator, denominator) is wanted
