"""Estimators of KL(q || p) from samples x ~ q (J. Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html).

With ``r = p(x) / q(x)`` all take ``logq`` and ``logp``, natural logarithms of the same sampled tokens, of any one shape,
and return that shape. In RL q is the policy that is trained and p the reference.
"""

from __future__ import annotations

from torch import Tensor


def k1(logq: Tensor, logp: Tensor) -> Tensor:
    """``-log r``: unbiased, high variance, may be negative."""
    return logq - logp


def k2(logq: Tensor, logp: Tensor) -> Tensor:
    """``(log r)^2 / 2``: biased, low variance, never negative."""
    return (logp - logq).square() / 2


def k3(logq: Tensor, logp: Tensor) -> Tensor:
    """``(r - 1) - log r``: unbiased, low variance, never negative. The KL term of GRPO (arXiv:2402.03300, eq. 4)."""
    log_ratio = logp - logq
    return log_ratio.expm1() - log_ratio
