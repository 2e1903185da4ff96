"""CISPO: clip the importance weight, not the update, so that every token keeps its gradient (arXiv:2506.13585, eq. 4-5).

    L_t = -sg(min(rho_t, 1 + clip_high)) A_i log pi(o_t)

sg stops the gradient. The weight has no lower bound, as in the paper's runs; ``clip_high`` 4 caps it at 5 (arXiv:2510.13786).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frontier_tune.algorithms.batch import Tokens
from frontier_tune.algorithms.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class CISPO(GRPO):
    clip_low: float = 1.0
    clip_high: float = 4.0

    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            ratio_T = (tokens.logprob_T - tokens.old_logprob_T).exp()
            weight_T = ratio_T.clamp(1 - self.clip_low, 1 + self.clip_high)
            clipped_T = (ratio_T > 1 + self.clip_high) & (tokens.advantage_T > 0)
        return -weight_T * tokens.advantage_T * tokens.logprob_T, clipped_T
