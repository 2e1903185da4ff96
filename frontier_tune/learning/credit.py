"""From played episodes to samples with advantages: the algorithm's own, of what they earned and the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from frontier_tune.algorithms import kl
from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Rollout
from frontier_tune.contracts import Trajectory
from frontier_tune.learning.batch import Sample, counts, samples


@dataclass(frozen=True)
class Measured:
    """What a forward over samples says of their sampled tokens: log-probabilities, the critic's values. [len(target)] each.

    ``routes``: the routers' own choice, [tokens, L, K] each, where it was recorded.
    """

    logprob: list[np.ndarray]
    value: list[np.ndarray] | None
    routes: list[np.ndarray] | None = None


# (samples, whether by the base) -> what it says of them
Measure = Callable[[Sequence[Sample], bool], Measured]


def credited(
    algorithm: Algorithm, trajectories: Sequence[Trajectory], vocab_size: int, kl_coefficient: float, measure: Measure
) -> tuple[list[Sample], tuple[float, int] | None]:
    """Samples of one environment's episodes of a step, each with its advantages.

    ``trajectories`` are all that were played: a baseline may count an episode of which no token is trained.

    Returns:
        The samples; and, where the algorithm takes a KL to the base from the reward, its mean a sampled token, and of how many,
        those of samples that are masked among them.
    """
    members = samples(trajectories, [0.0] * len(trajectories), vocab_size)
    if not members:
        return [], None
    kl_T = value_T = None
    value: list[np.ndarray] | None = None
    if algorithm.penalises:
        estimator = kl.ESTIMATORS[algorithm.kl_estimator]
        kl_T = estimator(_flat([s.logprob for s in members]), _flat(measure(members, True).logprob))
    if algorithm.has_critic:
        value = measure(members, False).value
        assert value is not None
        value_T = _flat(value)
    rollout = rollout_of(trajectories, kl_T, kl_coefficient, value_T)
    advantage = algorithm.advantages(rollout)
    lengths = [len(s.target) for s in members]
    if advantage.shape != (sum(lengths),) or not torch.isfinite(advantage).all():
        raise ValueError(
            f"{type(algorithm).__name__}.advantages: {tuple(advantage.shape)} for {sum(lengths)} sampled tokens, or not finite"
        )
    parts = _split(advantage, lengths)
    returns_T = algorithm.returns(rollout)
    returns = None if returns_T is None else _split(returns_T, lengths)
    out = [
        replace(s, advantage=parts[i], value=value[i] if value else None, returns=returns[i] if returns else None)
        for i, s in enumerate(members)
    ]
    if algorithm.mask_truncated:
        played = [t for t in trajectories if counts(t)]
        out = [s for s, t in zip(out, played, strict=True) if not t.truncated]
    return out, None if kl_T is None else (float(kl_T.mean()), len(kl_T))


def rollout_of(
    trajectories: Sequence[Trajectory], kl_T: Tensor | None = None, kl_coefficient: float = 0.0, value_T: Tensor | None = None
) -> Rollout:
    """The episodes as algorithms see them. Those that aren't trainable are there, not valid."""
    turns = [_turns(t) if counts(t) else np.zeros(0, dtype=np.int64) for t in trajectories]
    return Rollout(
        reward_N=torch.tensor([t.reward if t.trainable else 0.0 for t in trajectories], dtype=torch.float64),
        group_N=torch.tensor([t.spec.group for t in trajectories]),
        valid_N=torch.tensor([t.trainable for t in trajectories]),
        length_N=torch.tensor([len(t) for t in turns]),
        turn_T=torch.from_numpy(np.concatenate(turns)),
        kl_T=kl_T,
        kl_coefficient=kl_coefficient,
        value_T=value_T,
    )


def _turns(trajectory: Trajectory) -> np.ndarray:
    """Which turn sampled each sampled token: a turn is a run of them."""
    mask = np.asarray(trajectory.mask)
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    turns: np.ndarray = (np.cumsum(begins) - 1)[mask]
    return turns


def _flat(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).double()


def _split(values: Tensor, lengths: Sequence[int]) -> list[np.ndarray]:
    return [part.numpy() for part in values.double().split(list(lengths))]
