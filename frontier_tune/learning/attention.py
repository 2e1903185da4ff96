"""Causal attention over a pack, in transformers' attention registry, so that stock modelling code runs on flat rows.

Each segment attends to itself in a causal, right-padded block (no mask is needed: no real token sees a padded one), each group's
rests attend to their prefix in one rectangle, and the two parts of a softmax are merged by their log-sum-exp (as blocks are in
FlashAttention, arXiv:2205.14135, algorithm 1). Backward gives each block the *merged* output and log-sum-exp, with which the
block's gradients are exactly its share of the whole softmax's. In float32 on a CPU the native kernel does all this in one sweep
each way over the rows where they lie; the calls of torch's kernels on padded copies remain for other types and widths.

Attention sinks (``sinks``) join the log-sum-exp after the last block. Layers whose sliding window is shorter than a sequence take
another way (``windows``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface

from frontier_tune.learning import sinks as attention_sinks
from frontier_tune.learning.packing import Packed
from frontier_tune.learning.windows import windowed
from frontier_tune.native import build

NAME = "frontier_tune_packed"
# Stands for "no weight at all" in the log-sum-exp of padded slots, where exp(score - lse) must vanish and not overflow.
_PADDED_LSE = 1e30
_NATIVE_WIDTH = 256  # the widest head of the native kernel

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _heads_first(x_NLHD: Tensor) -> Tensor:
    return x_NLHD.transpose(1, 2)


class _PackedAttentionCPU(torch.autograd.Function):
    """q [T, heads, D], k and v [T, kv_heads, D], sinks [heads] or None -> [T, heads, D].

    Kept for backward: inputs, output, log-sum-exp [T, heads].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, sinks: Tensor | None = None) -> Tensor:
        out = torch.empty_like(q)
        lse: Tensor | None = None
        for b in packed.buckets:
            block = (_heads_first(x.index_select(0, b.row_NL).view(*b.size, *x.shape[1:])) for x in (q, k, v))
            o, ls = _flash(*block, 0.0, True, scale=scale)
            if lse is None:
                lse = ls.new_empty(q.shape[:2])
            for target, part in ((out, o), (lse, ls)):
                target.index_copy_(0, b.row_R, part.transpose(1, 2).flatten(0, 1).index_select(0, b.slot_R))
        assert lse is not None, "a pack has at least one segment"
        for rest, prefix in packed.cross:
            o, ls = _flash(*(_heads_first(x[None]) for x in (q[rest], k[prefix], v[prefix])), 0.0, False, scale=scale)
            o, ls = o[0].transpose(0, 1), ls[0].t()
            merged = torch.logaddexp(lse[rest], ls)
            out[rest].mul_((lse[rest] - merged).exp_()[..., None]).add_(o * (ls - merged).exp_()[..., None])
            lse[rest] = merged
        if sinks is not None:
            attention_sinks.discount(out, lse, sinks)
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.packed, ctx.scale = packed, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        dout = dout.contiguous()
        for b in ctx.packed.buckets:
            padding = b.slot_R.numel() < b.row_NL.numel()
            g, qb, kb, vb, ob, lb = (x.index_select(0, b.row_NL) for x in (dout, q, k, v, out, lse))
            if padding:
                pad = torch.ones(b.row_NL.numel(), dtype=torch.bool, device=q.device).index_fill_(0, b.slot_R, False)
                g[pad] = 0
                lb[pad] = _PADDED_LSE
            g, qb, kb, vb, ob, lb = (_heads_first(x.view(*b.size, *x.shape[1:])) for x in (g, qb, kb, vb, ob, lb))
            parts = _flash_backward(g, qb, kb, vb, ob, lb, 0.0, True, scale=ctx.scale)
            for target, part in zip((dq, dk, dv), parts, strict=True):
                target.index_copy_(0, b.row_R, part.transpose(1, 2).flatten(0, 1).index_select(0, b.slot_R))
        for rest, prefix in ctx.packed.cross:
            rows = (dout[rest], q[rest], k[prefix], v[prefix], out[rest], lse[rest])
            parts = _flash_backward(*(_heads_first(x[None]) for x in rows), 0.0, False, scale=ctx.scale)
            for target, part in zip((dq[rest], dk[prefix], dv[prefix]), parts, strict=True):
                target.add_(part[0].transpose(0, 1))
        return dq, dk, dv, None, None, _sink_gradient(ctx, dout, out, lse, sinks)


