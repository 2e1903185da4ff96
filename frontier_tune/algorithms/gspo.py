"""GSPO: the ratio of whole sequences, length-normalised (Qwen, arXiv:2507.18071, eq. 5 to 7).

    s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|),     L = 1/N sum_i -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)

One ratio a sequence varies far less than one a token, hence the narrow clip, and no token's routing in an MoE decides alone.

Computed as GSPO-token (eq. 13 and 14): ratio and clipping are GSPO's, and so is the gradient where all tokens of a sequence have
one advantage and one weight. Where they differ (credit by turn, importance weights by token), each token's gradient has its own;
through the shared ratio each would get their mean, and a masked token would learn from its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from frontier_tune.algorithms.batch import Tokens
from frontier_tune.algorithms.clipping import by_token, clipped_surrogate
from frontier_tune.algorithms.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    normalization: Literal["token", "sequence", "constant"] = "sequence"

    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ratio_N = tokens.mean_N(tokens.logprob_T - tokens.old_logprob_T).detach().exp()
        ratio_T = ratio_N[tokens.sequence_T] * by_token(tokens.logprob_T)
        return clipped_surrogate(ratio_T, tokens.advantage_T, self.clip_low, self.clip_high)
