"""Forwards of the policy over samples: in micro-batches, on the routes that the recipe replays, shared out between learners."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from frontier_tune.learning import attention
from frontier_tune.learning.batch import Batch, Sample, collate
from frontier_tune.learning.credit import Measured
from frontier_tune.learning.critic import Critic
from frontier_tune.learning.guard import Unmeasurable
from frontier_tune.learning.model import Policy
from frontier_tune.learning.packing import plan
from frontier_tune.learning.parallel import World
from frontier_tune.learning.replay import Replayer


class Passes:
    """What the learner does with its policy. ``seconds`` of each phase add up until somebody sets them back."""

    def __init__(
        self,
        policy: Policy,
        critic: Critic | None,
        replayer: Replayer | None,
        world: World | None,
        rows: int,
        device: torch.device,
    ) -> None:
        self.policy, self.critic, self.replayer, self.world = policy, critic, replayer, world
        self.rows, self.device = rows, device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def check(self, members: Sequence[Sample]) -> None:
        """Raise ValueError where routes that are to be replayed are missing or not those of their sequence."""
        if self.replayer is not None:
            self.replayer.check(members)

    def keys(self, members: Sequence[Sample]) -> list[list[int]]:
        """By what the members' prefixes are the same."""
        return [s.tokens for s in members] if self.replayer is None else self.replayer.keys(members)

    def groups(self, members: Sequence[Sample]) -> list[int] | None:
        """Who may share prefixes with whom; None where nobody does."""
        return [s.group for s in members] if attention.shares_prefixes(self.device) else None

    def batch(self, members: Sequence[Sample], keys: Sequence[Sequence[int]] | None = None) -> Batch:
        """All members as one pack."""
        forced = [] if self.replayer is None else [self.replayer.forced(s) for s in members]
        keys = self.keys(members) if keys is None else keys
        return collate(members, self.device, attention.shares_prefixes(self.device), keys, forced)

    def share(self, members: Sequence[Sample]) -> list[int]:
        """Which of the members this learner computes: all, where it is the only one."""
        if self.world is None:
            return list(range(len(members)))
        return self.world.share(self.keys(members), self.groups(members))

    def rounds(self, members: Sequence[Sample], least: int = 0) -> Iterator[tuple[list[int], Batch]]:
        """Micro-batches of this learner's share: which of the members each holds, and their pack; ``least`` so many.

        Where the base is split over learners each forward and backward of one needs all others', and a learner that ran fewer
        would leave them waiting: all agree on the most that any has before the first, and the rest are batches of nobody,
        ``[]``, to be run like any other and forgotten. So is what fills up to ``least``.
        """
        mine = self.share(members)
        keys = self.keys(members)
        groups = self.groups(members)
        chosen = plan([keys[i] for i in mine], None if groups is None else [groups[i] for i in mine], self.rows)
        spare = max(least, self.world.most(len(chosen)) if self.lockstep and self.world else 0) - len(chosen)
        for part in [[mine[i] for i in part] for part in chosen]:
            with self.timed("pack"):
                batch = self.batch([members[i] for i in part], [keys[i] for i in part])
            yield part, batch
        for _ in range(spare):
            yield [], self.batch([min(members, key=lambda s: len(s.tokens))])

    @property
    def lockstep(self) -> bool:
        """Whether learners need each other's forwards and backwards."""
        return self.world is not None and self.world.mesh is not None

    def run_backward(self, loss: Tensor, forget: Sequence[Tensor] = ()) -> None:
        """``loss.backward()``, after which the parameters in ``forget`` have the gradients that they had before."""
        before = [p.grad for p in forget]
        for p in forget:
            p.grad = None
        loss.backward()
        for p, grad in zip(forget, before, strict=True):
            p.grad = grad

    def policy_run(self, b: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probability and entropy, [M] each, and the routers' own choice where it is watched."""
        with self.critic.watching() if self.critic else nullcontext():
            if self.replayer is None:
                return *self.policy.logprobs(b.packed, b.rows_M, b.target_M, b.temperature_M), None
            with self.replayer.watching(b) as own_TLK:
                return *self.policy.logprobs(b.packed, b.rows_M, b.target_M, b.temperature_M), own_TLK

    def base_run(self, b: Batch) -> Tensor:
        """Log-probability by the base, [M]. It chooses its own routes: nobody sampled from it."""
        with self.policy.base():
            return self.policy.logprobs(b.packed, b.rows_M, b.target_M, b.temperature_M)[0]

    @torch.no_grad()
    def measure(self, members: Sequence[Sample], by_base: bool, record: bool = False) -> Measured:
        """Log-probabilities of the members' sampled tokens as the policy (or the base) stands, and the critic's values.

        With ``record``, also the routes that it chooses, of all tokens. Raises Unmeasurable where a number is not finite.
        """
        self.check(members)
        critic = None if by_base else self.critic
        logprob = [np.zeros(len(s.target)) for s in members]
        value = [np.zeros(len(s.target)) for s in members] if critic else None
        routes = None
        if record and self.replayer is not None:
            shape, dtype = self.replayer.shape, self.replayer.dtype
            routes = [np.zeros((len(s.tokens), *shape), dtype) for s in members]
        self.policy.whole = record
        try:
            for where, b in self.rounds(members):
                lengths = [len(members[i].target) for i in where]
                with self.timed("forward"):
                    own_TLK = None
                    if by_base:
                        logprob_M = self.base_run(b)
                    else:
                        logprob_M, _, own_TLK = self.policy_run(b)
                if not where:
                    continue
                _fill(logprob, where, logprob_M, lengths)
                if critic and value is not None:
                    _fill(value, where, critic.values(b.rows_M), lengths)
                if routes is not None and own_TLK is not None and self.replayer is not None:
                    for i, own in zip(where, self.replayer.record(own_TLK, b), strict=True):
                        routes[i] = own
        finally:
            self.policy.whole = False
        if self.world is not None:
            for arrays in (logprob, value, routes):
                if arrays is not None:
                    self.world.add_arrays(arrays)
        if not all(np.isfinite(x).all() for x in (*logprob, *(value or ()))):
            raise Unmeasurable("the policy's log-probabilities, or its critic's values, are not finite")
        return Measured(logprob, value, routes)


def _fill(arrays: list[np.ndarray], where: Sequence[int], values_M: Tensor, lengths: list[int]) -> None:
    for i, part in zip(where, values_M.double().cpu().split(lengths), strict=True):
        arrays[i] = part.numpy()
