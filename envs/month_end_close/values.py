"""Values for the cells of generated tables, by the role of the column. Amounts are drawn as whole thousandths."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from frontier_tune.sdk.workbook.vocabulary import VALUES

THOUSAND = 1000
EPOCH = datetime(2023, 1, 1)
SPAN_DAYS = 1000


def tied(numerator: int, denominator: int = 1) -> bool:
    """Whether ``numerator / denominator`` thousandths lie within 1e-6 of a whole or half cent.

    There one of the three roundings would hang on the last bit of a float. Generators draw again.
    """
    remainder = numerator % (5 * denominator)
    return min(remainder, 5 * denominator - remainder) * THOUSAND <= denominator


def amount(rng: random.Random, low: int, high: int) -> int:
    """Thousandths between ``low`` and ``high`` whole units."""
    return rng.randint(low * THOUSAND, high * THOUSAND - 1)


def shown(thousandths: int) -> float:
    return thousandths / THOUSAND


def day(rng: random.Random) -> datetime:
    return EPOCH + timedelta(days=rng.randrange(SPAN_DAYS))


def reference(rng: random.Random) -> str:
    return f"{rng.choice('ABKRV')}{rng.randint(100, 9999)}"


def rate(rng: random.Random) -> float:
    return rng.randint(5_000, 19_999) / 10_000


def memo(rng: random.Random) -> Any:
    """Mixed on purpose: words, a number, nothing."""
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(VALUES["memo"])
    return rng.randint(1, 999) if kind < 0.8 else None


def _amounts(low: int, high: int) -> Callable[[random.Random], Any]:
    return lambda rng: shown(amount(rng, low, high))


_DRAWN: dict[str, Callable[[random.Random], Any]] = {
    "memo": memo,
    "reference": reference,
    "interest_rate": lambda rng: rng.randint(100, 899) / 10_000,
    "days": lambda rng: rng.randint(20, 180),
    "quantity": lambda rng: rng.randint(1, 120),
    "hours": lambda rng: rng.randint(1, 60),
    **dict.fromkeys(("posting_date", "document_date", "invoice_date", "delivery_date", "due_date", "closing_date"), day),
    **dict.fromkeys(("rate_open", "rate_average", "rate_close", "rate_budget"), rate),
}
_ANY_AMOUNT = _amounts(20, 4000)


def filler(role: str, rng: random.Random) -> Any:
    """A value of a column that no answer depends on."""
    if role in _DRAWN:
        return _DRAWN[role](rng)
    return rng.choice(VALUES[role]) if role in VALUES else _ANY_AMOUNT(rng)
