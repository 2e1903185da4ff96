"""DAPO: GRPO with clip-higher, token-level loss, dynamic sampling and soft overlong punishment (arXiv:2503.14476).

    r_i' = r_i + penalty(length_i)          (eq. 13, shaping.py; with ``overlong_buffer``)
    L    = 1/tokens sum_i sum_t -min(rho_t A_i, clip(rho_t, 1 - 0.2, 1 + 0.28) A_i)      (eq. 10 and 12)

Dynamic sampling (eq. 11) replaces groups whose rewards are all equal by newly played ones; it is the loop that plays, up to
``dynamic_sampling`` rounds more a step. Rewards are the environment's there, before the punishment, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frontier_tune.algorithms.batch import Rollout
from frontier_tune.algorithms.grpo import GRPO
from frontier_tune.algorithms.shaping import overlong_penalty


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """``overlong_limit``: sampled tokens an episode may have; ``overlong_buffer``: the last so many cost reward (None: none)."""

    overlong_buffer: int | None = None
    overlong_limit: int | None = None
    dynamic_sampling: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlong_buffer is not None:
            if self.overlong_limit is None:
                raise ValueError("overlong_buffer needs overlong_limit, the tokens that an episode may sample")
            overlong_penalty(torch.zeros(1), self.overlong_limit, self.overlong_buffer)  # refuses a buffer that doesn't fit

        others = {
            "advantage: batch": self.advantage == "batch",
            "turn_discount below 1": self.advantage == "turn" and self.turn_discount < 1,
            "the KL in the reward": self.penalises,
        }
        if self.dynamic_sampling and any(others.values()):
            raise ValueError(
                "dynamic_sampling replaces groups whose rewards are all equal, and those have advantages, too, with "
                f"{next(name for name, on in others.items() if on)}; set dynamic_sampling to 0, or take that out"
            )

    def idle(self) -> dict[str, str]:
        return super().idle() | ({"overlong_limit": "an overlong_buffer"} if self.overlong_buffer is None else {})

    def rewards(self, rollout: Rollout) -> Tensor:
        reward_N = super().rewards(rollout)
        if self.overlong_buffer is None or self.overlong_limit is None:
            return reward_N
        return reward_N + overlong_penalty(rollout.length_N, self.overlong_limit, self.overlong_buffer)

    def learns_from(self, reward_PG: Tensor, valid_PG: Tensor) -> bool:
        return self.overlong_buffer is not None or super().learns_from(reward_PG, valid_PG)
