"""Where a step's episodes come from: played for it while everything else waits, or taken from what runs on all the time.

``Synchronous`` is the first; ``overlap.Overlapped`` (docs/overlap.md) the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from frontier_tune.contracts import EpisodeSpec
from frontier_tune.orchestration.actors import Handle
from frontier_tune.orchestration.batch import Batch, collect
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan


class Source(Protocol):
    """What the loop asks for, in this order: ``workflow``, ``more`` as often as dynamic sampling wants, ``rehearsal``, ``learned``."""

    def workflow(self, step: int) -> Batch:
        """The groups of the workflow that step ``step`` (counted from 0) learns from."""
        ...

    def more(self, specs: Sequence[EpisodeSpec]) -> Batch:
        """Episodes outside of the plan, played now."""
        ...

    def rehearsal(self, step: int) -> list[Batch]:
        """General tasks besides, if the recipe asks for them: groups that all succeed teach nothing, lost skills come back."""
        ...

    def learned(self, state: LoopState) -> dict[str, Any]:
        """The step has learned from all it was given, ``state.version`` is the sampler's policy. Returns what to log of it."""
        ...


@dataclass(frozen=True)
class Synchronous:
    """Each step's groups are played when the step begins, by the policy that it then updates."""

    episodes: Handle
    plan: GroupPlan
    general: GroupPlan | None
    every: Callable[[], None]

    def workflow(self, step: int) -> Batch:
        return self.more(self.plan.step(step))

    def more(self, specs: Sequence[EpisodeSpec]) -> Batch:
        return collect(self.episodes, specs, self.every)

    def rehearsal(self, step: int) -> list[Batch]:
        return [collect(self.episodes, self.general.step(step), self.every, "general")] if self.general else []

    def learned(self, state: LoopState) -> dict[str, Any]:
        return {}
