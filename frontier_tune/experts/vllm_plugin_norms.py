"""RMS norm on CPU as one pass: vLLM's own falls back to eight separate operators there.

Registered through vLLM's public table of implementations (``vllm.ir``); the engine chooses it by ``PRIORITY``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import ir

from frontier_tune.native import build

PROVIDER = "frontier_tune"
PRIORITY = {"rms_norm": [PROVIDER, "native"], "fused_add_rms_norm": [PROVIDER, "native"]}


def _plain(x: Any, weight: Any, variance_size: Any) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype == torch.float32


def _norm_args(x: Any, weight: Any, epsilon: Any, variance_size: Any = None) -> bool:
    return _plain(x, weight, variance_size)


def _add_norm_args(x: Any, x_residual: Any, weight: Any, epsilon: Any, variance_size: Any = None) -> bool:
    return _plain(x, weight, variance_size) and x.is_contiguous() and x_residual.is_contiguous()


def _rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    assert weight is not None
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.frontier_tune.rms_norm(x.contiguous(), weight, epsilon, out)
    return out


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    assert weight is not None
    torch.ops.frontier_tune.add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def install() -> list[str]:
    """Offer both norms to vLLM. Returns what was changed."""
    build.load()
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_norm_args, supported=True)(_rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_add_norm_args, supported=True, inplace=True)(
        _fused_add_rms_norm
    )
    return ["RMS norms in float32 are computed in one pass"]
