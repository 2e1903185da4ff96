"""The plan of groups: which task each group of a step plays, and the seed of every episode.

Both are pure functions of the recipe's seed, so that a resumed run plays what the uninterrupted one would have played.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from frontier_tune.contracts import EpisodeSpec, Task


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed by hashing ``parts``: neighbours in any part are unrelated."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, tasks: int) -> tuple[int, ...]:
    """The shuffled order of an epoch's tasks."""
    order = list(range(tasks))
    random.Random(derive_seed("epoch", seed, epoch)).shuffle(order)
    return tuple(order)


@dataclass(frozen=True)
class GroupPlan:
    """Tasks in an order shuffled anew for each epoch: no task comes again before all were used.

    ``first_group`` is the number of a step's first group, where another plan holds those before it.
    """

    tasks: Sequence[Task]
    seed: int
    groups_per_step: int
    group_size: int
    temperature: float = 1.0
    first_group: int = 0

    def task_of(self, position: int) -> Task:
        """The task of the run's ``position``-th group, counted from 0 over all steps."""
        epoch, index = divmod(position, len(self.tasks))
        return self.tasks[_order(self.seed, epoch, len(self.tasks))[index]]

    def step(self, step: int) -> list[EpisodeSpec]:
        """Episodes of one step, group by group. [groups_per_step * group_size]"""
        return [
            EpisodeSpec(
                task=self.task_of(step * self.groups_per_step + group),
                group=self.first_group + group,
                member=member,
                seed=derive_seed("episode", self.seed, step, group, member),
                temperature=self.temperature,
                step=step,
            )
            for group in range(self.groups_per_step)
            for member in range(self.group_size)
        ]
