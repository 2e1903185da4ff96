"""Which group is issued when, and which ones a step may learn from: bounds on staleness, and on what is under way.

A group is issued under policy version ``v`` and may be learned from while the policy is at most ``v + staleness``: that is its
deadline. A step takes ``G`` finished groups and makes at most one new version. Two rules keep every group within its deadline:

- never more than ``(staleness + 1) * G`` groups are issued and not trained;
- a step is ready only when, for each deadline d, those that it leaves behind with a deadline up to d fit into the steps up to d
  (earliest deadline first; with a step as the unit of time that is optimal, Jackson 1955).

So a long group is overtaken as long as there is slack, and waited for when there is none. With ``drop`` it is not waited for:
what passes its deadline is given up and issued anew, and only from the third time on waited for (and taken before others, where
by its deadline alone it would come too late). Staleness 0 leaves a single choice, that of the synchronous loop: a step's own
groups, all of them, issued after the update before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import Recipe

if TYPE_CHECKING:
    from frontier_tune.algorithms.base import Algorithm
    from frontier_tune.episodes.stream import Played

TRIES = 2  # times that a group is dropped before it is waited for


@dataclass(eq=False)
class Ticket:
    """One group under way. ``position``: its place in the plan; ``oldest``: the version of its oldest token, at least."""

    position: int
    oldest: int
    attempt: int = 0
    played: Played | None = None

    def deadline(self, staleness: int) -> int:
        return self.oldest + staleness


class Window:
    """The groups of one plan that are issued and not trained. ``trained`` ones are exactly ``steps * groups_per_step``.

    ``low`` and ``ahead`` say which: all positions below ``low``, and those in ``ahead``.
    """

    def __init__(
        self, groups_per_step: int, staleness: int, steps: int, done: int = 0, ahead: Iterable[int] = (), drop: bool = False
    ) -> None:
        """``steps`` of the run, ``done`` of them behind us; ``ahead``: as it was then. Raises ValueError where that can't be."""
        self.groups_per_step, self.staleness, self.drop = groups_per_step, staleness, drop
        self.total = steps * groups_per_step
        self.ahead = set(ahead)
        self.low = done * groups_per_step - len(self.ahead)
        if self.low < 0 or any(p <= self.low for p in self.ahead):
            raise ValueError(f"{sorted(self.ahead)} can't be trained ahead of {done} steps of {groups_per_step} groups")
        self.open: dict[int, Ticket] = {}
        self.training: list[Ticket] = []
        self._next = self._untrained()

    def _untrained(self) -> Iterator[int]:
        """Positions that were never issued in this window, in plan order."""
        ahead = frozenset(self.ahead)
        return (p for p in range(self.low, self.total) if p not in ahead)

    @property
    def room(self) -> int:
        """Groups that may be issued now."""
        return (self.staleness + 1) * self.groups_per_step - len(self.open) - len(self.training)

    @property
    def queued(self) -> int:
        """Finished groups that no step has taken yet."""
        return sum(t.played is not None for t in self.open.values())

    def issue(self, version: int) -> list[Ticket]:
        """The next groups of the plan, as many as there is room for, under policy ``version``."""
        new = [Ticket(position, version) for position in islice(self._next, self.room)]
        self.open |= {t.position: t for t in new}
        return new

    def finish(self, position: int, attempt: int, played: Played) -> Ticket | None:
        """A group was played; None where that attempt was given up meanwhile."""
        ticket = self.open.get(position)
        if ticket is None or ticket.attempt != attempt:
            return None
        if ticket.played is not None:
            raise RuntimeError(f"group {position} of the plan was finished twice")
        versions = [v for t in played.trajectories for v, m in zip(t.versions, t.mask, strict=True) if m]
        ticket.played, ticket.oldest = played, min(versions, default=ticket.oldest)
        return ticket

    def _order(self, ticket: Ticket) -> tuple[int, int]:
        return ticket.oldest, ticket.position

    def _awaited_first(self, ticket: Ticket) -> tuple[bool, int, int]:
        return not self._awaited(ticket), *self._order(ticket)

    def _awaited(self, ticket: Ticket) -> bool:
        """Whether a step waits for it when its deadline has come."""
        return not self.drop or ticket.attempt >= TRIES

    def ready(self, version: int) -> bool:
        """Whether a step at policy ``version`` may take its groups now."""
        return self._choice(version) is not None

    def _choice(self, version: int) -> list[Ticket] | None:
        """The groups of a step at ``version``: the earliest deadlines of what is finished. None where it has to wait.

        Those that no step waits for may stand before one whose last chance this is; then it, and its like, go before them.
        """
        finished = [t for t in self.open.values() if t.played is not None]
        if len(finished) < self.groups_per_step:
            return None
        for order in (self._order, self._awaited_first):
            chosen = sorted(finished, key=order)[: self.groups_per_step]
            if self._fits_behind(chosen, version):
                return chosen
        return None

    def _fits_behind(self, chosen: Iterable[Ticket], version: int) -> bool:
        """Whether what a step at ``version`` leaves behind, if it takes ``chosen``, fits into the steps before its deadlines."""
        taken = {t.position for t in chosen}
        behind = [t for t in self.open.values() if t.position not in taken and self._awaited(t)]
        left = sorted(t.deadline(self.staleness) for t in behind)
        return all(n <= (deadline - version) * self.groups_per_step for n, deadline in enumerate(left, 1))

    def take(self, version: int) -> list[Ticket]:
        """The step's groups, in plan order. Raises RuntimeError where it isn't ready."""
        chosen = None if self.training else self._choice(version)
        if chosen is None:
            raise RuntimeError(f"no step can be taken at version {version}: {self.queued} groups finished")
        self.training = sorted(chosen, key=lambda t: t.position)
        for ticket in self.training:
            del self.open[ticket.position]
        return self.training

    def trained(self, version: int) -> list[Ticket]:
        """The step that took groups is over, the policy is ``version``. Returns the groups that are overdue now and issued anew.

        Their ``attempt`` is one more than before, ``played`` is what they leave behind, if they had finished; the new ticket
        stands in ``open``.
        """
        self.ahead |= {t.position for t in self.training}
        self.training = []
        while self.low in self.ahead:
            self.ahead.remove(self.low)
            self.low += 1
        overdue = [t for t in self.open.values() if t.deadline(self.staleness) < version]
        if any(map(self._awaited, overdue)):
            raise RuntimeError(f"groups {[t.position for t in overdue]} of the plan are overdue at version {version}")
        for ticket in overdue:
            self.open[ticket.position] = Ticket(ticket.position, version, ticket.attempt + 1)
        return overdue


