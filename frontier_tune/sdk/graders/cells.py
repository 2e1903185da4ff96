"""Whether two cells, or two ranges, show the same: kinds are told apart, numbers and times get a tolerance."""

from __future__ import annotations

import datetime
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from frontier_tune.sdk.graders.values import numeric_close

Address = TypeVar("Address", bound=Hashable)


class CellKind(StrEnum):
    """What a reader sees in a cell. A date is stored as a number, but 45292 is no date to its reader."""

    BLANK = "blank"
    BOOLEAN = "boolean"
    NUMBER = "number"
    TEXT = "text"
    DATE = "date"
    TIME = "time"
    DURATION = "duration"
    ERROR = "error"


@dataclass(frozen=True)
class CellError:
    """An error value (``#N/A``). The same characters typed in as text are text."""

    code: str


@dataclass(frozen=True)
class Tolerance:
    """Numbers: the larger of ``absolute`` and ``relative`` (to the expected one). Dates, times, durations: ``seconds``.

    The defaults forgive what two engines' arithmetic may leave (about 1e-12) and the half second that a serial number may lose.
    """

    absolute: float = 1e-9
    relative: float = 1e-9
    seconds: float = 0.5


def cell_kind(value: Any) -> CellKind:
    """Kind of a value as openpyxl reads it. Empty text is blank: both show nothing. TypeError for what no cell can hold."""
    match value:
        case None | "":
            return CellKind.BLANK
        case bool():
            return CellKind.BOOLEAN
        case int() | float():
            return CellKind.NUMBER
        case str():
            return CellKind.TEXT
        case datetime.date():
            return CellKind.DATE
        case datetime.time():
            return CellKind.TIME
        case datetime.timedelta():
            return CellKind.DURATION
        case CellError():
            return CellKind.ERROR
    raise TypeError(f"a cell can't hold {type(value).__name__}")


def cell_equal(actual: Any, expected: Any, tolerance: Tolerance = Tolerance()) -> bool:  # noqa: B008 (frozen)
    """Whether ``actual`` shows what ``expected`` shows.

    Kinds must agree: True is not 1, "1" is not 1, a date is not its serial number. Text is compared exactly, case and white space
    included; blanks are equal; nan and inf equal nothing.
    """
    kind = cell_kind(expected)
    if cell_kind(actual) is not kind:
        return False
    if kind is CellKind.BLANK:
        return True
    if kind is CellKind.NUMBER:
        try:
            return math.isfinite(expected) and numeric_close(
                actual, expected, absolute=tolerance.absolute, relative=tolerance.relative
            )
        except OverflowError:  # whole numbers past the floats
            return bool(actual == expected)
    if kind in (CellKind.DATE, CellKind.TIME, CellKind.DURATION):
        return abs(_seconds(actual) - _seconds(expected)) <= tolerance.seconds
    return bool(actual == expected)


def range_differences(
    actual: Mapping[Address, Any],
    expected: Mapping[Address, Any],
    addresses: Iterable[Address],
    tolerance: Tolerance = Tolerance(),  # noqa: B008 (frozen)
) -> Iterator[Address]:
    """Those of ``addresses`` whose cells differ, in their order. An address that a mapping lacks is blank there."""
    return (a for a in addresses if not cell_equal(actual.get(a), expected.get(a), tolerance))


def _seconds(value: Any) -> float:
    """Seconds since 1899-12-30 (dates), midnight (times) or in all (durations)."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.time):
        return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    moment = value if isinstance(value, datetime.datetime) else datetime.datetime(value.year, value.month, value.day)
    return (moment.replace(tzinfo=None) - datetime.datetime(1899, 12, 30)).total_seconds()
