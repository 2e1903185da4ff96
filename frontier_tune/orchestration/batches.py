"""Where a step's episodes come from: played for it while everything else waits, or taken from what runs on all the time.

``Synchronous`` is the first; ``overlap.Overlapped`` (docs/overlap.md) the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from frontier_tune.contracts import EpisodeSpec, Trajectory
from frontier_tune.orchestration.batch import Batch, collect
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.ledger import Ledger
from frontier_tune.orchestration.players import Playing
from frontier_tune.orchestration.retry import ONCE_MORE, Retry


class Source(Protocol):
    """What the loop asks for, in this order; ``more`` as often as dynamic sampling wants."""

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

    episodes: Playing
    plan: GroupPlan
    general: GroupPlan | None
    every: Callable[[], None]
    ledger: Ledger
    retry: Retry = ONCE_MORE

    def workflow(self, step: int) -> Batch:
        return self._play(self.plan.step(step))

    def more(self, specs: Sequence[EpisodeSpec]) -> Batch:
        return self._play(specs, "dynamic")

    def rehearsal(self, step: int) -> list[Batch]:
        return [self._play(self.general.step(step), "rehearsal", "general")] if self.general else []

    def _play(self, specs: Sequence[EpisodeSpec], kind: str = "workflow", where: str = "workflow") -> Batch:
        before = self.ledger.mark

        def lost(again: Sequence[Trajectory], attempt: int) -> None:
            if self.retry.whole and len(again) == len(specs):  # all of it once more, as if it hadn't been played
                self.ledger.cut(before)
                attempt = 0
            self.ledger.issue([t.spec for t in again], kind, attempt)

        self.ledger.issue(specs, kind)
        batch = collect(self.episodes, specs, self.every, where, self.retry, lost)
        self.ledger.finish(batch.trajectories, batch.tries)
        return batch

    def learned(self, state: LoopState) -> dict[str, Any]:
        return {}


def numbered(batches: Sequence[Batch]) -> list[list[Trajectory]]:
    """The trajectories as the learner takes them: it tells groups apart by their number alone.

    Groups of different steps of the plan may have the same; then all are numbered anew, in their order.
    """
    found = [b.trajectories for b in batches]
    groups = dict.fromkeys((t.spec.step, t.spec.group) for trajectories in found for t in trajectories)
    if len({number for _, number in groups}) == len(groups):
        return found
    new = {name: n for n, name in enumerate(groups)}
    return [[replace(t, spec=replace(t.spec, group=new[t.spec.step, t.spec.group])) for t in ts] for ts in found]
