"""Estimators of KL(q || p) from samples x ~ q (J. Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html).

With ``r = p(x) / q(x)`` all take ``logq`` and ``logp``, natural logarithms of the same sampled tokens, of any one shape,
and return that shape. In RL q is the policy that is trained and p the reference.

As a *term of the loss* what counts is the gradient: that of k1 has expectation 0, that of k2 is the KL's own on policy, that of
k3 (GRPO's choice) is biased but bounded. In the *reward*, k1 is the unbiased one (arXiv:2506.09477 compares them).
"""

from __future__ import annotations

from collections.abc import Callable

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


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
