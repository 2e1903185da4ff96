"""Dynamic sampling (DAPO, arXiv:2503.14476, eq. 11): groups whose rewards are all equal are replaced by newly played ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from frontier_tune.contracts import EpisodeSpec
from frontier_tune.orchestration.batch import Batch
from frontier_tune.orchestration.groups import GroupPlan, derive_seed


def top_up(
    first: Batch,
    plan: GroupPlan,
    step: int,
    rounds: int,
    first_group: int,
    play: Callable[[Sequence[EpisodeSpec]], Batch],
    go_on: Callable[[], bool] = lambda: True,
) -> list[Batch]:
    """Up to ``rounds`` batches more, each of as many groups as are still missing; none where every group's rewards differ.

    Their tasks and seeds follow from the plan's seed, the step and how many were missing, so a resumed run plays the same. Their
    groups are numbered from ``first_group``. ``go_on`` is asked before each round that is due; False ends the rounds.
    """
    more: list[Batch] = []
    for number in range(rounds):
        missing = plan.groups_per_step - sum(b.informative for b in [first, *more])
        if missing <= 0 or not go_on():
            break
        seed = derive_seed("dynamic", plan.seed, number)
        extra = replace(plan, seed=seed, groups_per_step=missing, first_group=first_group + number * plan.groups_per_step)
        more.append(play(extra.step(step)))
    return more


def informative(batches: Sequence[Batch], groups: int) -> Batch:
    """The first ``groups`` groups whose rewards differ, as one batch to learn from; fewer where there are fewer."""
    size = batches[0].group_size
    kept = [g for b in batches for g in b.informative_groups][:groups]
    return Batch([t for g in kept for t in g], size)
