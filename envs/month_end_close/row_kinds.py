"""Kinds whose answer comes from its own row: net revenue, variance, ageing, fiscal quarter, and the broken interest formula."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import combinations

from envs.month_end_close.conventions import DEDUCTIONS, Company
from envs.month_end_close.kind import Kind, Row, TableName, some
from envs.month_end_close.values import amount, day, shown, tied


class NetRevenue(Kind):
    name = "net_revenue"
    prompt = "Compute net revenue into {column} of {sheet}."
    conventions = ("deductions", "rounding")
    target, answer = "sales", "net"

    def columns(self, rng: random.Random) -> list[str]:
        return ["reference", rng.choice(("customer", "product")), "gross", *DEDUCTIONS, *some(rng, "region", chance=0.3)]

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        return [self._row(rng) for _ in range(n)], []

    def _row(self, rng: random.Random) -> Row:
        while True:
            gross = amount(rng, 100, 4000)
            parts = [gross * rng.randint(200, 1500) // 10_000 for _ in DEDUCTIONS]
            if not any(tied(gross - a - b) for a, b in combinations(parts, 2)):
                return {"gross": shown(gross)} | {role: shown(p) for role, p in zip(DEDUCTIONS, parts)}

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        first, second = company.deductions
        return f"={company.rounding}({target.own('gross')}-{target.own(first)}-{target.own(second)},2)"


class Variance(Kind):
    name = "variance"
    prompt = "Work out the variance in {column} of {sheet}."
    conventions = ("baseline", "favourable", "rounding")
    target, answer = "costs", "variance"
    bases = ("budget", "forecast", "prior")

    def columns(self, rng: random.Random) -> list[str]:
        keys = rng.choice((["account"], ["department"], ["account", "department"]))
        return [*keys, "actual", *self.bases, "owner", *some(rng, "reference", chance=0.3)]

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        return [self._row(rng) for _ in range(n)], []

    def _row(self, rng: random.Random) -> Row:
        while True:
            actual = amount(rng, 100, 4000)
            bases = [actual * rng.randint(600, 1400) // 1000 for _ in self.bases]
            if not any(tied(actual - b) for b in bases):
                return {"actual": shown(actual)} | {role: shown(b) for role, b in zip(self.bases, bases)}

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        sides = [target.own(company.baseline), target.own("actual")]
        if company.favourable == "negative":
            sides.reverse()
        return f"={company.rounding}({'-'.join(sides)},2)"


class Ageing(Kind):
    name = "ageing"
    prompt = "Put each open item into its age bucket, {column} of {sheet}."
    conventions = ("age_from", "age_days")
    target, answer = "receivables", "bucket"
    whole = True

    def columns(self, rng: random.Random) -> list[str]:
        dates = ["invoice_date", "delivery_date", "due_date", "closing_date"]
        return ["reference", "customer", *dates, "open_amount", *some(rng, "owner", chance=0.3)]

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        closing = day(rng) + timedelta(days=250)
        rows = []
        for _ in range(n):
            # Ages spread so that buckets of 15 and of 60 days both tell the three dates apart in most rows.
            due = rng.choice((rng.randint(0, 40), rng.randint(15, 110)))
            invoice = due + rng.choice((14, 30, 30, 45, 60, 90))
            delivery = max(0, invoice + rng.randint(20, 50) * rng.choice((-1, -1, 1)))
            ages = {"due_date": due, "invoice_date": invoice, "delivery_date": delivery}
            rows.append({"closing_date": closing} | {role: closing - timedelta(days=age) for role, age in ages.items()})
        return rows, []

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        return f"=MIN(INT(({target.own('closing_date')}-{target.own(company.age_from)})/{company.age_days}),3)"


class Quarter(Kind):
    name = "quarter"
    prompt = "Give each entry its fiscal quarter in {column} of {sheet}."
    conventions = ("quarter_date", "year_start")
    target, answer = "calendar", "quarter"
    whole = True

    def columns(self, rng: random.Random) -> list[str]:
        return ["reference", "posting_date", "document_date", "amount", "owner", *some(rng, "memo", chance=0.3)]

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        rows = []
        for _ in range(n):
            posted = day(rng) + timedelta(days=200)
            rows.append({"posting_date": posted, "document_date": posted - timedelta(days=rng.randint(5, 200))})
        return rows, []

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        return f"=ROUNDUP((MOD(MONTH({target.own(company.quarter_date)})-{company.year_start},12)+1)/3,0)"


class Repair(Kind):
    """The answer column holds a formula whose reference is gone: the generator writes ``BROKEN`` with the row filled in."""

    name = "repair"
    prompt = "The formula in {column} of {sheet} is broken, repair the accrued interest."
    conventions = ("balance", "basis", "rounding")
    target, answer = "loans", "interest"
    broken = "=#REF!*{interest_rate}*{days}"  # says neither balance nor basis nor rounding
    balances = ("opening_balance", "closing_balance", "average_balance")

    def columns(self, rng: random.Random) -> list[str]:
        return ["reference", "customer", *self.balances, "interest_rate", "days"]

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        return [self._row(rng) for _ in range(n)], []

    def _row(self, rng: random.Random) -> Row:
        while True:
            opening = amount(rng, 1000, 40_000)
            closing = opening * rng.choice((rng.randint(500, 900), rng.randint(1100, 1600))) // 1000
            between = (opening + closing) * rng.randint(470, 530) // 1000
            rate, days = rng.randint(100, 899), rng.randint(20, 180)
            balances = (opening, closing, between)
            if not any(tied(b * rate * days, 10_000 * basis) for b in balances for basis in (360, 365)):
                values = {role: shown(b) for role, b in zip(self.balances, balances)}
                return values | {"interest_rate": rate / 10_000, "days": days}

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        product = f"{target.own(company.balance)}*{target.own('interest_rate')}*{target.own('days')}"
        return f"={company.rounding}({product}/{company.basis},2)"
