"""Tries by blame, the wait between them, and the whole batch as the unit of replay."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Blame, Failure
from frontier_tune.orchestration import retry
from frontier_tune.orchestration.retry import Retry
from frontier_tune.orchestration.stop import Stopped
from tests.orchestration.test_batch import SPECS, played

OF = Retry.of(recipes.parse({}))


@pytest.mark.parametrize(
    ("blame", "tries"), [(Blame.INFRASTRUCTURE, 3), (Blame.ENVIRONMENT, 2), (Blame.AGENT, 1)], ids=lambda x: str(x)
)
def test_each_blame_has_its_own_number_of_tries(blame: Blame, tries: int) -> None:
    found = [played(s, failure=Failure("x", blame) if s.seed == 11 else None) for s in SPECS]
    again = [OF.again(found, attempt) for attempt in range(1, 5)]
    assert [len(specs) for specs in again] == [1] * (tries - 1) + [0] * (5 - tries)
    assert all(s == SPECS[4] for specs in again for s in specs)


def test_a_deterministic_run_replays_the_batch_where_the_infrastructure_failed_and_only_there() -> None:
    whole = Retry.of(recipes.parse({"run": {"deterministic": True}}))
    killed = [played(s, failure=Failure("x", Blame.INFRASTRUCTURE) if s.seed == 11 else None) for s in SPECS]
    assert whole.again(killed, 1) == SPECS and whole.again(killed, 3) == []
    broken = [played(s, failure=Failure("x", Blame.ENVIRONMENT) if s.seed == 11 else None) for s in SPECS]
    assert whole.again(broken, 1) == [SPECS[4]]


@given(first=st.floats(0.01, 100), most=st.floats(0.01, 1e4))
def test_waits_double_from_the_second_failure_and_are_capped(first: float, most: float) -> None:
    waits = [retry.backoff(n, first, most) for n in range(80)]
    assert waits[:2] == [0.0, 0.0] and waits[2] == min(first, most)
    assert all(b == min(most, 2 * a) for a, b in pairwise(waits[2:]))


def test_a_wait_can_be_stopped() -> None:
    def stop() -> None:
        raise Stopped(2)

    with pytest.raises(Stopped):
        retry.wait(3600.0, stop)
