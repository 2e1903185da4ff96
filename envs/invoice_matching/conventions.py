"""What a company means when it matches orders, receipts and invoices. No prompt says it: it has to be learned from reward."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from typing import Any

PARTS = ("supplier", "reference", "invoice_date", "amount")  # of an invoice, by which duplicates are told

CHOICES: dict[str, tuple[Any, ...]] = {
    "tolerance": (("absolute", 1), ("absolute", 2), ("absolute", 5), ("percent", 2), ("percent", 5), ("percent", 10)),
    "sides": ("over", "both"),
    "basis": ("ordered", "received", "accepted"),
    "allowance": (0, 5, 10, 20),
    "due_from": ("invoice_date", "posting_date", "received_on"),
    "due_days": (14, 30, 45, 60),
    "duplicate": tuple(combinations(PARTS, 2)),
    "keeps": ("first", "last"),
    "freight": ("paid", "ours"),
    "reference_price": ("order_price", "contract_price", "list_price", "last_price"),
    "receipt_status": ("Posted", "Approved", "Cleared", "Closed"),
    "discount_base": (("net",), ("net", "freight"), ("net", "tax")),
    "discount_rate": (2, 3),
    "rounding": ("ROUND", "ROUNDDOWN", "ROUNDUP"),
}


@dataclass(frozen=True)
class Company:
    """The conventions of one company. Every field holds one of ``CHOICES``.

    ``tolerance``: by which a billed price may differ from the order's, in money or percent; ``sides``: whether one too low is out
    of tolerance, too. ``basis``: the quantity that may be billed, and ``allowance`` (percent) by which it may be passed.
    ``duplicate``: what two invoices share; ``keeps``: which of them stays. ``freight``: ``paid`` to suppliers who bill it, or
    ``ours`` (bought by ourselves, so not paid).
    """

    tolerance: tuple[str, int]
    sides: str
    basis: str
    allowance: int
    due_from: str
    due_days: int
    duplicate: tuple[str, str]
    keeps: str
    freight: str
    reference_price: str
    receipt_status: str
    discount_base: tuple[str, ...]
    discount_rate: int
    rounding: str

    @classmethod
    def draw(cls, seed: int) -> Company:
        """The company of a seed: each convention drawn evenly, independently of the others."""
        rng = random.Random(f"invoice_matching/company/{seed}")
        return cls(**{f.name: rng.choice(CHOICES[f.name]) for f in fields(cls)})

    def alternatives(self, names: tuple[str, ...]) -> list[Company]:
        """Companies that agree with this one but for the conventions ``names``: every combination, this one included."""
        return [replace(self, **dict(zip(names, values))) for values in product(*(CHOICES[n] for n in names))]

    def describe(self) -> str:
        """The conventions in words, for people; no model is shown them."""
        kind, size = self.tolerance
        how = {"ROUND": "to the nearest cent, halves away from zero", "ROUNDDOWN": "down to cents (towards zero)",
               "ROUNDUP": "up to cents (away from zero)"}[self.rounding]  # fmt: skip
        words = {name: name.replace("_", " ") for name in (*PARTS, self.due_from, self.reference_price)}
        words["received_on"] = "last receipt of goods"
        return "\n".join(
            [
                f"Prices may be {size}{' %' if kind == 'percent' else ''} above the order's"
                + (" or below it." if self.sides == "both" else "; too low is fine."),
                f"At most the quantity {self.basis} may be billed"
                + (f", and {self.allowance} % more." if self.allowance else "."),
                f"Invoices are due {self.due_days} days after the {words[self.due_from]}.",
                f"Duplicates share {words[self.duplicate[0]]} and {words[self.duplicate[1]]}; the {self.keeps} one stays.",
                f"Freight on an invoice is {'paid' if self.freight == 'paid' else 'not paid'}.",
                f"Price differences are claimed against the {words[self.reference_price]}.",
                f"Receipts count once they are {self.receipt_status}.",
                f"Cash discount is {self.discount_rate} % of {' and '.join(self.discount_base)}.",
                f"Amounts are rounded {how}.",
            ]
        )
