"""Updates that are not finite: skipped and counted; after three in a row the learner goes back, and in the end it stops.

A finite gradient can still lead to parameters from which nothing finite follows, so that skipping alone would never end. What is
kept is therefore the last state *whose own gradient was finite*: the one before the last update that was applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from frontier_tune.contracts import FrontierTuneError

LIMIT = 3  # updates in a row
_COUNTS = ("bad_updates", "bad_in_a_row", "rollbacks")


class TrainingDiverged(FrontierTuneError):
    """Loss or gradient was not finite in several updates in a row, and going back did not help or was not allowed.

    Raised in the middle of a step, so nothing is saved then: the last checkpoint stands.
    """

    exit_code = 4


class Unmeasurable(Exception):
    """A measurement before an update is not finite: the step can't be taken."""


class Guard:
    """Counts, and keeps one earlier state of parameters and optimizers (12 bytes a parameter with AdamW).

    Where no rollback is allowed none is kept: there each parameter's step is tried on a copy of it alone before any is taken.

    Attributes:
        bad_updates, bad_in_a_row: dropped updates in all, and since the last that was applied or undone.
        rollbacks: how often the learner went back.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], allowed: int) -> None:
        self.optimizers, self.allowed = list(optimizers), allowed
        self.bad_updates = self.bad_in_a_row = self.rollbacks = 0
        self._live: list[Tensor] = []  # parameters and moments; _kept are copies of them
        self._kept: list[Tensor] = []
        self._started: set[Tensor] = set()  # parameters that have moments

    @property
    def parameters(self) -> list[Tensor]:
        return [p for o in self.optimizers for group in o.param_groups for p in group["params"]]

    @torch.no_grad()
    def apply(self) -> bool:
        """Take the optimizers' steps, from a state whose gradient is finite. False where not: it led, or would lead, to none."""
        if self.allowed:
            self._keep()
        elif self._would_break():
            return False
        for optimizer in self.optimizers:
            optimizer.step()
        if self.allowed and not bool(torch.stack(torch._foreach_norm(self.parameters, math.inf)).isfinite().all()):
            self._restore()
            return False
        self.bad_in_a_row = 0
        return True

    def _would_break(self) -> bool:
        """Whether the steps would leave a parameter that is not finite. What is held twice is one parameter and its moments."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    trial = p.detach().clone()
                    trial.grad = p.grad
                    alone = type(optimizer)([{**group, "params": [trial]}], lr=group["lr"])
                    if p in optimizer.state:
                        alone.state[trial] = {key: t.clone() for key, t in optimizer.state[p].items()}
                    alone.step()
                    if not bool(trial.isfinite().all()):
                        return True
        return False

    def _keep(self) -> None:
        if not self._kept or sum(len(o.state) for o in self.optimizers) != len(self._started):
            moments = [t for o in self.optimizers for state in o.state.values() for t in state.values() if isinstance(t, Tensor)]
            self._live = [*self.parameters, *moments]
            self._kept = [torch.empty_like(t) for t in self._live]
            self._started = {p for o in self.optimizers for p in o.state}
        torch._foreach_copy_(self._kept, self._live)

    def _restore(self) -> None:
        torch._foreach_copy_(self._live, self._kept)
        for optimizer in self.optimizers:
            for p in [p for p in optimizer.state if p not in self._started]:  # what is undone was its first update
                del optimizer.state[p]

    @torch.no_grad()
    def failed(self, what: str) -> None:
        """Count a dropped update; after LIMIT in a row go back, or raise TrainingDiverged."""
        self.bad_updates += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row < LIMIT:
            return
        if self._kept:
            self._restore()
            if self.rollbacks < self.allowed:
                self.rollbacks += 1
                self.bad_in_a_row = 0
                return
        raise TrainingDiverged(
            f"{what}, {self.bad_in_a_row} updates in a row, after going back {self.rollbacks} times (learner.rollbacks allows "
            f"{self.allowed}). The last checkpoint stands; resume it with a lower learner.learning_rate or learner.max_grad_norm"
        )

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in _COUNTS}

    def set_counts(self, counts: dict[str, int]) -> None:
        """Of a saved state; what one of an earlier version lacks is 0."""
        for name in _COUNTS:
            setattr(self, name, counts.get(name, 0))
        self._kept = []
