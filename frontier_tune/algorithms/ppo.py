"""PPO with a critic (arXiv:1707.06347), token by token as in RLHF (InstructGPT, arXiv:2203.02155).

    r_t = -beta KL_t, plus the outcome at an episode's last token
    A   = GAE(r, V; discount, trace) (gae.py), whitened over the batch;     R_t = A_t + V_t before whitening
    L   = 1/Z sum_t [ -min(rho_t A_t, clip(rho_t) A_t) ]  +  value_coefficient / tokens sum_t value_loss_t      (eq. 9)

The critic gives V_t, [T]: the value of the state in which token t was sampled, from the same row of hidden states that gave its
log-probability (a head of shape [1, H] on hidden states [T, H]). Observations between turns are no actions: a step of GAE goes
from one sampled token to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from frontier_tune.algorithms.advantages import whiten
from frontier_tune.algorithms.base import Algorithm, Sums
from frontier_tune.algorithms.batch import Coefficients, Rollout, Tokens, Totals
from frontier_tune.algorithms.clipping import clipped_surrogate, clipped_value_loss
from frontier_tune.algorithms.gae import gae


@dataclass(frozen=True, kw_only=True)
class PPO(Algorithm):
    """``value_clip`` 0 switches the clipping of values off. ``critic_learning_rate``: of the head alone.

    The head has an Adam of its own, whose steps don't grow with the loss: ``value_coefficient`` moves what is clipped at the
    learner's ``max_grad_norm``, and little else.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    discount: float = 1.0
    trace: float = 0.95
    value_clip: float = 0.2
    value_coefficient: float = 0.5
    critic_learning_rate: float = 1e-2
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"

    has_critic: ClassVar[bool] = True
    on_policy: ClassVar[bool] = True  # GAE estimates the returns of the policy that sampled; no weight in it corrects for another

    def idle_at_one_update(self) -> set[str]:
        return super().idle_at_one_update() | {"value_clip"}  # values are those that the step began with

    def _estimated(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        if rollout.value_T is None:
            raise ValueError("PPO needs value_T, the critic's values")
        value_T = rollout.value_T.double()
        return gae(rollout.token_reward_T, value_T, rollout.length_N, self.discount, self.trace), value_T

    def advantages(self, rollout: Rollout) -> Tensor:
        return whiten(self._estimated(rollout)[0])

    def returns(self, rollout: Rollout) -> Tensor:
        advantage_T, value_T = self._estimated(rollout)
        return advantage_T + value_T

    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ratio_T = (tokens.logprob_T - tokens.old_logprob_T).exp()
        return clipped_surrogate(ratio_T, tokens.advantage_T, self.clip_low, self.clip_high)

    def loss(self, tokens: Tokens, totals: Totals, coefficients: Coefficients | None = None) -> tuple[Tensor, Sums]:
        if tokens.value_T is None or tokens.old_value_T is None or tokens.return_T is None:
            raise ValueError("PPO needs value_T, old_value_T and return_T")
        total, sums = super().loss(tokens, totals, coefficients)
        value_loss_T = clipped_value_loss(tokens.value_T, tokens.old_value_T, tokens.return_T, self.value_clip)
        sums["value_loss"] = value_loss_T.detach().sum().double()
        return total + self.value_coefficient * (value_loss_T.sum() / totals.tokens), sums
