"""RLOO: REINFORCE with the group's other members as baseline (Ahmadian et al., arXiv:2402.14740, section 2.2).

    A_i = r_i - mean_{j != i}(r_j),     L = 1/N sum_i -min(rho_i A_i, clip(rho_i) A_i),     rho_i = pi(y_i) / pi_old(y_i)

The whole answer is one action, so the ratio is the sequence's (product over tokens); it is 1 and its clipping idle on policy. A
KL to the base belongs in the reward, by k1.

The gradient is ``-rho_i A_i sum_t w_t grad log pi(o_t)``: taken token by token, so that an importance weight (``correction.py``)
is that of its own token. With another normalisation than ``sequence`` each token's part is divided by the batch's tokens, or by
``sequences * loss_constant``, in place of N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frontier_tune.algorithms.advantages import group_relative, leave_one_out
from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Rollout, Tokens
from frontier_tune.algorithms.clipping import by_token, clipped_surrogate


@dataclass(frozen=True, kw_only=True)
class RLOO(Algorithm):
    clip_low: float = 0.2
    clip_high: float = 0.2
    normalization: Literal["token", "sequence", "constant"] = "sequence"
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"

    zero_is_silent: ClassVar[bool] = True

    def advantages(self, rollout: Rollout) -> Tensor:
        reward_PG, valid_PG, slot_N = rollout.by_group(rollout.penalised_reward_N)
        return rollout.spread(leave_one_out(reward_PG, valid_PG).flatten()[slot_N])

    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ratio_N = tokens.sum_N(tokens.logprob_T - tokens.old_logprob_T).detach().exp()
        # A mean over the sequence's tokens follows: their gradients are to add up all the same.
        terms_N = tokens.length_N if self.normalization == "sequence" else torch.ones_like(ratio_N)
        ratio_T = ratio_N[tokens.sequence_T] * by_token(tokens.logprob_T * terms_N[tokens.sequence_T])
        return clipped_surrogate(ratio_T, tokens.advantage_T, self.clip_low, self.clip_high)

    def learns_from(self, reward_PG: Tensor, valid_PG: Tensor) -> bool:
        return self.penalises or bool((group_relative(reward_PG, valid_PG, False) != 0).any())
