"""Cells compared by what they show."""

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.sdk.graders import CellError, CellKind, Tolerance, cell_equal, cell_kind, range_differences

moments = st.datetimes(dt.datetime(1900, 3, 1), dt.datetime(2100, 1, 1))
cells: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    moments,
    st.times(),
    st.timedeltas(dt.timedelta(0), dt.timedelta(days=9)),
    st.sampled_from(["#N/A", "#REF!"]).map(CellError),
)


@given(cells, cells)
def test_equality_is_reflexive_and_keeps_kinds_apart(a: Any, b: Any) -> None:
    assert cell_equal(a, a)
    if cell_kind(a) is not cell_kind(b):
        assert not cell_equal(a, b)
    assert list(range_differences({1: a}, {1: a, 2: None}, [1, 2])) == []
    assert bool(list(range_differences({1: b}, {1: a}, [1]))) != cell_equal(b, a)


@given(st.floats(-1e12, 1e12))
def test_engines_arithmetic_is_forgiven_and_no_more(x: float) -> None:
    assert cell_equal(x * (1 + 1e-12), x)
    assert not cell_equal(x + max(abs(x), 1.0) * 1e-8, x)


@given(moments, st.integers(-3, 3))
def test_dates_to_the_second(moment: dt.datetime, seconds: int) -> None:
    assert cell_equal(moment + dt.timedelta(seconds=seconds), moment) == (seconds == 0)
    assert cell_equal(moment + dt.timedelta(milliseconds=400), moment)
    assert cell_equal(moment + dt.timedelta(hours=5), moment, Tolerance(seconds=86_400))


def test_kinds() -> None:
    told = [
        None,
        "",
        True,
        1,
        1.5,
        "1",
        dt.datetime(2024, 1, 1),
        dt.date(2024, 1, 1),
        dt.time(1),
        dt.timedelta(1),
        CellError("#N/A"),
    ]
    assert [cell_kind(v).value for v in told] == ("blank blank boolean number number text date date time duration error".split())
    assert cell_equal("", None) and not cell_equal(0, None) and not cell_equal(" ", None)
    assert not cell_equal(CellError("#N/A"), CellError("#REF!")) and not cell_equal("#N/A", CellError("#N/A"))
    assert not cell_equal(math.nan, math.nan) and not cell_equal(math.inf, math.inf)
    assert cell_equal(10**400, 10**400) and not cell_equal(1, 10**400)
    assert cell_kind("x") is CellKind.TEXT
    with pytest.raises(TypeError, match="list"):
        cell_kind([1])
