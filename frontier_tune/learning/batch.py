"""Trajectories as the learner takes them: checked, trimmed to what matters, laid out as a pack with its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frontier_tune.contracts import Trajectory
from frontier_tune.learning.packing import Packed, pack


@dataclass(frozen=True)
class Sample:
    """One trajectory's part in the loss. ``target``: positions (>= 1) of its sampled tokens; ``tokens`` end with the last.

    Arrays have the length of ``target``: ``logprob`` the sampler's, ``old_logprob`` what the ratio is taken against where that is
    not the sampler's, ``value`` and ``returns`` the critic's value when the step began and what it is fitted to. But for the
    routes [n, L, K] of its first n tokens: the sampler's, and the learner's own when the step began.
    """

    group: int
    tokens: list[int]
    target: np.ndarray
    logprob: np.ndarray
    advantage: np.ndarray
    temperature: float
    old_logprob: np.ndarray | None = None
    value: np.ndarray | None = None
    returns: np.ndarray | None = None
    routes: np.ndarray | None = None
    old_routes: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """A pack and, for its M sampled tokens: the row that predicts each, the token, and what the loss needs, [M] each.

    ``sequence_M`` numbers the pack's sequences. What follows it is there where the samples have it: ``route_MLK`` the sampler's
    routes at the rows that predict, ``forced_TLK`` routes to replay at the rows where ``known_T`` is true.
    """

    packed: Packed
    rows_M: Tensor
    target_M: Tensor
    sampler_logprob_M: Tensor
    advantage_M: Tensor
    temperature_M: Tensor | None
    sequence_M: Tensor
    old_logprob_M: Tensor | None
    value_M: Tensor | None
    return_M: Tensor | None
    route_MLK: Tensor | None = None
    forced_TLK: Tensor | None = None
    known_T: Tensor | None = None


def counts(trajectory: Trajectory) -> bool:
    """Whether it has a part in the loss: trainable, with at least one sampled token."""
    return trajectory.trainable and any(trajectory.mask)


def samples(
    trajectories: Sequence[Trajectory], advantages: Sequence[float | Sequence[float] | np.ndarray], vocab_size: int
) -> list[Sample]:
    """The trainable trajectories with at least one sampled token. An advantage is one number, or one for each sampled token.

    Raises:
        ValueError: a trajectory contradicts itself (lengths, a sampled first token, a log-probability that is not finite or
            positive, a token outside the vocabulary, greedy sampling), or its advantage is not finite or of another length.
    """
    if len(trajectories) != len(advantages):
        raise ValueError(f"{len(trajectories)} trajectories but {len(advantages)} advantages")
    out = []
    for n, (t, advantage) in enumerate(zip(trajectories, advantages, strict=True)):
        if not counts(t):
            continue
        where = f"trajectory {n} (task {t.spec.task.hash}, group {t.spec.group}, member {t.spec.member})"
        if not len(t.tokens) == len(t.mask) == len(t.logprobs):
            raise ValueError(f"{where}: {len(t.tokens)} tokens, {len(t.mask)} of mask, {len(t.logprobs)} log-probabilities")
        target = np.flatnonzero(np.asarray(t.mask))
        tokens = list(t.tokens[: int(target[-1]) + 1])
        logprob = np.asarray(t.logprobs, dtype=np.float64)[target]
        if target[0] == 0:
            raise ValueError(f"{where}: its first token is marked as sampled, but nothing predicts it")
        if not np.isfinite(logprob).all() or (logprob > 1e-3).any():
            raise ValueError(f"{where}: a sampled token's log-probability is not finite or above 0")
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise ValueError(f"{where}: a token is outside the vocabulary of {vocab_size}")
        credit = np.asarray(advantage, dtype=np.float64)
        if credit.shape not in ((), target.shape) or not np.isfinite(credit).all():
            raise ValueError(f"{where}: advantage {advantage} for {len(target)} sampled tokens")
        if not t.spec.temperature > 0:
            raise ValueError(f"{where}: sampled greedily; there is no ratio to learn from at temperature 0")
        credit = np.broadcast_to(credit, target.shape)
        out.append(Sample(t.spec.group, tokens, target, logprob, credit, t.spec.temperature, routes=t.routes))
    return out


def collate(
    members: Sequence[Sample],
    device: torch.device,
    share: bool,
    keys: Sequence[Sequence[int]] | None = None,
    forced: Sequence[np.ndarray | None] = (),
) -> Batch:
    """Lay samples out as one pack; with ``share``, those of a group hold their common prefix once.

    ``forced``: routes to replay for each sample (none: for no sample), equal wherever ``keys`` are (see ``packing.pack``).
    """
    packed = pack([s.tokens for s in members], [s.group for s in members] if share else None, device, keys)

    def tensor(arrays: list[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device, dtype)

    def optional(arrays: list[np.ndarray | None]) -> Tensor | None:
        there = [a for a in arrays if a is not None]
        return tensor(there, torch.float32) if len(there) == len(arrays) else None

    count = [len(s.target) for s in members]
    temperature = None
    if any(s.temperature != 1.0 for s in members):
        temperature = tensor([np.full(n, s.temperature) for s, n in zip(members, count, strict=True)], torch.float32)
    routes = [s.routes[s.target - 1].astype(np.int32) for s in members if s.routes is not None]
    return Batch(
        packed,
        tensor([packed.rows[i][s.target - 1] for i, s in enumerate(members)], torch.long),
        tensor([np.asarray(s.tokens)[s.target] for s in members], torch.long),
        tensor([s.logprob for s in members], torch.float32),
        tensor([s.advantage for s in members], torch.float32),
        temperature,
        tensor([np.repeat(np.arange(len(members)), count)], torch.long),
        optional([s.old_logprob for s in members]),
        optional([s.value for s in members]),
        optional([s.returns for s in members]),
        tensor(routes, torch.int32) if len(routes) == len(members) else None,
        *_forced(packed, forced, device),
    )


def _forced(packed: Packed, forced: Sequence[np.ndarray | None], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Routes [T, L, K] int32 of the pack's rows, and at which rows they are known [T]."""
    there = [(rows, routes) for rows, routes in zip(packed.rows, forced, strict=bool(forced)) if routes is not None]
    if not there:
        return None, None
    route_TLK = np.zeros((len(packed.tokens_T), *there[0][1].shape[1:]), np.int32)
    known_T = np.zeros(len(packed.tokens_T), bool)
    for rows, routes in there:
        n = min(len(rows), len(routes))
        route_TLK[rows[:n]] = routes[:n]
        known_T[rows[:n]] = True
    return torch.from_numpy(route_TLK).to(device), torch.from_numpy(known_T).to(device)
