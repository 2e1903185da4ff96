"""What a company means by the words of its month-end close. No prompt says it: it has to be learned from reward."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from typing import Any

DEDUCTIONS = ("returns", "rebates", "freight", "discounts")  # the order in which formulas name them

CHOICES: dict[str, tuple[Any, ...]] = {
    "rounding": ("ROUND", "ROUNDDOWN", "ROUNDUP"),
    "deductions": tuple(combinations(DEDUCTIONS, 2)),
    "status": ("Posted", "Approved", "Cleared", "Closed"),
    "rate": ("rate_open", "rate_average", "rate_close", "rate_budget"),
    "baseline": ("budget", "forecast", "prior"),
    "favourable": ("positive", "negative"),
    "age_from": ("invoice_date", "delivery_date", "due_date"),
    "age_days": (15, 30, 45, 60),
    "quarter_date": ("posting_date", "document_date"),
    "year_start": (1, 2, 4, 7, 9, 10),
    "balance": ("opening_balance", "closing_balance", "average_balance"),
    "basis": (360, 365),
}


@dataclass(frozen=True)
class Company:
    """The conventions of one company. Every field holds one of ``CHOICES``.

    ``favourable``: the sign of a variance where less was spent than the baseline. ``age_days``: length of an age bucket.
    ``year_start``: the fiscal year's first month. ``basis``: days of a year of interest.
    """

    rounding: str
    deductions: tuple[str, str]
    status: str
    rate: str
    baseline: str
    favourable: str
    age_from: str
    age_days: int
    quarter_date: str
    year_start: int
    balance: str
    basis: int

    @classmethod
    def draw(cls, seed: int) -> Company:
        """The company of a seed: each convention drawn evenly, independently of the others."""
        rng = random.Random(f"company/{seed}")
        return cls(**{f.name: rng.choice(CHOICES[f.name]) for f in fields(cls)})

    def alternatives(self, names: tuple[str, ...]) -> list[Company]:
        """Companies that agree with this one but for the conventions ``names``: every combination, this one included."""
        return [replace(self, **dict(zip(names, values))) for values in product(*(CHOICES[n] for n in names))]

    def describe(self) -> str:
        """The conventions in words, for people; no model is shown them."""
        how = {"ROUND": "to the nearest cent, halves away from zero", "ROUNDDOWN": "down to cents (towards zero)",
               "ROUNDUP": "up to cents (away from zero)"}[self.rounding]  # fmt: skip
        return "\n".join(
            [
                f"Amounts are rounded {how}.",
                f"Net revenue is gross less {self.deductions[0]} and {self.deductions[1]}; the other deductions stay in.",
                f"Account totals and averages count bookings whose status is {self.status}.",
                f"Payments are converted at the {_words(self.rate)}.",
                f"Variances are taken against {_words(self.baseline)}; spending less shows as {self.favourable}.",
                f"Open items age from the {_words(self.age_from)}, in buckets of {self.age_days} days, 0 to 3.",
                f"The fiscal year starts in month {self.year_start}; what counts is the {_words(self.quarter_date)}.",
                f"Interest accrues on the {_words(self.balance)}, {self.basis} days to the year.",
            ]
        )


def _words(role: str) -> str:
    kind, _, rest = role.partition("_")
    return f"{rest} rate" if kind == "rate" else role.replace("_", " ").replace("prior", "the prior year")
