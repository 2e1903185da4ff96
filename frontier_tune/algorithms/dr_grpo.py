"""Dr.GRPO: GRPO without its two biases (arXiv:2503.20783, section 3.1).

No division by the group's deviation (which favours tasks that are too easy or too hard), and the sum over a sequence's tokens
is divided by one constant for all instead of by its length (which favours long wrong answers):

    A_i = r_i - mean_group(r),     L = 1/(N * C) sum_i sum_t -min(rho_t A_i, clip(rho_t) A_i)

C is ``loss_constant``, by default the tokens that an episode may sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frontier_tune.algorithms.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    clip_high: float = 0.2
    scale_by_std: bool = False
    normalization: Literal["token", "sequence", "constant"] = "constant"