class _NativeAttention(torch.autograd.Function):
    """The same by the native kernel, which reads the rows where they are: no padded copies, one sweep each way."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, sinks: Tensor | None = None) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
        torch.ops.frontier_tune.packed_attention(q, k, v, packed.segments_S3, scale, out, lse)
        if sinks is not None:
            attention_sinks.discount(out, lse, sinks, bits=True)
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.packed, ctx.scale = packed, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        torch.ops.frontier_tune.packed_attention_backward(
            dout.contiguous(), q, k, v, out, lse, ctx.packed.segments_S3, ctx.scale, *grads
        )
        return *grads, None, None, _sink_gradient(ctx, dout, out, lse, sinks, bits=True)


def _sink_gradient(ctx: Any, dout: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None, bits: bool = False) -> Tensor | None:
    """None where the sinks are frozen, as they are under LoRA, or there are none."""
    if sinks is None or not ctx.needs_input_grad[5]:
        return None
    return attention_sinks.gradient(dout, out, lse, sinks, bits)


def _native(q: Tensor) -> bool:
    """Whether the native kernel takes heads of this type and width."""
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= _NATIVE_WIDTH and build.usable(q)


def _expands(q: Tensor) -> bool:
    """Whether keys and values are copied to all query heads: float32 kernels on CUDA that hold no scores know no groups."""
    return q.is_cuda and q.dtype == torch.float32


def _portable(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, sinks: Tensor | None = None) -> Tensor:
    """The same through torch's differentiable SDPA, for devices whose kernels give no log-sum-exp; without shared prefixes.

    Sinks are a key of their own then, with a query before the first one that sees it alone: causal as it stands, without a mask.
    """
    if packed.cross:
        raise ValueError("shared prefixes need the CPU path; pack without groups")
    out = torch.zeros_like(q)
    width = q.shape[-1]
    if sinks is not None:
        q, k, v = attention_sinks.widened(q, k, v, sinks, scale)
    for b in packed.buckets:
        qb, kb, vb = (_heads_first(x.index_select(0, b.row_NL).view(*b.size, *x.shape[1:])) for x in (q, k, v))
        if sinks is not None:
            qb, (kb, vb) = F.pad(qb, (0, 0, 1, 0)), attention_sinks.as_key(kb, vb, there=True)
        grouped = q.shape[1] != k.shape[1]
        if grouped and _expands(q):
            kb, vb = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (kb, vb))
            grouped = False
        o = F.scaled_dot_product_attention(qb, kb, vb, is_causal=True, scale=scale, enable_gqa=grouped)
        if sinks is not None:
            o = o[:, :, 1:, :width]
        out = out.index_copy(0, b.row_R, _heads_first(o).flatten(0, 1).index_select(0, b.slot_R))
    return out


def shares_prefixes(device: torch.device) -> bool:
    """Whether packs for ``device`` may share prefixes."""
    return device.type == "cpu"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, Dv].

    Of its keywords ``sliding_window`` (tokens, or None) and ``s_aux`` (attention sinks [heads], or None) count.
    """
    if packed is None or query.shape[0] != 1 or attention_mask is not None:
        raise ValueError("packed attention takes one row of packed tokens, packed=, and no mask")
    window, sinks = kwargs.get("sliding_window"), kwargs.get("s_aux")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    width = v.shape[-1]
    if q.shape[-1] != width:  # DeepSeek's latent attention: the kernels want one head size
        v = F.pad(v, (0, q.shape[-1] - width))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    if window is not None and window < packed.longest:
        out = windowed(q, k, v, packed, window, scale, sinks)
    elif shares_prefixes(q.device):
        attend = _NativeAttention if _native(q) else _PackedAttentionCPU
        out = attend.apply(q, k, v, packed, scale, sinks)
    else:
        out = _portable(q, k, v, packed, scale, sinks)
    return out[None, ..., :width], None


AttentionInterface.register(NAME, packed_attention)
