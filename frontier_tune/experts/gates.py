"""What stands between the two projections of an expert where it is not ``silu(gate) * up``: forward, and backward by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ClampedSwiGLU:
    """``(up + 1) gate sigmoid(alpha gate)`` with gate <= limit and |up| <= limit; gate and up alternate in z.

    As in gpt-oss (arXiv:2508.10925). Where a clamp holds a value it takes no gradient, as ``torch.clamp``'s does not.
    """

    alpha: float
    limit: float

    def forward(self, z: Tensor) -> Tensor:
        """[N, I] of z [N, 2I]."""
        gate, up = z[:, ::2].clamp(max=self.limit), z[:, 1::2].clamp(-self.limit, self.limit)
        return torch.sigmoid(gate * self.alpha).mul_(gate).mul_(up.add_(1))

    def backward(self, z: Tensor, dh: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z [N, 2I], the gradient dh [N, I] at h before the weight w [N, 1]: h, dz (weighted) and <dh, h> [N]."""
        gate, up = z[:, ::2].clamp(max=self.limit), z[:, 1::2].clamp(-self.limit, self.limit).add_(1)
        share = torch.sigmoid(gate * self.alpha)
        unit = gate * share
        h = unit * up
        dot = torch.sum(dh * h, dim=1)
        dh = dh * w
        dz = torch.empty_like(z)
        dz[:, 1::2] = (dh * unit).mul_(z[:, 1::2].abs() <= self.limit)
        slope = torch.addcmul(share, unit.mul_(self.alpha), 1 - share)  # s + alpha g s (1 - s)
        dz[:, ::2] = slope.mul_(dh).mul_(up).mul_(z[:, ::2] <= self.limit)
        return h, dz, dot


def of(experts: nn.Module) -> ClampedSwiGLU | None:
    """The gate of a transformers module of experts laid out as gpt-oss' are: weights [E, in, out], biases, a clamped gate.

    None for all others, and where the module's own gate gives something else than this one for the same numbers.
    """
    alpha, limit = getattr(experts, "alpha", None), getattr(experts, "limit", None)
    laid_out = getattr(experts, "is_transposed", False) and getattr(experts, "has_bias", False)
    if not laid_out or not isinstance(alpha, float) or not isinstance(limit, float):
        return None
    gate = ClampedSwiGLU(alpha, limit)
    probe = torch.linspace(-2 * limit, 2 * limit, 120)
    z = torch.stack([probe, probe.roll(37)], dim=-1).view(3, -1)  # on all sides of both limits
    theirs: Tensor = experts._apply_gate(z.clone())
    same = theirs.shape == (3, z.shape[1] // 2) and torch.allclose(theirs, gate.forward(z), rtol=1e-5, atol=1e-5)
    return gate if same else None
