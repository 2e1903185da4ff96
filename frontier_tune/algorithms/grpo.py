"""GRPO: group-relative advantages and a clipped ratio (DeepSeekMath, arXiv:2402.03300, eq. 3, section 4.1.2).

    A_i = (r_i - mean_group(r)) / std_group(r)
    L_t = -min(rho_t A_i, clip(rho_t, 1 - low, 1 + high) A_i),     rho_t = pi(o_t) / pi_old(o_t)

The defaults here are today's usual ones, not the paper's: a sum over the batch's tokens rather than a mean of sequence means,
and clip-higher (both DAPO, arXiv:2503.14476, eq. 10 and 12). The paper's: ``normalization: sequence``, ``clip_high: 0.2``, and a
KL to the base in the loss, ``kl_coefficient: 0.04``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frontier_tune.algorithms.advantages import batch_relative, group_relative, turn_relative
from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Rollout, Tokens
from frontier_tune.algorithms.clipping import clipped_surrogate


@dataclass(frozen=True, kw_only=True)
class GRPO(Algorithm):
    """``advantage``: relative to the group, the batch, or the group turn by turn (with ``turn_discount``: advantages.py)."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    advantage: Literal["group", "batch", "turn"] = "group"
    scale_by_std: bool = True
    turn_discount: float = 1.0

    zero_is_silent: ClassVar[bool] = True

    def idle(self) -> dict[str, str]:
        return super().idle() | ({} if self.advantage == "turn" else {"turn_discount": "advantage: turn"})

    def rewards(self, rollout: Rollout) -> Tensor:
        """What is compared, [N]."""
        return rollout.penalised_reward_N

    def advantages(self, rollout: Rollout) -> Tensor:
        reward_PG, valid_PG, slot_N = rollout.by_group(self.rewards(rollout))
        if self.advantage == "turn":
            return self._by_turn(rollout, reward_PG, valid_PG, slot_N)
        relative = batch_relative if self.advantage == "batch" else group_relative
        return rollout.spread(relative(reward_PG, valid_PG, self.scale_by_std).flatten()[slot_N])

    def _by_turn(self, rollout: Rollout, reward_PG: Tensor, valid_PG: Tensor, slot_N: Tensor) -> Tensor:
        """The outcome is earned by an episode's last turn, a KL in the reward is paid by the turn that it is of; [T]."""
        episode_T = rollout.episode_T
        turns_N = torch.zeros(len(slot_N), dtype=torch.long).scatter_reduce_(0, episode_T, rollout.turn_T + 1, "amax")
        turns_PG = torch.zeros(reward_PG.numel(), dtype=torch.long).index_copy_(0, slot_N, turns_N).view_as(reward_PG)
        turn_K = torch.arange(max(1, int(turns_N.max())))
        last_PGK = turn_K == turns_PG[..., None] - 1
        reached_PGK = (turn_K < turns_PG[..., None]) & valid_PG[..., None]
        reward_PGK = torch.where(last_PGK & reached_PGK, reward_PG[..., None], 0.0)
        if rollout.kl_T is not None:
            reward_PGK = reward_PGK + self._moved(rollout, slot_N, last_PGK)
        by_turn = turn_relative(reward_PGK, reached_PGK, self.turn_discount, self.scale_by_std)
        return by_turn.view(-1, len(turn_K))[slot_N[episode_T], rollout.turn_T]

    @staticmethod
    def _moved(rollout: Rollout, slot_N: Tensor, last_PGK: Tensor) -> Tensor:
        """What brings the KL, all of which the last turn has paid, to the turns it is of, [P, G, K]; it adds up to 0."""
        paid_PGK = torch.zeros(last_PGK.shape, dtype=torch.float64)
        where_T = slot_N[rollout.episode_T] * last_PGK.shape[2] + rollout.turn_T
        paid_PGK.view(-1).index_add_(0, where_T, rollout.penalty_T)
        return last_PGK * paid_PGK.sum(2, keepdim=True) - paid_PGK

    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ratio_T = (tokens.logprob_T - tokens.old_logprob_T).exp()
        return clipped_surrogate(ratio_T, tokens.advantage_T, self.clip_low, self.clip_high)

    def learns_from(self, reward_PG: Tensor, valid_PG: Tensor) -> bool:
        relative = batch_relative if self.advantage == "batch" else group_relative
        # A KL in the reward, or turns that discount, tell episodes of equal outcome apart.
        discounts = self.advantage == "turn" and self.turn_discount < 1
        return self.penalises or discounts or bool((relative(reward_PG, valid_PG, False) != 0).any())
