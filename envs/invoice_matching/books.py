"""The books: order lines with what was ordered, received and billed on each. Money is held in whole thousandths.

One generator serves every kind of task, so that a task's database and its workbook tell one story.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from envs.invoice_matching.conventions import CHOICES
from envs.invoice_matching.names import OWNERS, SUPPLIERS

THOUSAND = 1000
EPOCH = date(2023, 1, 1)
STATUSES = ("Posted", "Approved", "Cleared", "Closed")


@dataclass(frozen=True)
class Part:
    """One receipt of goods. ``value`` in thousandths."""

    received: int
    accepted: int
    received_on: date
    status: str
    value: int


@dataclass(frozen=True)
class Line:
    """One order line, its receipts and the invoice on it. Prices and amounts in thousandths."""

    key: str
    supplier: str
    owner: str
    ordered: int
    ordered_on: date
    order_price: int
    contract_price: int
    list_price: int
    last_price: int
    parts: tuple[Part, ...]
    number: int
    reference: str
    invoice_date: date
    posting_date: date
    billed: int
    price: int
    freight: int
    tax: int

    @property
    def received(self) -> int:
        return sum(p.received for p in self.parts)

    @property
    def accepted(self) -> int:
        return sum(p.accepted for p in self.parts)

    @property
    def received_on(self) -> date:
        return max(p.received_on for p in self.parts)

    @property
    def net(self) -> int:
        return self.billed * self.price

    @property
    def amount(self) -> int:
        return self.net + self.freight + self.tax

    def money(self, role: str) -> float:
        """A price or amount in whole units."""
        return int(getattr(self, role)) / THOUSAND


Books = tuple[Line, ...]
# What the copied invoices share with an earlier one: every pair of the four alone, some with a third.
_SHARED = (
    *(("supplier", "reference"), ("supplier", "date"), ("supplier", "amount"), ("reference", "date"), ("reference", "amount")),
    *(("date", "amount"), ("supplier", "reference", "amount"), ("reference", "date", "amount")),
)


def draw_books(rng: random.Random, parts: Sequence[int], fits: Callable[[Line], bool]) -> Books:
    """As many lines as ``parts`` has entries, each with so many receipts. Lines that do not ``fit`` are drawn again."""
    keys = _distinct(rng, len(parts), lambda: f"{rng.choice('ABKRV')}{rng.randint(1000, 9999)}")
    numbers = _distinct(rng, len(parts), lambda: str(rng.randint(10_000, 99_999)))
    shared = list(_SHARED)
    rng.shuffle(shared)
    lines: list[Line] = []
    while len(lines) < len(parts):
        i = len(lines)
        # The first half stands alone; then come those that share something with one of them, then more of their own.
        twin = rng.choice(lines[: len(parts) // 2]) if i >= len(parts) // 2 and shared else None
        line = _line(rng, keys[i], int(numbers[i]), parts[i], twin, shared[-1] if twin else ())
        if fits(line):
            lines.append(line)
            if twin:
                shared.pop()
    rng.shuffle(lines)
    return tuple(lines)


def _line(rng: random.Random, key: str, number: int, parts: int, twin: Line | None, shared: tuple[str, ...]) -> Line:
    ordered = rng.randint(40, 300)
    order_price = rng.randint(20 * THOUSAND, 100 * THOUSAND)
    received = max(parts, round(ordered * rng.choice((1, rng.uniform(0.8, 0.98), rng.uniform(1.02, 1.2)))))
    accepted = max(parts, round(received * rng.choice((1, rng.uniform(0.75, 0.98), rng.uniform(0.75, 0.98)))))
    billed = _billed(rng, (ordered, received, accepted))
    price = order_price + rng.choice((-1, 1, 1)) * _deviation(rng, order_price)
    invoiced = EPOCH + timedelta(days=rng.randrange(700))
    supplier, reference, freight = (
        rng.choice(SUPPLIERS),
        f"R{rng.randint(100, 9999)}",
        rng.randint(20, 400) * 100 + rng.randint(1, 99),
    )
    tax = billed * price * rng.choice((7, 19)) // 100
    if twin:
        supplier = twin.supplier if "supplier" in shared else rng.choice([s for s in SUPPLIERS if s != twin.supplier])
        reference = twin.reference if "reference" in shared else reference
        invoiced = twin.invoice_date if "date" in shared else invoiced
        if "amount" in shared:
            ordered, order_price, billed, price, freight, tax = (
                *(twin.ordered, twin.order_price, twin.billed, twin.price),
                *(twin.freight, twin.tax),
            )
    return Line(
        key,
        supplier,
        rng.choice(OWNERS),
        ordered,
        invoiced - timedelta(days=rng.randint(60, 120)),
        order_price,
        _near(rng, order_price),
        _near(rng, order_price),
        _near(rng, order_price),
        _receipts(rng, received, accepted, parts, order_price, invoiced),
        number,
        reference,
        invoiced,
        invoiced + timedelta(days=rng.randint(2, 12)),
        billed,
        price,
        freight,
        tax,
    )


def _receipts(rng: random.Random, received: int, accepted: int, parts: int, price: int, invoiced: date) -> tuple[Part, ...]:
    """So many deliveries, the last of them one to three weeks before or after the invoice."""
    last = invoiced + timedelta(days=rng.choice((-1, 1)) * rng.randint(13, 25))
    days = sorted((rng.randint(1, 25) for _ in range(parts - 1)), reverse=True)
    found = []
    for i, (n, good) in enumerate(zip(_split(rng, received, parts), _split(rng, accepted, parts))):
        on = last - timedelta(days=days[i]) if i < parts - 1 else last
        found.append(Part(n, min(n, good), on, rng.choice(STATUSES), n * price + rng.randint(1, 9 * THOUSAND)))
    return tuple(found)


def _split(rng: random.Random, whole: int, parts: int) -> list[int]:
    cuts = sorted(rng.sample(range(1, whole), parts - 1)) if parts > 1 else []
    return [b - a for a, b in zip([0, *cuts], [*cuts, whole])]


def _billed(rng: random.Random, bases: tuple[int, ...]) -> int:
    """A quantity that lies on one of the limits of what may be billed, or between it and the next, or past the last."""
    limits = sorted({(100 + allowance) * basis // 100 for allowance in CHOICES["allowance"] for basis in bases})
    at = rng.randrange(len(limits))
    return limits[at] if rng.random() < 0.2 else rng.randint(limits[at] + 1, [*limits, limits[-1] * 6 // 5][at + 1] + 1)


def _deviation(rng: random.Random, price: int) -> int:
    """None, or one that lies between two neighbouring limits of tolerance, or past the last: each as likely."""
    limits = sorted(size * price // 100 if kind == "percent" else size * THOUSAND for kind, size in CHOICES["tolerance"])
    gap = rng.randrange(len(limits) + 1)
    low, high = ([0, *limits][gap], [*limits, limits[-1] * 3 // 2][gap])
    return rng.randint(low, high) if gap else 0


def _near(rng: random.Random, price: int) -> int:
    return price + rng.choice((-1, 1)) * rng.randint(price // 50, price // 6)


def _distinct(rng: random.Random, n: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found[draw()] = None
    return list(found)


def tied(numerator: int, denominator: int = 1) -> bool:
    """Whether ``numerator / denominator`` thousandths lie within 1e-6 of a whole or half cent, where one of the three roundings
    would hang on the last bit of a float."""
    remainder = numerator % (5 * denominator)
    return min(remainder, 5 * denominator - remainder) * THOUSAND <= denominator


def shown(thousandths: int) -> float:
    return thousandths / THOUSAND
