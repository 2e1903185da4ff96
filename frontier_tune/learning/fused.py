"""Leaner forwards and backwards for three small modules that eager mode makes expensive: RMS norm, rotary embedding, LoRA linear.

On a CPU they are bound by memory: what stock code does in 5 to 12 passes over an activation takes 2 to 4 here. ``install``
puts them into a stock model, each only after it gave the stock module's own output on random input.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frontier_tune.native import build


class _RMSNorm(torch.autograd.Function):
    """``y = w x / sqrt(mean(x^2) + eps)`` (arXiv:1910.07467, eq. 4); x [..., H]. w has a gradient where it learns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        if build.usable(x):
            x = x.contiguous()
            ctx.save_for_backward(x, weight, None)
            y = torch.empty_like(x)
            torch.ops.frontier_tune.rms_norm(x, weight, eps, y)
            return y
        r = _root(x, eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = (x * (_root(x, ctx.eps) if r is None else r)).mul_(dy).reshape(-1, x.shape[-1]).sum(0)
        if r is None:
            dx = torch.empty_like(x)
            torch.ops.frontier_tune.rms_norm_backward(dy.contiguous(), x, weight, ctx.eps, dx)
            return dx, dweight, None
        g = dy * weight
        dot = torch.einsum("...h,...h->...", g, x).unsqueeze(-1)
        return g.mul_(r).addcmul_(x, dot * r.pow(3), value=-1 / x.shape[-1]), dweight, None


def _root(x: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` of each row, [..., 1]."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()


class _Rotary(torch.autograd.Function):
    """``x cos + rotate_half(x) sin`` (arXiv:2104.09864, eq. 34, in halves); x [..., D]; cos, sin broadcast to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        if (turned := _turn(x, cos, sin, False)) is not None:
            return turned
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        if (turned := _turn(dy, cos, sin, True)) is not None:
            return turned, None, None
        half = dy.shape[-1] // 2
        dx = dy * cos
        dx[..., half:].addcmul_(dy[..., :half], sin[..., :half], value=-1)
        dx[..., :half].addcmul_(dy[..., half:], sin[..., half:])
        return dx, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> Tensor | None:
    """The rotation (or its transpose) by the native kernel, where x is [1, heads, T, D] with the rows of a token together."""
    if not build.usable(x) or x.shape[0] != 1 or cos.shape != (1, 1, x.shape[2], x.shape[3]) or cos.dtype != x.dtype:
        return None
    rows = x[0].transpose(0, 1).contiguous()
    y = torch.empty_like(rows)
    torch.ops.frontier_tune.rotary(rows, *(t.reshape(t.shape[2:]).contiguous() for t in (cos, sin)), transposed, y)
    return y.transpose(0, 1)[None]


class _LoRALinear(torch.autograd.Function):
    """``x W^T + s (x A^T) B^T`` with a frozen W; x [T, in], A [R, in], B [out, R]. Kept for backward: x and x A^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
        xa = torch.mm(x, a.t())
        ctx.save_for_backward(x, weight, a, b, xa)
        ctx.s = s
        return torch.mm(x, weight.t()).addmm_(xa, b.t(), alpha=s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, xa = ctx.saved_tensors
        dxa = torch.mm(dy, b).mul_(ctx.s)
        dx = torch.mm(dy, weight).addmm_(dxa, a) if ctx.needs_input_grad[0] else None
        return dx, None, torch.mm(dxa.t(), x), torch.mm(xa.t(), dy).mul_(ctx.s).t(), None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation as a formula, for a compiler to make one kernel of."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """transformers' ``apply_rotary_pos_emb``: q, k [N, heads, T, D], cos and sin [N, T, D]."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    if torch.compiler.is_compiling():
        return _turned(q, cos, sin), _turned(k, cos, sin)
    return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)


def install(model: nn.Module) -> dict[str, int]:
    """Replace what can be replaced exactly; returns how many of each. Other dtypes than float32 and float64 stay stock."""
    counts = {"norms": 0, "linears": 0, "rotary": 0}
    sources: set[str] = set()
    for module in model.modules():
        sources.add(type(module).__module__)
        if type(module).__name__.endswith("RMSNorm") and _install_norm(module):
            counts["norms"] += 1
        elif type(module) is LoraLinear:
            _install_linear(module)
            counts["linears"] += 1
    for source in sources:
        counts["rotary"] += _install_rotary(sys.modules[source])
    return counts


def _exact(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.float64)


def _same(ours: Tensor, stock: Tensor) -> bool:
    return ours.dtype == stock.dtype and torch.allclose(ours, stock, rtol=1e-5, atol=1e-5)


def _install_norm(norm: nn.Module) -> bool:
    stock, weight, eps = norm.forward, getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if weight is None or eps is None or not _exact(weight.dtype):
        return False

    def forward(x: Tensor) -> Tensor:
        out: Tensor = _RMSNorm.apply(x, weight, eps) if x.dtype == weight.dtype else stock(x)
        return out

    with torch.no_grad():
        probe = torch.linspace(-2, 3, 3 * weight.shape[0], dtype=weight.dtype, device=weight.device).view(3, -1)
        if not _same(forward(probe), stock(probe)):
            return False
    norm.forward = forward
    return True


def _install_linear(layer: LoraLinear) -> None:
    stock = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, active = layer.get_base_layer(), layer.active_adapters
        plain = len(active) == 1 and active[0] in layer.lora_A and active[0] not in layer.lora_variant and not (args or kwargs)
        if not plain or layer.disable_adapters or layer.merged or base.bias is not None or layer.lora_dropout[active[0]].training:
            return stock(x, *args, **kwargs)
        a, b = layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight
        if layer.lora_bias.get(active[0]) or not x.dtype == a.dtype == base.weight.dtype:
            return stock(x)
        y: Tensor = _LoRALinear.apply(x.reshape(-1, x.shape[-1]), base.weight, a, b, layer.scaling[active[0]])
        return y.view(*x.shape[:-1], -1)

    layer.forward = forward


def _install_rotary(source: ModuleType) -> int:
    """Replace a modelling file's function, for all models of this process: same arguments, same numbers."""
    stock = getattr(source, "apply_rotary_pos_emb", None)
    if stock is None or stock is rotary:
        return 0
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 3, 8, generator=generator)
    angle = torch.rand(1, 3, 4, generator=generator).repeat(1, 1, 2)
    try:
        theirs = stock(q, k, angle.cos(), angle.sin())
    except (TypeError, ValueError, RuntimeError):
        return 0  # another convention (interleaved pairs, other arguments)
    if not all(_same(a, b) for a, b in zip(rotary(q, k, angle.cos(), angle.sin()), theirs, strict=True)):
        return 0
    source.apply_rotary_pos_emb = rotary  # type: ignore[attr-defined]
    return 1
