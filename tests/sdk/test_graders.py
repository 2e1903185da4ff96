"""Graders at their edges."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.sdk.graders import (
    changes_made,
    leaked,
    locked_digest,
    numeric_close,
    only_changed,
    share_equal,
    state_diff,
    text_equal,
)

numbers = st.floats(-1e9, 1e9)
states = st.dictionaries(st.sampled_from("abcdef"), st.none() | st.booleans() | st.integers() | st.text(max_size=3))


@given(numbers, numbers, st.floats(0, 1e6))
def test_numeric_close_agrees_with_exact_arithmetic(actual: float, expected: float, absolute: float) -> None:
    gap = abs(Decimal(actual) - Decimal(expected)) - Decimal(absolute)
    slack = Decimal(8 * math.ulp(max(abs(actual), abs(expected), 1.0)))
    if gap <= 0:
        assert numeric_close(actual, expected, absolute=absolute)
    elif gap > slack:
        assert not numeric_close(actual, expected, absolute=absolute)


def test_only_numbers_are_close() -> None:
    assert numeric_close(0.3, 0.2, absolute=0.1) and numeric_close(101, 100, relative=0.01)
    assert not any(numeric_close(v, 1.0, absolute=1e9) for v in (True, "1", None, math.nan, math.inf, [1]))


def test_text_equal() -> None:
    assert text_equal(" Net\u00a0 REVENUE ", "net revenue")
    assert not text_equal("Net revenue", "net revenue", ignore_case=False)
    assert not text_equal("net  revenue", "net revenue", ignore_spaces=False)
    assert not text_equal(None, "None")


@given(states, states)
def test_diff_says_what_leads_from_one_state_to_the_other(before: dict, after: dict) -> None:  # type: ignore[type-arg]
    diff = state_diff(before, after)
    rebuilt = {k: v for k, v in before.items() if k not in diff.removed}
    rebuilt |= {k: after[k] for k in (*diff.added, *diff.changed)}
    assert rebuilt == after
    assert only_changed(before, after, diff.touched)
    assert only_changed(before, after, ()) == (not diff.touched)
    assert (locked_digest(before, diff.touched) == locked_digest(after, diff.touched)) is True


def test_types_count_and_empty_expectations_are_refused() -> None:
    assert state_diff({"a": 1}, {"a": True}).changed == ("a",)
    assert locked_digest({"a": 1}) != locked_digest({"a": "1"})
    assert share_equal({"a": 1, "b": 3}, {"a": 1, "b": 2}) == 0.5
    assert share_equal({"a": 1.001}, {"a": 1.0}, lambda x, y: numeric_close(x, y, absolute=0.01)) == 1.0
    with pytest.raises(ValueError, match="nothing is expected"):
        share_equal({}, {})


def test_changes_made_counts_what_is_gone_too() -> None:
    after = {"a": 1, "b": "x"}
    assert changes_made(after, {"a": 1, "b": "y"}) == 0.5
    assert changes_made(after, {"c": None, "b": None, "a": 1}) == pytest.approx(2 / 3)
    assert changes_made(after, {"c": None}) == 1.0 and changes_made(after, {"a": None}) == 0.0
    with pytest.raises(ValueError, match="nothing is expected"):
        changes_made(after, {})


def test_leaks_are_found_however_they_are_spelled() -> None:
    texts = ["the limit is z-q 1 2 3 4", "nothing here"]
    assert leaked(texts, ["ZQ1234", "ZQ9999"]) == {"ZQ1234"}
    assert leaked(["\uff3aQ1234"], ["ZQ1234"]) == {"ZQ1234"} and leaked([], ["ZQ1234"]) == set()
    with pytest.raises(ValueError, match="too short"):
        leaked(texts, ["12"])
