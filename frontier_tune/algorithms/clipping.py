"""The clipped surrogate of PPO, and the value loss that is clipped alike."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """``-min(rho A, clip(rho, 1 - low, 1 + high) A)`` and where its gradient has stopped (PPO, arXiv:1707.06347, eq. 7).

    With ``high`` > ``low``: DAPO's clip-higher (arXiv:2503.14476, eq. 10). ``ratio`` and ``advantage`` share any one shape; so do
    the loss and the mask. The gradient stops below ``1 - low`` where A < 0 and above ``1 + high`` where A > 0.
    """
    loss = -torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    with torch.no_grad():
        outside = ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))
    return loss, outside


def by_token(logprob_T: Tensor) -> Tensor:
    """Ones whose gradient is that of each token's own log-probability, [T] (GSPO, arXiv:2507.18071, eq. 14)."""
    return (logprob_T - logprob_T.detach()).exp()


def clipped_value_loss(value_T: Tensor, old_value_T: Tensor, return_T: Tensor, clip: float) -> Tensor:
    """``1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)`` of each token, [T]; with clip 0 ``(V - R)^2 / 2``.

    The larger of the two, so a value that has moved further than ``clip`` gets no gradient (as in the code of PPO's authors:
    openai/baselines, ppo2; discussed in "The 37 implementation details of PPO", ICLR blog track 2022, detail 9).
    """
    loss_T = (value_T - return_T).square()
    if clip:
        near_T = old_value_T + (value_T - old_value_T).clamp(-clip, clip)
        loss_T = torch.max(loss_T, (near_T - return_T).square())
    return loss_T / 2
