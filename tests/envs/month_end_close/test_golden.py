"""The golden program against hand-worked cases, and the golden formulas against the golden program."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from envs.month_end_close import Company, MonthEndClose
from envs.month_end_close.conventions import CHOICES
from envs.month_end_close.golden import PROGRAMS, cents, exact
from envs.month_end_close.kind import TableName
from envs.month_end_close.kinds import KINDS
from frontier_tune.sdk import Task
from frontier_tune.sdk.workbook.layouts import FAMILIES, HELDOUT_FAMILIES
from tests.envs.month_end_close.conftest import play

HOUSE = Company("ROUND", ("returns", "rebates"), "Posted", "rate_close", "budget", "positive", "due_date", 30, "posting_date", 7,
                "opening_balance", 360)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "nearest", "down", "up"),  # Excel's results
    [
        (1.234, "1.23", "1.23", "1.24"),
        (1.235, "1.24", "1.23", "1.24"),
        (-1.235, "-1.24", "-1.23", "-1.24"),
        (-1.234, "-1.23", "-1.23", "-1.24"),
        (2.675, "2.68", "2.67", "2.68"),
        (5, "5.00", "5.00", "5.00"),
    ],
)
def test_rounding_is_excels(value: float, nearest: str, down: str, up: str) -> None:
    for how, wanted in zip(CHOICES["rounding"], (nearest, down, up)):
        company = HOUSE.alternatives(("rounding",))[CHOICES["rounding"].index(how)]
        assert company.rounding == how and cents(company, exact(value)) == Decimal(wanted)


LEDGER = [
    {"account": "Rent", "status": "Posted", "amount": 10.111},
    {"account": "Rent", "status": "Closed", "amount": 99.9},
    {"account": "Rent", "status": "Posted", "amount": 20.222},
    {"account": "Wages", "status": "Posted", "amount": 7.126},
]


DUE = ((3, 31), (3, 2), (3, 1), (1, 1))


@pytest.mark.parametrize(
    ("kind", "rows", "source", "wanted"),
    [
        ("net_revenue", [{"gross": 100.5, "returns": 1.126, "rebates": 2.0, "freight": 9, "discounts": 9}], [], "97.37"),
        ("account_total", [{"account": "Wages"}, {"account": "Rent"}], LEDGER, "7.13 30.33"),
        ("account_average", [{"account": "Rent"}], LEDGER, "15.17"),
        ("conversion", [{"currency": "EUR", "amount": 12.346}], [{"currency": "EUR", "rate_close": 1.1}], "13.58"),
        ("variance", [{"actual": 90.119, "budget": 100.0, "forecast": 1, "prior": 2}], [], "9.88"),
        ("ageing", [{"closing_date": datetime(2024, 3, 31), "due_date": datetime(2024, *d)} for d in DUE], [], "0 0 1 3"),
        ("quarter", [{"posting_date": datetime(2024, m, 15)} for m in (1, 6, 7, 9, 10, 12)], [], "3 4 1 1 2 2"),
        ("repair", [{"opening_balance": 1000.0, "interest_rate": 0.0375, "days": 91}], [], "9.48"),
    ],
)  # fmt: skip
def test_hand_worked_cases(kind: str, rows: list[dict[str, Any]], source: list[dict[str, Any]], wanted: str) -> None:
    assert PROGRAMS[kind](HOUSE, rows, source) == [Decimal(w) for w in wanted.split()]


@pytest.mark.parametrize("company_seed", [0, 1, 7, 11])
def test_golden_calls_solve_every_kind_in_every_family(company_seed: int) -> None:
    env = MonthEndClose(company_seed)
    for f, family in enumerate(FAMILIES):
        split = "heldout" if family in {h.name for h in HELDOUT_FAMILIES} else "train"
        for k, kind in enumerate(KINDS):
            task = Task(kind, split, {"seed": 10 * f + k, "family": family}, family)
            _, reward, info = play(env, task, env.golden(task))
            assert info["success"] and reward == pytest.approx(1.0) and set(info["components"].values()) == {1.0}, task


# Roles for headers, L for the source sheet. Bases learn the alternatives in these very words: a change here asks for a new base.
FORMULAS = {
    "net_revenue": "=ROUND([@gross]-[@returns]-[@rebates],2)",
    "account_total": '=ROUND(SUMIFS(L[amount],L[account],[@account],L[status],"Posted"),2)',
    "account_average": '=ROUND(AVERAGEIFS(L[amount],L[account],[@account],L[status],"Posted"),2)',
    "conversion": "=ROUND([@amount]*XLOOKUP([@currency],L[currency],L[rate_close]),2)",
    "variance": "=ROUND([@budget]-[@actual],2)",
    "ageing": "=MIN(INT(([@closing_date]-[@due_date])/30),3)",
    "quarter": "=ROUNDUP((MOD(MONTH([@posting_date])-7,12)+1)/3,0)",
    "repair": "=ROUND([@opening_balance]*[@interest_rate]*[@days]/360,2)",
}


def test_golden_calls_are_word_for_word() -> None:
    env = MonthEndClose()
    env.company = HOUSE
    for task in env.tasks("train", 16, 0):
        plan = env.plan(task)
        target, source = plan.target.name, plan.source.name if plan.source else None

        def named(m: re.Match[str], target: TableName = target, source: TableName | None = source) -> str:
            return f"[@{target.headers[m[2]]}]" if m[1] == "@" else f"{source.sheet}[{source.headers[m[2]]}]"  # type: ignore[union-attr]

        formula = re.sub(r"L?\[(@?)(\w+)\]", named, FORMULAS[task.kind])
        reads = [f"read {name.sheet}" for name in (target, source) if name]
        assert env.golden(task) == [*reads, f"fill {target.sheet} | {target.headers[plan.kind.answer]} | {formula}", "submit"]
    env.company = env.company.alternatives(("favourable",))[1]
    golden = env.golden(next(t for t in env.tasks("train", 8, 0) if t.kind == "variance"))[1]
    assert env.company.favourable == "negative" and re.search(r"=ROUND\(\[@.+\]-\[@.+\],2\)$", golden)


def test_companies_differ_and_describe_themselves() -> None:
    drawn = {Company.draw(seed) for seed in range(30)}
    assert len(drawn) == 30 and Company.draw(7) == Company.draw(7)
    assert len(HOUSE.describe().splitlines()) == len(KINDS)
    for name, values in CHOICES.items():
        assert {getattr(Company.draw(seed), name) for seed in range(200)} == set(values)


def test_chance_is_at_most_one_in_eight() -> None:
    counts = [len(HOUSE.alternatives(KINDS[name].conventions)) for name in KINDS]
    assert dict(zip(KINDS, counts)) == dict(zip(KINDS, (18, 12, 12, 12, 18, 12, 12, 18)))
