"""The window of groups under way: whatever order they finish in, each is trained once and none beyond its bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune import recipe as recipes
from frontier_tune.algorithms import registry
from frontier_tune.contracts import BadInput, EpisodeSpec, Task, Trajectory
from frontier_tune.episodes.stream import Played
from frontier_tune.orchestration.overlap import TRIES, Ticket, Window, check, share_threads

SPEC = EpisodeSpec(Task("k", "train", {}), 0, 0, 0)


def played(version: int) -> Played:
    return Played("", [Trajectory(SPEC, tokens=[1, 2], mask=[False, True], logprobs=[0.0, -1.0], versions=[-1, version])])


class Run:
    """A run on a window: groups finish in the order of ``draw``, and steps are taken as soon as they are ready."""

    def __init__(self, window: Window, draw: Any) -> None:
        self.window, self.draw, self.version = window, draw, 1
        self.trained: list[int] = []
        self.ages: list[int] = []
        self.most = self.dropped = 0

    def go(self, until: int | None = None) -> Run:
        """Until so many groups are trained, all of them by default."""
        w = self.window
        w.issue(self.version)
        while len(self.trained) < (until or w.total):
            self.most = max(self.most, len(w.open) + len(w.training))
            running = [t for t in w.open.values() if t.played is None]
            if not w.ready(self.version) or (running and self.draw(st.booleans())):
                assert running, "nothing runs and no step is ready: a run that hangs"
                ticket = self.draw(st.sampled_from(running[-2:] if w.drop else running))  # the newest first: old ones are dropped
                began = self.draw(st.integers(ticket.oldest, self.version))  # its first token may be younger than its issue
                assert w.finish(ticket.position, ticket.attempt, played(began)) is ticket
                continue
            taken = w.take(self.version)
            self.ages += [self.version - t.oldest for t in taken]
            self.trained += [t.position for t in taken]
            assert [t.position for t in taken] == sorted(t.position for t in taken)
            self.version += self.draw(st.booleans())  # no update where rewards taught nothing
            for old in w.trained(self.version):
                self.dropped += 1
                assert w.finish(old.position, old.attempt, played(1)) is None, "a result of a try that was given up counts"
            w.issue(self.version)
        return self


@given(st.data(), st.integers(1, 4), st.integers(0, 4), st.integers(1, 6), st.booleans())
def test_any_order_keeps_the_bound_and_trains_each_group_once(data: Any, groups: int, bound: int, steps: int, drop: bool) -> None:
    run = Run(Window(groups, bound, steps, drop=drop), data.draw).go()
    assert sorted(run.trained) == list(range(groups * steps))
    assert max(run.ages) <= bound
    assert run.most <= (bound + 1) * groups
    assert drop or not run.dropped
    if bound == 0:
        assert run.trained == list(range(groups * steps)), "staleness 0 is the synchronous order"
    assert run.window.low == run.window.total and not run.window.ahead and not run.window.open


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5))
def test_a_run_goes_on_where_another_stopped(data: Any, groups: int, bound: int, steps: int) -> None:
    """Stopped after any step, the groups that were not trained, and those alone, are issued again."""
    cut = data.draw(st.integers(1, steps - 1))
    first = Run(Window(groups, bound, steps), data.draw).go(cut * groups)
    second = Run(Window(groups, bound, steps, cut, first.window.ahead), data.draw)
    second.trained = list(first.trained)
    assert sorted(second.go().trained) == list(range(groups * steps))


def test_a_long_group_is_overtaken_until_its_deadline_and_then_waited_for() -> None:
    w = Window(groups_per_step=2, staleness=1, steps=5)
    assert [t.position for t in w.issue(1)] == [0, 1, 2, 3]
    for position in (1, 2, 3):
        w.finish(position, 0, played(1))
    assert [t.position for t in w.take(1)] == [1, 2]  # group 0 is long
    w.trained(2)
    assert [t.position for t in w.issue(2)] == [4, 5]
    for position in (4, 5):
        w.finish(position, 0, played(2))
    assert not w.ready(2), "three groups are finished, but group 0 can't be learned from at version 3"
    w.finish(0, 0, played(1))
    assert [t.position for t in w.take(2)] == [0, 3]


def test_drop_plays_an_overdue_group_again_and_waits_for_it_the_third_time() -> None:
    w = Window(groups_per_step=1, staleness=1, steps=20, drop=True)
    w.issue(1)
    version, attempts = 1, []
    while version < 20 and w.ready(version) | any(t.position and t.played is None for t in w.open.values()):
        for t in [t for t in w.open.values() if t.position and t.played is None]:
            w.finish(t.position, t.attempt, played(version))
        if not w.ready(version):
            break
        w.take(version)
        version += 1
        for old in w.trained(version):
            attempts.append(old.attempt)
            assert w.finish(old.position, old.attempt, played(1)) is None, "a result of a try that was given up counts"
        w.issue(version)
    assert attempts == list(range(TRIES)) and w.open[0].attempt == TRIES
    assert not w.ready(version), "the last try is waited for"
    w.finish(0, TRIES, played(version))
    assert w.ready(version)


def test_groups_that_nobody_waits_for_do_not_take_the_last_place_of_one_that_is_waited_for() -> None:
    """Position 10 has the earliest deadline, but 2 and 3 are at their last try, and only this step and the next are left."""
    w = Window(groups_per_step=1, staleness=3, steps=20, drop=True)
    under_way = (Ticket(2, 9, TRIES), Ticket(3, 9, TRIES), Ticket(10, 8), Ticket(13, 11))
    w.open = {t.position: t for t in under_way}
    w.finish(10, 0, played(8))
    assert not w.ready(11), "taking 10 would leave two that are waited for to a single step"
    for ticket in under_way:
        if ticket.played is None:
            w.finish(ticket.position, ticket.attempt, played(ticket.oldest))
    assert [t.position for t in w.take(11)] == [2]
    assert [t.position for t in w.trained(12)] == [10]
    assert [t.position for t in w.take(12)] == [3]


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="ahead of 1 steps"):
        Window(2, 1, 5, done=1, ahead=[0])
    w = Window(1, 0, 2)
    w.issue(1)
    with pytest.raises(RuntimeError, match="no step"):
        w.take(1)
    w.finish(0, 0, played(1))
    with pytest.raises(RuntimeError, match="twice"):
        w.finish(0, 0, played(1))


GOOD = {"proximal": "learner", "correction": "truncate"}


def checked(algorithm: dict[str, Any], **run: Any) -> None:
    overlap = run.pop("overlap", {})
    recipe = recipes.parse({"run": {"staleness": 2} | run, "algorithm": algorithm, "overlap": overlap})
    check(recipe, registry.build(recipe))


def test_algorithms_that_correct_for_older_data_are_let_through() -> None:
    for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"):
        checked({"name": name} | GOOD)
    checked({"name": "grpo"}, staleness=0)
    checked(GOOD | {"replay": "sampler"}, overlap={"on_update": "restart"})
    checked({"name": "ppo"}, staleness=0)


@pytest.mark.parametrize(
    ("algorithm", "settings", "words"),
    [
        ({"name": "grpo"}, {}, "set algorithm.proximal to learner and algorithm.correction to truncate"),
        ({"name": "grpo", "proximal": "learner"}, {}, "importance weights"),
        ({"name": "ppo"} | GOOD, {}, "ppo learns from what the policy of now has done"),
        (GOOD, {"deterministic": True}, "run.deterministic"),
        ({}, {"staleness": 0, "overlap": {"overdue": "drop"}}, "overlap.overdue: it has no effect"),
        ({}, {"staleness": 0, "overlap": {"on_update": "restart"}}, "overlap.on_update: it has no effect"),
        (GOOD | {"replay": "sampler"}, {}, "set overlap.on_update to restart"),
        (GOOD, {"overlap": {"stream": True}}, "overlap.stream: it has no effect"),
    ],
)
def test_combinations_that_are_wrong_are_refused(algorithm: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        checked(algorithm, **settings)


@pytest.mark.parametrize(
    ("cores", "sampler", "learner", "shared"),
    [(2, 1, 2, (1, 1)), (2, 2, 2, (1, 1)), (8, 2, 2, (2, 2)), (8, 8, 8, (4, 4)), (1, 2, 2, (1, 1)), (4, 1, 8, (1, 3))],
)
def test_threads_are_shared_only_where_both_work(cores: int, sampler: int, learner: int, shared: tuple[int, int]) -> None:
    recipe = recipes.parse({"run": {"staleness": 1}, "sampler": {"threads": sampler}, "learner": {"threads": learner}})
    found = share_threads(recipe, cores)
    assert (found.sampler.threads, found.learner.threads) == shared
    alone = recipe.model_copy(update={"run": recipe.run.model_copy(update={"staleness": 0})})
    assert share_threads(alone, cores) == alone
