"""Kinds that take values from another sheet: totals and averages of a ledger by account, and conversion at a rate."""

from __future__ import annotations

import random

from envs.month_end_close.conventions import CHOICES, Company
from envs.month_end_close.kind import Kind, Row, TableName, some
from envs.month_end_close.values import amount, shown, tied
from frontier_tune.sdk.workbook.vocabulary import VALUES

STATUSES = CHOICES["status"]
RATES = CHOICES["rate"]


class AccountTotal(Kind):
    name = "account_total"
    prompt = "Total the bookings by account into {column} of {sheet}. The ledger will grow."
    conventions = ("status", "rounding")
    target, answer, source = "summary", "total", "ledger"
    rows, source_rows = (5, 10), (30, 60)
    grows = True
    function = "SUMIFS"

    def columns(self, rng: random.Random) -> list[str]:
        others = ["result", "region", "hours", "quantity"]
        return ["account", rng.choice(("owner", "department")), rng.choice(others)]

    def source_columns(self, rng: random.Random) -> list[str]:
        more = some(rng, "posting_date", "memo", "owner") or ["posting_date"]
        return ["reference", "account", "amount", "status", *more]

    def counts(self, rng: random.Random) -> tuple[int, int]:
        n = rng.randint(*self.rows)
        return n, rng.randint(max(self.source_rows[0], len(STATUSES) * n), self.source_rows[1])

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        accounts = rng.sample(VALUES["account"], n)
        groups = [(a, s) for a in accounts for s in STATUSES]  # each at least once
        groups += [(rng.choice(accounts), rng.choice(STATUSES)) for _ in range(m - len(groups))]
        rng.shuffle(groups)
        amounts = self._amounts(rng, groups)
        bookings = [{"account": a, "status": s, "amount": shown(x)} for (a, s), x in zip(groups, amounts)]
        return [{"account": a} for a in accounts], bookings

    def _amounts(self, rng: random.Random, groups: list[tuple[str, str]]) -> list[int]:
        """Thousandths for each booking; no group ties, and for each status every rounding gives other answers."""
        members: dict[tuple[str, str], list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group, []).append(i)
        amounts = [0] * len(groups)
        while True:
            halves: dict[str, set[bool]] = {}
            for group, indices in members.items():
                size = self._denominator(len(indices))
                while tied(sum(amounts[i] for i in indices), size):
                    for i in indices:
                        amounts[i] = amount(rng, 20, 4000)
                above = sum(amounts[i] for i in indices) % (10 * size) > 5 * size  # more than half a cent over
                halves.setdefault(group[1], set()).add(above)
            if all(len(seen) == 2 for seen in halves.values()):
                return amounts
            amounts = [0] * len(groups)

    def _denominator(self, count: int) -> int:
        return 1

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        assert source is not None
        conditions = f'{source.whole("account")},{target.own("account")},{source.whole("status")},"{company.status}"'
        return f"={company.rounding}({self.function}({source.whole('amount')},{conditions}),2)"


class AccountAverage(AccountTotal):
    name = "account_average"
    prompt = "Average the bookings by account into {column} of {sheet}. The ledger will grow."
    answer = "mean"
    function = "AVERAGEIFS"

    def _denominator(self, count: int) -> int:
        return count


class Conversion(Kind):
    name = "conversion"
    prompt = "Convert the amounts into group currency, {column} of {sheet}."
    conventions = ("rate", "rounding")
    target, answer, source = "payments", "converted", "rates"
    source_rows = (5, 8)

    def columns(self, rng: random.Random) -> list[str]:
        return ["reference", "customer", "currency", "amount", *some(rng, "owner", "memo")]

    def source_columns(self, rng: random.Random) -> list[str]:
        return ["currency", *RATES, *some(rng, "memo", chance=0.3)]

    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        currencies = rng.sample(VALUES["currency"], m)
        table = {c: self._rates(rng) for c in currencies}
        rows: list[Row] = []
        for _ in range(n):
            currency, value = rng.choice(currencies), 0
            while any(tied(value * rate, 10_000) for rate in table[currency]):
                value = amount(rng, 20, 4000)
            rows.append({"currency": currency, "amount": shown(value)})
        source = [{"currency": c} | {role: rate / 10_000 for role, rate in zip(RATES, table[c])} for c in currencies]
        return rows, source

    def _rates(self, rng: random.Random) -> list[int]:
        """Four rates in ten-thousandths, each at least 3 % from the others, in no order."""
        middle = rng.randint(6_000, 17_000)
        rates = [middle * (900 + 50 * i + rng.randint(0, 15)) // 1000 for i in range(len(RATES))]
        rng.shuffle(rates)
        return rates

    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        assert source is not None
        rate = f"XLOOKUP({target.own('currency')},{source.whole('currency')},{source.whole(company.rate)})"
        return f"={company.rounding}({target.own('amount')}*{rate},2)"
