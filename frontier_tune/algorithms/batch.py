"""What an algorithm is given: a step's episodes (for advantages) and the tokens of one micro-batch (for the loss).

Shapes: ``_N`` episodes or sequences, ``_T`` their *sampled* tokens one sequence after another (no prompt, no observation, no
padding), ``_P`` groups, ``_G`` members of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """All episodes that are compared with each other: one step's of one environment.

    Attributes:
        reward_N: outcome rewards, float64; anything where not valid.
        group_N: which group (same task) each belongs to, long.
        valid_N: False for an episode that failed by no fault of the agent: it must touch no baseline.
        length_N: sampled tokens of each, long; 0 leaves an episode in the baseline and out of the loss.
        turn_T: which turn of its episode sampled the token, counted from 0, long.
        kl_T: KL estimate of the sampling policy to the base at each token, where the recipe puts the KL into the reward.
        kl_coefficient: its weight.
        value_T: the critic's value of the state in which each token was sampled, where the algorithm has a critic.
    """

    reward_N: Tensor
    group_N: Tensor
    valid_N: Tensor
    length_N: Tensor
    turn_T: Tensor
    kl_T: Tensor | None = None
    kl_coefficient: float = 0.0
    value_T: Tensor | None = None

    @property
    def episode_T(self) -> Tensor:
        """Which episode each token belongs to, [T]."""
        return torch.repeat_interleave(torch.arange(len(self.length_N)), self.length_N)

    def spread(self, value_N: Tensor) -> Tensor:
        """An episode's value at each of its sampled tokens, [T]."""
        return value_N[self.episode_T]

    @property
    def penalty_T(self) -> Tensor:
        """What the KL takes from the reward at each token, ``beta * kl_t``, [T]."""
        if self.kl_T is None:
            return torch.zeros(len(self.turn_T), dtype=torch.float64)
        return self.kl_coefficient * self.kl_T.double()

    @property
    def penalised_reward_N(self) -> Tensor:
        """Outcome reward less the KL penalty summed over the episode's tokens (as in RLOO, arXiv:2402.14740), [N]."""
        if self.kl_T is None:
            return self.reward_N
        return self.reward_N - torch.zeros(len(self.reward_N), dtype=torch.float64).index_add_(0, self.episode_T, self.penalty_T)

    @property
    def token_reward_T(self) -> Tensor:
        """Reward at each token: ``-beta kl_t``, and the outcome at an episode's last (InstructGPT, arXiv:2203.02155), [T]."""
        reward = -self.penalty_T
        last = self.length_N.cumsum(0) - 1
        there = self.length_N > 0
        reward[last[there]] += self.reward_N[there].double()
        return reward

    def by_group(self, value_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``value_N`` laid out as [P, G], which slots hold a valid episode [P, G], and each episode's slot in the flat P * G [N].

        Groups stand in the order of their numbers, members in their own; short groups are filled with slots that aren't valid.
        """
        _, group_N = torch.unique(self.group_N, return_inverse=True)
        counts = torch.bincount(group_N)
        order = torch.argsort(group_N, stable=True)
        member_N = torch.empty_like(group_N)
        member_N[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[group_N[order]]
        slot_N = group_N * int(counts.max()) + member_N
        shape = (len(counts), int(counts.max()))
        value = torch.zeros(shape, dtype=value_N.dtype).view(-1).index_copy_(0, slot_N, value_N).view(shape)
        valid = torch.zeros(shape, dtype=torch.bool).view(-1).index_copy_(0, slot_N, self.valid_N).view(shape)
        return value, valid, slot_N


@dataclass(frozen=True)
class Tokens:
    """The sampled tokens of one micro-batch, [T] each. A sequence is never split over micro-batches.

    ``logprob_T`` (and ``entropy_T``, ``value_T``) carry the gradient. ``old_logprob_T`` is the policy that the ratio is taken
    against; ``sampler_logprob_T`` the sampler's own value where that is another one (arXiv:2505.24298: proximal and behaviour
    policy). ``sequence_T`` numbers the micro-batch's sequences from 0 to ``sequences`` - 1.
    """

    logprob_T: Tensor
    old_logprob_T: Tensor
    advantage_T: Tensor
    sequence_T: Tensor
    sequences: int
    entropy_T: Tensor | None = None
    base_logprob_T: Tensor | None = None
    sampler_logprob_T: Tensor | None = None
    value_T: Tensor | None = None
    old_value_T: Tensor | None = None
    return_T: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.logprob_T.shape
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.shape != shape:
                raise ValueError(f"shapes differ: log-probabilities have {tuple(shape)}, {name} {tuple(value.shape)}")

    def sum_N(self, value_T: Tensor) -> Tensor:
        """Sum over each sequence's tokens, [N]."""
        return value_T.new_zeros(self.sequences).index_add(0, self.sequence_T, value_T)

    @property
    def length_N(self) -> Tensor:
        return torch.bincount(self.sequence_T, minlength=self.sequences).to(self.logprob_T.dtype)

    def mean_N(self, value_T: Tensor) -> Tensor:
        """Mean over each sequence's tokens, [N]."""
        return self.sum_N(value_T) / self.length_N


@dataclass(frozen=True)
class Totals:
    """What the *whole* batch of one optimizer update holds: losses are divided by these, so that micro-batches add up."""

    tokens: float
    sequences: float

    def __post_init__(self) -> None:
        if not (self.tokens > 0 and self.sequences > 0):
            raise ValueError(f"a batch needs tokens and sequences, got {self}")


@dataclass
class Coefficients:
    """The weights that controllers move: part of a run's state. ``entropy_on``: the entropy was at or below its target."""

    kl: float = 0.0
    entropy: float = 0.0
    entropy_on: bool = True

    @property
    def applied_entropy(self) -> float:
        return self.entropy if self.entropy_on else 0.0