def check(recipe: Recipe, algorithm: Algorithm) -> None:
    """Raises BadInput for settings that don't go with ``run.staleness``, or that would have no effect."""
    bound, overlap = recipe.run.staleness, recipe.overlap
    if bound == 0:
        for key in ("overdue", "on_update"):
            if getattr(overlap, key) != getattr(type(overlap)(), key):
                raise BadInput(f"overlap.{key}: it has no effect at run.staleness 0; raise that, or take '{key}' out")
        return
    if overlap.stream:
        raise BadInput(
            f"overlap.stream: it has no effect at run.staleness {bound}, where groups are a stream anyway; take it out"
        )
    if recipe.run.deterministic:
        raise BadInput("run.deterministic: what overlaps depends on which was quicker; set run.staleness to 0, or take it out")
    if algorithm.on_policy:
        raise BadInput(
            f"run.staleness: {recipe.algorithm.name} learns from what the policy of now has done, not from older data: set "
            "run.staleness to 0, or take an algorithm without a critic"
        )
    if recipe.algorithm.replay == "sampler" and overlap.on_update == "continue":
        raise BadInput(
            "algorithm.replay: an episode that goes on under a new policy computes its earlier tokens again, by other routes "
            "than those that are known of them; set overlap.on_update to restart, or algorithm.replay to learner"
        )
    if algorithm.proximal != "learner" or algorithm.correction == "none":
        raise BadInput(
            f"run.staleness: tokens up to {bound} updates old need the decoupled loss with importance weights; set "
            "algorithm.proximal to learner and algorithm.correction to truncate (or mask, full), or run.staleness to 0"
        )


def share_threads(recipe: Recipe, cores: int | None = None) -> Recipe:
    """The recipe with threads for sampler and learner side by side: no more than there are cores (default: this machine's).

    Without overlap one of them waits while the other works, and each may have all.
    """
    cores = cores or len(os.sched_getaffinity(0))
    sampler, learner = recipe.sampler.threads, recipe.learner.threads
    if recipe.run.staleness == 0 or sampler + learner <= cores:
        return recipe
    learner = max(1, cores * learner // (sampler + learner))
    sampler = max(1, min(sampler, cores - learner))
    return recipe.model_copy(
        update={
            "sampler": recipe.sampler.model_copy(update={"threads": sampler}),
            "learner": recipe.learner.model_copy(update={"threads": learner}),
        }
    )
