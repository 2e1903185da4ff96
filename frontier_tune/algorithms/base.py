"""What every algorithm is: settings, an advantage for each token, and a loss that adds up over micro-batches.

An algorithm is one frozen dataclass. Its fields are the keys that a recipe's ``algorithm`` section may set; it defines
``advantages`` and ``policy_loss``; correction of mismatch, KL, entropy and normalisation are the same for all and stand here:

    L = 1/Z sum_t n_t [ w_t * policy_loss_t + beta * KL_t ]  -  gamma * 1/tokens sum_t H_t

``w_t`` is the importance weight of ``correction.py``. Normalisation ``token``: Z counts the batch's sampled tokens and n_t = 1;
``sequence``: Z counts its sequences and n_t = 1 / (tokens of t's sequence); ``constant``: Z = sequences * ``loss_constant``
and n_t = 1. Z is always of the whole batch of one optimizer update, so loss and gradient don't depend on micro-batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frontier_tune.algorithms import controllers, kl
from frontier_tune.algorithms.batch import Coefficients, Rollout, Tokens, Totals
from frontier_tune.algorithms.correction import Level, Method, importance_weights
from frontier_tune.algorithms.settings import check_literals

Sums = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """Base of the algorithms.

    Attributes:
        normalization, loss_constant: see above; ``loss_constant`` is a number of tokens (default: what an episode may sample).
        kl_coefficient, kl_in, kl_estimator: beta; a term of the loss or taken from the reward; k1, k2 or k3 (kl.py).
        kl_target: mean KL a token that beta is adapted to; None leaves beta alone.
        entropy_coefficient: gamma. entropy_target: entropy in nats a token below which the bonus is applied and grows by
            ``entropy_step`` an update, up to ``entropy_limit``; None leaves gamma alone.
        proximal: what the ratio is taken against: the log-probabilities of the ``sampler``, or the ``learner``'s own for the
            same tokens at the start of the step. correction, correction_level, correction_low, correction_high: correction.py.
        mask_truncated: episodes that a limit cut off are in the baseline and not in the loss: what they were going to do is not
            known (DAPO's overlong filtering, arXiv:2503.14476, section 3.4).
    """

    normalization: Literal["token", "sequence", "constant"] = "token"
    loss_constant: int | None = None
    kl_coefficient: float = 0.0
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_target: float | None = None
    entropy_coefficient: float = 0.0
    entropy_target: float | None = None
    entropy_step: float = 0.001
    entropy_limit: float = 0.1
    proximal: Literal["sampler", "learner"] = "sampler"
    correction: Method = "none"
    correction_level: Level = "token"
    correction_low: float = 0.0
    correction_high: float = 2.0
    mask_truncated: bool = False

    has_critic: ClassVar[bool] = False
    on_policy: ClassVar[bool] = False  # True: data of an older policy can't be corrected for (a recipe's run.staleness must be 0)
    # True: a token with advantage 0 adds exactly nothing to the policy loss and its gradient, so it need not be computed.
    zero_is_silent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_literals(self)
        if self.normalization == "constant" and self.loss_constant is None:
            raise ValueError("normalization 'constant' needs loss_constant, a number of tokens")
        if self.correction != "none" and self.proximal != "learner":
            raise ValueError(f"correction '{self.correction}' weighs the learner against the sampler: set proximal to 'learner'")
        if not 0 <= self.correction_low < self.correction_high:
            raise ValueError(f"correction_low {self.correction_low} must be below correction_high {self.correction_high}")
        if self.kl_target is not None and not self.kl_coefficient:
            raise ValueError("kl_target adapts kl_coefficient by factors: give that a start above 0")
        if self.needs_base and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has a gradient of mean 0 in the loss: nothing holds to the base; take k2 or k3")
        if self.entropy_target is not None and self.entropy_coefficient > self.entropy_limit:
            raise ValueError(
                f"entropy_coefficient {self.entropy_coefficient} is above entropy_limit {self.entropy_limit}, to which the first "
                "update would bring it down; raise the one or lower the other"
            )

    def idle(self) -> dict[str, str]:
        """Settings without effect as the others stand, each with what would give it one: a recipe that sets them is refused.

        ``idle_at_one_update`` names those that have none besides where a step is a single update.
        """
        idle: dict[str, str] = {}
        if not self.kl_coefficient:
            idle |= dict.fromkeys(("kl_in", "kl_estimator"), "a kl_coefficient above 0")
        if self.normalization != "constant":
            idle["loss_constant"] = "normalization: constant"
        if self.entropy_target is None:
            idle |= dict.fromkeys(("entropy_step", "entropy_limit"), "an entropy_target")
        if self.correction in ("none", "full"):
            idle |= dict.fromkeys(("correction_low", "correction_high"), "correction: truncate or mask")
        if self.correction == "none":
            idle["correction_level"] = "a correction"
        return idle

    def idle_at_one_update(self) -> set[str]:
        """Against the learner's own log-probabilities the first update's ratio is 1: nothing is clipped."""
        return {"clip_low", "clip_high"} if self.proximal == "learner" else set()

    @abstractmethod
    def advantages(self, rollout: Rollout) -> Tensor:
        """The advantage of each sampled token, [T]; ``rollout.spread`` gives an episode's to all of its tokens."""

    @abstractmethod
    def policy_loss(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Each token's loss with gradient, [T], and where clipping stopped its gradient, [T] bool."""

    def returns(self, rollout: Rollout) -> Tensor | None:
        """What a critic is fitted to at each token, [T]; None without a critic."""
        return None

    def learns_from(self, reward_PG: Tensor, valid_PG: Tensor) -> bool:
        """Whether these rewards (one environment's, one step's) would move the policy, terms beside the advantage left aside."""
        return bool(valid_PG.any())

    @property
    def needs_base(self) -> bool:
        """Whether log-probabilities under the base are needed for the loss."""
        return self.kl_in == "loss" and self.kl_coefficient > 0

    @property
    def penalises(self) -> bool:
        """Whether the KL to the base is taken from the reward."""
        return self.kl_in == "reward" and self.kl_coefficient > 0

    @property
    def has_other_terms(self) -> bool:
        """Whether the loss has terms that learn without rewards."""
        return self.needs_base or self.entropy_coefficient > 0 or self.entropy_target is not None or self.has_critic

    def start(self) -> Coefficients:
        return Coefficients(self.kl_coefficient, self.entropy_coefficient)

    def adapt(self, now: Coefficients, kl_base: float | None, entropy: float | None) -> Coefficients:
        """Coefficients for the next update, from the KL and entropy (nats a token) measured in this one."""
        beta, gamma, on = now.kl, now.entropy, now.entropy_on
        if self.kl_target is not None and kl_base is not None:
            beta = controllers.adapt_kl(beta, kl_base, self.kl_target)
        if self.entropy_target is not None and entropy is not None:
            gamma, on = controllers.adapt_entropy(gamma, entropy, self.entropy_target, self.entropy_step, self.entropy_limit)
        return Coefficients(beta, gamma, on)

    def loss(self, tokens: Tokens, totals: Totals, coefficients: Coefficients | None = None) -> tuple[Tensor, Sums]:
        """The micro-batch's part of the loss (0-dimensional, with gradient), and its sums over tokens.

        Infinite or NaN where the inputs are: the caller guards. Sums are float64 and detached; those of micro-batches add up.
        ``tokens`` counts, ``clipped`` counts, ``kl_old`` (k3 of sampling policy to trained one), ``kl_base`` (k3 of the
        trained one to the base), ``entropy`` and ``weight`` (importance weights) are sums over tokens.
        """
        c = self.start() if coefficients is None else coefficients
        per_token_T, clipped_T = self.policy_loss(tokens)
        if not per_token_T.shape == clipped_T.shape == tokens.logprob_T.shape:
            shapes = tuple(per_token_T.shape), tuple(clipped_T.shape), tuple(tokens.logprob_T.shape)
            raise ValueError(f"{type(self).__name__}.policy_loss: shapes {shapes[0]} and {shapes[1]} for tokens of {shapes[2]}")
        weight_T = importance_weights(tokens, self.correction, self.correction_level, self.correction_low, self.correction_high)
        if weight_T is not None:
            per_token_T = weight_T * per_token_T
        if self.needs_base:
            if tokens.base_logprob_T is None:
                raise ValueError("a KL term needs base_logprob_T")
            per_token_T = per_token_T + c.kl * kl.ESTIMATORS[self.kl_estimator](tokens.logprob_T, tokens.base_logprob_T)
        total = self._normalised(per_token_T, tokens, totals)
        if c.applied_entropy:
            if tokens.entropy_T is None:
                raise ValueError("an entropy term needs entropy_T")
            total = total - c.applied_entropy * (tokens.entropy_T.sum() / totals.tokens)
        return total, self._sums(tokens, clipped_T, weight_T)

    def _normalised(self, per_token_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        if self.normalization == "sequence":
            return (per_token_T / tokens.length_N[tokens.sequence_T]).sum() / totals.sequences
        if self.normalization == "constant":
            assert self.loss_constant is not None
            return per_token_T.sum() / (totals.sequences * self.loss_constant)
        return per_token_T.sum() / totals.tokens

    @torch.no_grad()
    def _sums(self, tokens: Tokens, clipped_T: Tensor, weight_T: Tensor | None) -> Sums:
        zero = torch.zeros((), dtype=torch.float64, device=tokens.logprob_T.device)
        base_T = tokens.base_logprob_T
        behaviour_T = tokens.old_logprob_T if tokens.sampler_logprob_T is None else tokens.sampler_logprob_T
        return {
            "tokens": zero + tokens.logprob_T.numel(),
            "clipped": clipped_T.sum().double(),
            # The sampler drew the tokens, so KL(sampler || new) is what the samples estimate.
            "kl_old": kl.k3(behaviour_T, tokens.logprob_T).sum().double(),
            "kl_base": zero if base_T is None else kl.k3(tokens.logprob_T, base_T).sum().double(),
            "entropy": zero if tokens.entropy_T is None else tokens.entropy_T.sum().double(),
            "weight": zero + tokens.logprob_T.numel() if weight_T is None else weight_T.sum().double(),
        }
