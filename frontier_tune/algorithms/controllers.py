"""Controllers of the loss's coefficients: KL to a target, entropy to a target. Plain numbers in, plain numbers out."""

from __future__ import annotations

# Ziegler et al., arXiv:1909.08593, section 2.2: error clipped to 20 %, gain K_beta = 0.1.
KL_ERROR_LIMIT = 0.2
KL_GAIN = 0.1


def adapt_kl(coefficient: float, kl: float, target: float) -> float:
    """The KL coefficient for the next update: ``beta * (1 + 0.1 * clip((kl - target) / target, -0.2, 0.2))``.

    So it moves by at most 2 % an update (arXiv:1909.08593, section 2.2). ``kl`` and ``target`` in one unit: here nats a token.
    """
    error = max(-KL_ERROR_LIMIT, min(KL_ERROR_LIMIT, (kl - target) / target))
    return coefficient * (1 + KL_GAIN * error)


def adapt_entropy(coefficient: float, entropy: float, target: float, step: float, limit: float) -> tuple[float, bool]:
    """The entropy coefficient for the next update, and whether it is applied (Skywork-OR1, arXiv:2505.22312).

    At or below the target it rises by ``step`` and is applied; above, it falls by ``step`` and is not. Stays in [0, limit].
    """
    low = entropy <= target
    return min(limit, max(0.0, coefficient + (step if low else -step))), low
