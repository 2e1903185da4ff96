"""Numbers with units, read from text as the people who check the work would: 1.5 kg is 1500 g, 5 EUR is no 5 USD."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from frontier_tune.sdk.graders.values import numeric_close

# Units by dimension, with their size in the dimension's own unit. Exact, as the international yard and pound are defined.
_SIZES: dict[str, dict[str, str]] = {
    "mass": {"mg": "1/1000000", "g": "1/1000", "kg": "1", "t": "1000", "lb": "0.45359237", "oz": "0.028349523125"},
    "length": {"mm": "1/1000", "cm": "1/100", "m": "1", "km": "1000", "in": "0.0254", "ft": "0.3048", "yd": "0.9144",
               "mi": "1609.344"},
    "volume": {"ml": "1/1000", "cl": "1/100", "l": "1"},
    "time": {"ms": "1/1000", "s": "1", "min": "60", "h": "3600", "d": "86400"},
    "ratio": {"%": "1/100"},
    "number": {"": "1"},
}  # fmt: skip
_UNITS = {unit: (dimension, Fraction(size)) for dimension, sizes in _SIZES.items() for unit, size in sizes.items()}
_LONG = {
    "seconds": "s", "second": "s", "sec": "s", "minutes": "min", "minute": "min", "hours": "h", "hour": "h", "hrs": "h",
    "days": "d", "day": "d", "percent": "%", "kilograms": "kg", "grams": "g", "tonnes": "t", "metres": "m", "meters": "m",
    "litres": "l", "liters": "l",
}  # fmt: skip
_CURRENCIES = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY"}
_MOST_DIGITS = 30
_NUMBER = r"[+-]?\d[\d.,' \u00a0\u202f]*"


@dataclass(frozen=True)
class Quantity:
    """``value`` in the dimension's own unit (kg, m, l, s, a ratio); a currency is a dimension by itself."""

    value: Fraction
    dimension: str


def read_quantity(text: str, decimal: Literal[".", ","] = ".") -> Quantity:
    """The one quantity that ``text`` is: ``1,234.50 kg``, ``$ 12``, ``7 %``. ``decimal``: the decimal mark, the other one groups.

    Raises ValueError where there is more than one number, an unknown unit, or groups that are no thousands.
    """
    found = re.fullmatch(rf"([^\d+-]*?)\s*({_NUMBER})\s*(\D*)", text.strip())
    if found is None or (found[1] and found[3].strip()):
        raise ValueError(f"{text[:40]!r} is no single quantity")
    value = _number(found[2].strip(), decimal)
    unit = (found[1] or found[3]).strip()
    return _with_unit(value, unit, text)


def quantity_equal(
    actual: object, expected: str, *, absolute: float = 0.0, relative: float = 0.0, decimal: Literal[".", ","] = "."
) -> bool:
    """Whether ``actual`` is text that says ``expected`` in any unit of its dimension, within ``absolute`` (in the dimension's own
    unit) or ``relative``. Anything that can't be read as one quantity is not. Raises ValueError where ``expected`` can't."""
    wanted = read_quantity(expected, decimal)
    if not isinstance(actual, str):
        return False
    try:
        said = read_quantity(actual, decimal)
    except ValueError:
        return False
    close = said.value == wanted.value or numeric_close(
        float(said.value), float(wanted.value), absolute=absolute, relative=relative
    )
    return said.dimension == wanted.dimension and close


def _number(text: str, decimal: str) -> Fraction:
    whole, mark, rest = text.partition(decimal)
    groups = re.split(r"[.,' \u00a0\u202f]", whole.lstrip("+-"))
    fits = all(len(g) == 3 for g in groups[1:]) and 1 <= len(groups[0]) <= (3 if len(groups) > 1 else _MOST_DIGITS)
    if not fits or len(whole) + len(rest) > 2 * _MOST_DIGITS or (mark and not rest.isdigit()) or not "".join(groups).isdecimal():
        raise ValueError(f"{text[:40]!r} is no number with the decimal mark {decimal!r}")
    sign = "-" if text.startswith("-") else ""
    return Fraction(f"{sign}{''.join(groups)}.{rest or 0}")


def _with_unit(value: Fraction, unit: str, text: str) -> Quantity:
    name = _LONG.get(unit.casefold(), unit)
    known = _UNITS.get(name) or _UNITS.get(name.casefold())
    if known is None and (unit in _CURRENCIES or re.fullmatch("[A-Z]{3}", unit)):  # MIN, HRS and DAY are no currencies
        return Quantity(value, _CURRENCIES.get(unit, unit))
    if known is None:
        known_units = ", ".join(filter(None, _UNITS))
        raise ValueError(f"{text[:40]!r}: unknown unit {unit[:20]!r}; known: {known_units} and currency codes")
    return Quantity(value * known[1], known[0])
