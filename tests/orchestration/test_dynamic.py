"""Dynamic sampling replaces groups whose rewards are all equal, deterministically, and stops when the step is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from frontier_tune.contracts import EpisodeSpec, Task
from frontier_tune.orchestration.batch import Batch
from frontier_tune.orchestration.dynamic import informative, top_up
from frontier_tune.orchestration.groups import GroupPlan
from tests.orchestration.test_batch import played

PLAN = GroupPlan([Task("k", "train", {"n": n}) for n in range(50)], seed=3, groups_per_step=4, group_size=3)


def player(differs: Callable[[EpisodeSpec], bool], seen: list[Sequence[EpisodeSpec]]) -> Callable[[Sequence[EpisodeSpec]], Batch]:
    def play(specs: Sequence[EpisodeSpec]) -> Batch:
        seen.append(specs)
        return Batch([played(s, float(s.member == 0 and differs(s))) for s in specs], 3)

    return play


def test_missing_groups_are_played_anew_until_the_step_is_full() -> None:
    seen: list[Sequence[EpisodeSpec]] = []
    play = player(lambda s: s.group in (1, 3) or s.group >= 11, seen)
    first = play(PLAN.step(5))
    more = top_up(first, PLAN, 5, rounds=3, first_group=6, play=play)
    # two are missing: 6, 7 teach nothing; then 10, 11, of which 11 does; then one is missing: 14, which does
    assert [[s.group for s in specs[::3]] for specs in seen[1:]] == [[6, 7], [10, 11], [14]]
    batch = informative([first, *more], 4)
    assert [t.spec.group for t in batch.trajectories[::3]] == [1, 3, 11, 14] and batch.groups_used == 1
    again: list[Sequence[EpisodeSpec]] = []
    top_up(first, PLAN, 5, 3, 6, player(lambda s: s.group in (1, 3) or s.group >= 11, again))
    assert again == seen[1:]
    assert len({s.seed for specs in seen for s in specs}) == sum(map(len, seen))


def test_a_full_step_and_zero_rounds_play_nothing_more() -> None:
    seen: list[Sequence[EpisodeSpec]] = []
    play = player(lambda s: True, seen)
    assert top_up(play(PLAN.step(0)), PLAN, 0, 3, 4, play) == []
    assert top_up(player(lambda s: False, seen)(PLAN.step(0)), PLAN, 0, 0, 4, play) == []
    assert len(seen) == 2


def test_where_nothing_differs_the_rounds_end_and_nothing_is_learned_from() -> None:
    seen: list[Sequence[EpisodeSpec]] = []
    play = player(lambda s: False, seen)
    first = play(PLAN.step(0))
    more = top_up(first, PLAN, 0, 2, 4, play)
    assert len(more) == 2 and informative([first, *more], 4).trajectories == []


def test_never_more_groups_than_the_recipe_asks_for() -> None:
    batch = Batch([played(s, float(s.member == 0)) for s in PLAN.step(0)], 3)
    assert len(informative([batch, batch], 4).trajectories) == 12
