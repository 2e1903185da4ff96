"""The plan of groups: a pure function of the seed that uses every task before any comes again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.contracts import Task
from frontier_tune.orchestration.groups import GroupPlan, derive_seed


def tasks(n: int) -> list[Task]:
    return [Task("k", "train", {"n": i}) for i in range(n)]


def plan(n: int = 7, seed: int = 0, groups: int = 3, size: int = 2) -> GroupPlan:
    return GroupPlan(tasks(n), seed, groups, size)


@given(n=st.integers(1, 20), groups=st.integers(1, 6), seed=st.integers(0, 1000))
def test_no_task_repeats_before_all_were_used(n: int, groups: int, seed: int) -> None:
    p = plan(n, seed, groups)
    order = [p.task_of(i).data["n"] for i in range(3 * n)]
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_step_is_the_same_whether_or_not_the_steps_before_were_planned() -> None:
    uninterrupted = [plan().step(s) for s in range(6)]
    assert plan().step(4) == uninterrupted[4]
    assert plan(seed=1).step(4) != uninterrupted[4]


def test_members_share_the_task_and_differ_in_seed() -> None:
    specs = plan().step(2)
    assert [(s.group, s.member) for s in specs] == [(g, m) for g in range(3) for m in range(2)]
    assert all(len({s.task.hash for s in specs if s.group == g}) == 1 for g in range(3))
    seeds = [s.seed for step in range(50) for s in plan().step(step)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)


def test_seeds_are_hashes_and_do_not_change() -> None:
    assert derive_seed("episode", 0, 1, 2, 3) == derive_seed("episode", 0, 1, 2, 3) != derive_seed("episode", 0, 1, 2, 4)
    assert derive_seed("a", 12) != derive_seed("a1", 2)
