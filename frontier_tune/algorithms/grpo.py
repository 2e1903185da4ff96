"""The GRPO loss: clipped ratio with asymmetric bounds, normalised over the sampled tokens of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from frontier_tune.algorithms import kl


@dataclass
class LossSums:
    """Sums over tokens (not means), so that those of micro-batches add up. All float64, detached, 0-dimensional."""

    tokens: Tensor
    clipped: Tensor
    kl_old: Tensor
    kl_base: Tensor
    entropy: Tensor

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def loss(
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantage_T: Tensor,
    normalizer: float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    entropy_T: Tensor | None = None,
    entropy_coefficient: float = 0.0,
    base_logprob_T: Tensor | None = None,
    kl_coefficient: float = 0.0,
) -> tuple[Tensor, LossSums]:
    """``L = 1/N sum_t [ -min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t) + beta k3_t - gamma H_t ]``.

    ``rho_t = exp(logprob_t - old_logprob_t)`` is taken against the sampler's own log-probabilities, so one ratio corrects
    for both a newer policy and a sampler that rounds otherwise. Clipping: PPO (arXiv:1707.06347, eq. 7) with the
    asymmetric bounds and the token-level sum of DAPO (arXiv:2503.14476, eq. 10); KL term: GRPO (arXiv:2402.03300, eq. 3-4).

    Args:
        logprob_T: log-probabilities of the sampled tokens under the trained policy, [T], with gradient.
        old_logprob_T: the same tokens under the policy that sampled them, [T].
        advantage_T: the advantage of each token's episode, [T].
        normalizer: N, the sampled tokens of the *whole* batch that makes one optimizer update. It comes from outside,
            so the gradient of a batch is the plain sum over any split of it into micro-batches.
        clip_low, clip_high: the ratio's gradient stops below ``1 - clip_low`` (A < 0) and above ``1 + clip_high`` (A > 0).
        entropy_T, entropy_coefficient: the policy's entropy in nats at each token, and gamma. The entropy is reported in the
            sums where given, whatever gamma is.
        base_logprob_T, kl_coefficient: the tokens under the frozen base, and beta.

    Returns:
        The loss (0-dimensional; infinite or NaN where the inputs are: the caller guards), and the sums for metrics.
    """
    if not logprob_T.shape == old_logprob_T.shape == advantage_T.shape:
        shapes = [tuple(x.shape) for x in (logprob_T, old_logprob_T, advantage_T)]
        raise ValueError(f"shapes differ: log-probabilities, old ones and advantages have {shapes}")
    if not normalizer > 0:
        raise ValueError(f"normalizer must be positive, got {normalizer}")
    if kl_coefficient and base_logprob_T is None:
        raise ValueError("a KL term needs base_logprob_T")
    if entropy_coefficient and entropy_T is None:
        raise ValueError("an entropy term needs entropy_T")
    ratio_T = (logprob_T - old_logprob_T).exp()
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    per_token_T = -torch.min(ratio_T * advantage_T, clipped_T * advantage_T)
    base_kl_T = None if base_logprob_T is None else kl.k3(logprob_T, base_logprob_T)
    if base_kl_T is not None and kl_coefficient:
        per_token_T = per_token_T + kl_coefficient * base_kl_T
    if entropy_T is not None and entropy_coefficient:
        per_token_T = per_token_T - entropy_coefficient * entropy_T

    with torch.no_grad():
        outside = ((ratio_T < 1 - clip_low) & (advantage_T < 0)) | ((ratio_T > 1 + clip_high) & (advantage_T > 0))
        zero = torch.zeros((), dtype=torch.float64, device=logprob_T.device)
        sums = LossSums(
            tokens=zero + logprob_T.numel(),
            clipped=outside.sum().double(),
            # The old policy drew the tokens, so KL(old || new) is what the samples estimate.
            kl_old=kl.k3(old_logprob_T, logprob_T).sum().double(),
            kl_base=zero if base_kl_T is None else base_kl_T.sum().double(),
            entropy=zero if entropy_T is None else entropy_T.sum().double(),
        )
    return per_token_T.sum() / normalizer, sums
