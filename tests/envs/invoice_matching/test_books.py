"""The books and golden answers of invoice matching, without an episode."""

import random
import sqlite3
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal

from hypothesis import given
from hypothesis import strategies as st

from envs.invoice_matching.books import tied
from envs.invoice_matching.conventions import CHOICES, Company
from envs.invoice_matching.kind import APART, rounded
from envs.invoice_matching.kinds import KINDS
from envs.invoice_matching.names import COLUMNS, FAMILIES, HEADERS, SHEETS, TABLES
from envs.invoice_matching.plan import make_plan
from envs.invoice_matching.sessions import copy_of

MODES = {"ROUND": ROUND_HALF_UP, "ROUNDDOWN": ROUND_DOWN, "ROUNDUP": ROUND_UP}


@given(st.integers(-(10**9), 10**9), st.sampled_from((1, 7, 100, 360)), st.sampled_from(sorted(MODES)))
def test_rounding_is_exact_and_as_excel_rounds(numerator: int, denominator: int, how: str) -> None:
    company = Company.draw(0).__class__(**{**Company.draw(0).__dict__, "rounding": how})
    if not tied(numerator, denominator):
        wanted = (Decimal(numerator) / denominator / 1000).quantize(Decimal("0.01"), MODES[how])
        assert Decimal(repr(rounded(company, numerator, denominator))) == wanted.normalize() or wanted == 0


def test_every_convention_decides_some_kind() -> None:
    assert {name for kind in KINDS.values() for name in kind.conventions} == set(CHOICES)
    assert len({Company.draw(seed) for seed in range(50)}) == 50


def test_copies_tell_the_ways_apart_and_share_nothing_but_structure() -> None:
    for i, name in enumerate(KINDS):
        key = (name, 2 * i, random.Random(i).choice(FAMILIES["train"]).name)
        copies = [copy_of(key, number) for number in range(3)]
        kind, company = KINDS[name], Company.draw(i)
        for copy in copies:
            found = [kind.answers(c, copy.books) for c in company.alternatives(kind.conventions)]
            assert all(sum(a != b for a, b in zip(x, y)) >= APART for n, x in enumerate(found) for y in found[:n])
        numbers = [{line.number for line in copy.books} for copy in copies]
        assert len(numbers[0] & numbers[1]) < 3 and len({copy.database for copy in copies}) == 3
        assert copy_of.__wrapped__(key, 1) == copies[1]


def test_the_database_holds_what_the_books_say() -> None:
    copy = copy_of(("quantity_check", 8, "shifted"), 0)
    connection = sqlite3.connect(":memory:")
    connection.deserialize(copy.database)
    invoices, receipts = copy.plan.names["invoices"], copy.plan.names["receipts"]
    of, rf = invoices.columns, receipts.columns
    rows = connection.execute(
        f"SELECT {of['number']}, {of['billed']}, sum({rf['accepted']}) FROM {invoices.name} JOIN {receipts.name}"
        f" ON {invoices.name}.{of['key']}={receipts.name}.{rf['key']} GROUP BY {of['number']}"
    ).fetchall()
    assert sorted(rows) == sorted((line.number, line.billed, line.accepted) for line in copy.books)
    connection.close()


def test_names_are_fit_for_sql_and_told_apart() -> None:
    """No name needs quotes, none of one table's columns can be taken for another's, and keys differ from table to table."""
    connection = sqlite3.connect(":memory:")
    for name in {n for names in (*TABLES.values(), *COLUMNS.values()) for n in names}:
        connection.execute(f"CREATE TABLE {name} ({name} TEXT)")
        connection.execute(f"SELECT {name} FROM {name} WHERE {name}='x'")
        connection.execute(f"DROP TABLE {name}")
    connection.close()
    for seed in range(60):
        kind = list(KINDS)[seed % len(KINDS)]
        plan = make_plan(kind, seed, "plain")
        called = [name.name.casefold() for name in plan.names.values()]
        keys = [name.columns["key"] for name in plan.tables]
        assert len(set(called)) == len(called) and len(set(keys)) == 3
        for table in plan.names.values():
            assert len({c.casefold() for c in table.columns.values()}) == len(table.columns)
    assert set(SHEETS) == {"matching", "order_book", "goods_in", "other"} and all(len(v) == 4 for v in HEADERS.values())
