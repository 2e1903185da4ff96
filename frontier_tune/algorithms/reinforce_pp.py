"""REINFORCE++: PPO's clipped loss without critic, advantages normalised over the whole batch (arXiv:2501.03262, section 3).

    A_t = r - beta * sum_{k >= t} KL_k,     then (A - mean) / std over all tokens of the batch,     loss as in PPO

With ``baseline: group`` the group's mean reward is subtracted first (REINFORCE++-baseline, same paper, for tasks whose
difficulty differs); the paper then takes the KL into the loss by k2: ``kl_in: loss``, ``kl_estimator: k2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frontier_tune.algorithms.advantages import group_relative, whiten
from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Rollout, Tokens
from frontier_tune.algorithms.clipping import clipped_surrogate
from frontier_tune.algorithms.gae import returns_to_go


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(Algorithm):
    clip_low: float = 0.2
    clip_high: float = 0.2
    baseline: Literal["none", "group"] = "none"
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"

    zero_is_silent: ClassVar[bool] = True

    def advantages(self, rollout: Rollout) -> Tensor:
        reward_N = rollout.reward_N.masked_fill(~rollout.valid_N, 0.0)
        if not torch.isfinite(reward_N).all():
            raise ValueError("a valid episode has a reward that is not finite; mark it invalid or mend the rubric")
        if self.baseline == "group":
            reward_PG, valid_PG, slot_N = rollout.by_group(reward_N)
            reward_N = group_relative(reward_PG, valid_PG, scale_by_std=False).flatten()[slot_N]
        return whiten(rollout.spread(reward_N) - returns_to_go(rollout.penalty_T, rollout.length_N))

    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ratio_T = (tokens.logprob_T - tokens.old_logprob_T).exp()
        return clipped_surrogate(ratio_T, tokens.advantage_T, self.clip_low, self.clip_high)

    def learns_from(self, reward_PG: Tensor, valid_PG: Tensor) -> bool:
        one_P = (-1, reward_PG.shape[1]) if self.baseline == "group" else (1, -1)
        differ = group_relative(reward_PG.reshape(one_P), valid_PG.reshape(one_P), False) != 0
        return self.penalises or bool(differ.any())
