"""Gated experts with LoRA, forward and backward, without a merged copy of the weights and without a full dW.

PEFT's ``target_parameters`` wrapper builds ``W + s B A`` for every expert in each forward and, in backward, the full
``[E, out, in]`` gradient that it then projects onto A and B. Both cost as much as full fine-tuning. Here the tokens are
sorted by expert, and each expert's contiguous rows take the frozen GEMM plus the low-rank path
``x W^T + s (x A^T) B^T`` (LoRA: arXiv:2106.09685, section 4.1).

``install`` puts this under an unchanged PEFT model: it replaces only the ``forward`` of the outermost wrapper of each
experts module and reads PEFT's own parameters, so saving, loading, merging and disabling adapters stay PEFT's.

gpt-oss' experts (biases, a clamped gate, weights [E, in, out]) take the path in torch, on every device; the native kernels have
neither biases nor that gate.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from frontier_tune.contracts import BadInput
from frontier_tune.experts import gates
from frontier_tune.native import build

# Weights of one projection of an expert up to which the native kernels are used: all three then stay in the second-level cache.
_NATIVE_EXPERT = 1 << 17


def _slices(count_E: list[int]) -> Iterator[tuple[int, slice]]:
    start = 0
    for expert, count in enumerate(count_E):
        if count:
            yield expert, slice(start, start + count)
        start += count


class _SwiGLUExperts(torch.autograd.Function):
    """See ``swiglu_experts``. Kept for backward: x, the pre-activations [S, 2I] and the two rank-r activations [S, R]."""

    @staticmethod
    def forward(
        ctx: Any, x_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up: Tensor, down: Tensor,
        a1: Tensor | None, b1: Tensor | None, s1: float, a2: Tensor | None, b2: Tensor | None, s2: float,
        gate: gates.ClampedSwiGLU | None = None, bias1: Tensor | None = None, bias2: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        (experts, hidden, width), top_k = down.shape, expert_TK.shape[1]
        flat_S = expert_TK.reshape(-1)
        order_S = torch.argsort(flat_S, stable=True)
        row_TK = torch.empty_like(order_S)
        row_TK[order_S] = torch.arange(order_S.numel(), device=order_S.device)
        row_TK = row_TK.view(-1, top_k)
        token_S = order_S // top_k
        counted_E = torch.bincount(flat_S, minlength=experts)
        count_E = counted_E.tolist()

        rows = token_S.numel()
        gate_up_S = x_TH.new_empty(rows, 2 * width)
        y_S = x_TH.new_empty(rows, hidden)
        xa_S = x_TH.new_empty(rows, a1.shape[1]) if a1 is not None else None
        ha_S = x_TH.new_empty(rows, a2.shape[1]) if a2 is not None else None
        for e, s in _slices(count_E):
            x = x_TH.index_select(0, token_S[s])
            z = _product(x, gate_up[e].t(), bias1, e, gate_up_S[s])
            if xa_S is not None and a1 is not None and b1 is not None:
                z.addmm_(torch.mm(x, a1[e].t(), out=xa_S[s]), b1[e], alpha=s1)
            h = _swiglu(z) if gate is None else gate.forward(z)
            y = _product(h, down[e].t(), bias2, e, y_S[s])
            if ha_S is not None and a2 is not None and b2 is not None:
                y.addmm_(torch.mm(h, a2[e].t(), out=ha_S[s]), b2[e], alpha=s2)
        kept = (order_S, row_TK, gate_up_S, xa_S, ha_S, counted_E)
        # Counts are a tensor, too: where a layer is run again, all that is kept is of that run.
        ctx.save_for_backward(x_TH, weight_TK, gate_up, down, a1, b1, a2, b2, bias1, bias2, *kept)
        ctx.s1, ctx.s2, ctx.gate = s1, s2, gate
        return _combine(row_TK, y_S, weight_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TH: Tensor) -> tuple[Tensor | None, ...]:
        x_TH, weight_TK, gate_up, down, a1, b1, a2, b2, bias1, bias2, *kept = ctx.saved_tensors
        order_S, row_TK, gate_up_S, xa_S, ha_S, counted_E = kept
        need_x, _, need_w, need_gate_up, need_down = ctx.needs_input_grad[:5]
        backward = _swiglu_backward if ctx.gate is None else ctx.gate.backward
        s1, s2 = ctx.s1, ctx.s2
        token_S = order_S // row_TK.shape[1]
        weight_S1 = weight_TK.reshape(-1)[order_S].to(x_TH.dtype)[:, None]
        dout_TH = dout_TH.contiguous()

        dx_S = x_TH.new_empty(token_S.numel(), x_TH.shape[1]) if need_x else None
        dweight_S = x_TH.new_empty(token_S.numel()) if need_w else None
        da1, db1, da2, db2 = (None if p is None else torch.zeros_like(p) for p in (a1, b1, a2, b2))
        dgate_up = torch.zeros_like(gate_up) if need_gate_up else None
        ddown = torch.zeros_like(down) if need_down else None
        need_biases = ctx.needs_input_grad[12:] or (False, False)
        dbias1, dbias2 = (torch.zeros_like(b) if need else None for b, need in zip((bias1, bias2), need_biases, strict=True))
        for e, s in _slices(counted_E.tolist()):
            tokens, w = token_S[s], weight_S1[s]
            dy = dout_TH.index_select(0, tokens)  # without the routing weight: that comes in at h, which is narrower
            z = gate_up_S[s]
            dh = torch.mm(dy, down[e])
            if da2 is not None and db2 is not None and a2 is not None and b2 is not None and ha_S is not None:
                dha = torch.mm(dy, b2[e].t()).mul_(s2)
                dh.addmm_(dha, a2[e])
            h, dz, dweight = backward(z, dh, w)
            if dweight_S is not None:  # d/dw <dout, w y(h)> = <dout, y(h)> = <dh, h> (+ <dout, bias>): y need not be kept
                dweight_S[s] = dweight if bias2 is None else torch.addmv(dweight, dy, bias2[e])
            if dbias1 is not None:
                dbias1[e] = dz.sum(0)
            if dbias2 is not None:
                dbias2[e] = (dy * w).sum(0)
            if da2 is not None and db2 is not None and ha_S is not None:
                torch.mm((dha * w).t(), h, out=da2[e])
                torch.mm((ha_S[s] * w).mul_(s2).t(), dy, out=db2[e])
            if ddown is not None:
                torch.mm((dy * w).t(), h, out=ddown[e])
            x = x_TH.index_select(0, tokens) if da1 is not None or dgate_up is not None else None
            dx = torch.mm(dz, gate_up[e], out=dx_S[s]) if dx_S is not None else None
            if da1 is not None and db1 is not None and a1 is not None and b1 is not None and xa_S is not None:
                dxa = torch.mm(dz, b1[e].t()).mul_(s1)
                if dx is not None:
                    dx.addmm_(dxa, a1[e])
                torch.mm(dxa.t(), x, out=da1[e])
                torch.mm((xa_S[s] * s1).t(), dz, out=db1[e])
            if dgate_up is not None:
                torch.mm(dz.t(), x, out=dgate_up[e])
        dx_TH = _combine(row_TK, dx_S) if dx_S is not None else None
        dweight_TK = dweight_S[row_TK].to(weight_TK.dtype) if dweight_S is not None else None
        return dx_TH, None, dweight_TK, dgate_up, ddown, da1, db1, None, da2, db2, None, None, dbias1, dbias2


class _NativeSwiGLUExperts(torch.autograd.Function):
    """The same with frozen weights by the native kernels. Kept for backward: as above, in tiles of tokens, and the order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor,
        a1: Tensor | None, b1: Tensor | None, s1: float, a2: Tensor | None, b2: Tensor | None, s2: float,
    ) -> Tensor:  # fmt: skip
        x, ids, weights = (t.contiguous() for t in (x, ids, weights))
        wide, narrow = (([] if a is None or b is None else [a.contiguous(), b]) for a, b in ((a1, b1), (a2, b2)))
        pairs, experts = ids.numel(), down.shape[0]
        places = pairs + 31 * min(experts, pairs)  # an expert's rows begin a tile
        kept = [
            torch.empty(pairs, dtype=torch.int32),
            torch.empty(experts + 1, dtype=torch.int32),
            *(
                x.new_empty(places, n)
                for n in (gate_up.shape[1], wide[0].shape[1] if wide else 0, narrow[0].shape[1] if narrow else 0)
            ),
        ]
        out = torch.empty_like(x)
        torch.ops.frontier_tune.training_experts(x, ids, weights, gate_up, down, wide, narrow, s1, s2, kept, out)
        ctx.save_for_backward(x, ids, weights, gate_up, down, *kept, *wide, *narrow)
        ctx.wide, ctx.scales = len(wide), (s1, s2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        every = ctx.saved_tensors  # once: a checkpointed layer gives them out a single time
        saved, kept, lora = every[:5], list(every[5:10]), list(every[10:])
        x, wide, narrow = saved[0], lora[: ctx.wide], lora[ctx.wide :]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else x.new_empty(0)
        dweights, dwide, dnarrow = (
            torch.empty_like(saved[2]),
            [torch.empty_like(t) for t in wide],
            [torch.empty_like(t) for t in narrow],
        )
        torch.ops.frontier_tune.training_experts_backward(
            dout.contiguous(), *saved, wide, narrow, *ctx.scales, kept, dx, dweights, dwide, dnarrow
        )
        none = [None, None]
        return (
            dx if ctx.needs_input_grad[0] else None,
            None,
            dweights,
            None,
            None,
            *(dwide or none),
            None,
            *(dnarrow or none),
            None,
        )


def _native(x: Tensor, weight_TK: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Whether the native kernels take these: float32 on a CPU, frozen weights of a small enough expert."""
    return (
        x.shape[1] % 16 == 0
        and down[0].numel() <= _NATIVE_EXPERT
        and not (gate_up.requires_grad or down.requires_grad)
        and all(t.dtype == torch.float32 for t in (weight_TK, gate_up, down))
        and gate_up.is_contiguous()
        and down.is_contiguous()
        and build.usable(x)
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, expert: int, out: Tensor) -> Tensor:
    """x W into ``out``, with the expert's bias where there is one."""
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias[expert], x, weight, out=out)


def _swiglu(z: Tensor) -> Tensor:
    """silu(gate) * up of z [N, 2I] = [gate | up]."""
    width = z.shape[1] // 2
    if build.usable(z):
        h = z.new_empty(z.shape[0], width)
        torch.ops.frontier_tune.swiglu(z, h)
        return h
    return F.silu(z[:, :width]).mul_(z[:, width:])


def _swiglu_backward(z: Tensor, dh: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From z [N, 2I], the gradient dh [N, I] at h before the weight w [N, 1]: h, dz (weighted) and the weight's gradient [N]."""
    width = z.shape[1] // 2
    dz = torch.empty_like(z)
    if build.usable(z):
        h, dweight = torch.empty_like(dh), dh.new_empty(dh.shape[0])
        torch.ops.frontier_tune.swiglu_backward(z, dh, w, h, dz, dweight)
        return h, dz, dweight
    gate, up = z[:, :width], z[:, width:]
    act = F.silu(gate)
    h = act * up
    dweight = torch.sum(dh * h, dim=1)
    dh = dh * w
    torch.mul(dh, act, out=dz[:, width:])
    dz[:, :width] = torch.ops.aten.silu_backward(dh.mul_(up), gate)
    return h, dz, dweight


def _device_kernels(x: Tensor) -> ModuleType | None:
    """Triton's kernels for the device of x; None on a CPU."""
    return _verified(x.device, x.dtype) if x.is_cuda else None


@functools.cache
def _verified(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """``grouped.experts``, which gave the formula's results on ``device``; None, and a warning, where it does not."""
    if importlib.util.find_spec("triton") is None:
        return None
    from frontier_tune.experts.grouped import experts

    if dtype not in experts.TOLERANCE:
        return None
    try:
        experts.verify(device, dtype)
    except experts.KernelRefused as e:
        warnings.warn(f"{e}; they are not used, and torch's path runs instead", RuntimeWarning, stacklevel=2)
        return None
    return experts


def _combine(row_TK: Tensor, rows_SH: Tensor, weight_TK: Tensor | None = None) -> Tensor:
    """Sum (weighted) of each token's K rows: [T, H]. One fused gather-and-add; deterministic, unlike index_add on CUDA."""
    if row_TK.numel() == 0:
        return rows_SH.new_zeros(row_TK.shape[0], rows_SH.shape[1])
    weights = None if weight_TK is None else weight_TK.to(rows_SH.dtype).contiguous()
    return F.embedding_bag(row_TK, rows_SH, mode="sum", per_sample_weights=weights)


def swiglu_experts(
    x_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up: Tensor, down: Tensor,
    lora_gate_up: tuple[Tensor, Tensor, float] | None = None, lora_down: tuple[Tensor, Tensor, float] | None = None,
    gate: gates.ClampedSwiGLU | None = None, biases: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """``y_t = sum_k w_tk down_e(silu(gate_e x_t) * up_e x_t)`` with ``e = expert_tk``, each projection optionally with LoRA.

    Args:
        x_TH: hidden states [T, H]; T may be 0.
        expert_TK: chosen experts [T, K], integers in [0, E); each at most once a token.
        weight_TK: routing weights [T, K].
        gate_up: [E, 2I, H], gate above up (the layout of transformers 5), or as ``gate`` takes them. Frozen or trainable. A view
            of transposed weights will do.
        down: [E, H, I]. Frozen or trainable.
        lora_gate_up: PEFT's ``(A [E*R, H] expert-major, B [2I, R*E] rank-major, scaling)``, or None.
        lora_down: ``(A [E*R, I], B [H, R*E], scaling)``, or None.
        gate: another activation than ``silu(gate) * up``.
        biases: of the two projections, [E, 2I] and [E, H].

    Returns:
        [T, H] in the dtype of ``x_TH``; adapters of another dtype are cast, and their gradients come back in their own.
    """
    a1, b1, s1 = _per_expert(lora_gate_up, gate_up.shape[0], x_TH.dtype)
    a2, b2, s2 = _per_expert(lora_down, down.shape[0], x_TH.dtype)
    if gate is not None or biases is not None:
        more = (gate, *(biases or (None, None)))
        return _SwiGLUExperts.apply(x_TH, expert_TK, weight_TK, gate_up, down, a1, b1, s1, a2, b2, s2, *more)
    if _native(x_TH, weight_TK, gate_up, down):
        return _NativeSwiGLUExperts.apply(x_TH, expert_TK, weight_TK, gate_up, down, a1, b1, s1, a2, b2, s2)
    if (grouped := _device_kernels(x_TH)) is not None and grouped.takes(x_TH, gate_up, down, a1, a2):
        return grouped.swiglu_experts(x_TH, expert_TK, weight_TK, gate_up, down, a1, b1, s1, a2, b2, s2)
    return _SwiGLUExperts.apply(x_TH, expert_TK, weight_TK, gate_up, down, a1, b1, s1, a2, b2, s2)


def _per_expert(
    lora: tuple[Tensor, Tensor, float] | None, experts: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, float]:
    """PEFT's stacked matrices as A [E, R, in] and B^T [E, R, out]. The copies are of adapter size, never of weight size."""
    if lora is None:
        return None, None, 1.0
    a, b, scaling = lora
    a_ERi = a.to(dtype).reshape(experts, -1, a.shape[1])
    b_ERo = b.to(dtype).reshape(b.shape[0], -1, experts).permute(2, 1, 0).contiguous()
    return a_ERi, b_ERo, float(scaling)


class _ExpertsForward:
    """The replaced ``forward`` of the outermost ParamWrapper of one experts module."""

    def __init__(self, wrapper: ParamWrapper) -> None:
        self.stock = wrapper.forward
        self.outer = wrapper
        layer: nn.Module = wrapper
        self.by_name: dict[str, ParamWrapper] = {}
        while isinstance(layer, ParamWrapper):
            self.by_name[layer.parameter_name] = layer
            layer = layer.base_layer
        self.base = layer
        self.gate = gates.of(layer)

    def _lora(self, parameter: str) -> tuple[Tensor, Tensor, float] | None:
        wrapper = self.by_name.get(parameter)
        if wrapper is None or wrapper.disable_adapters or wrapper.merged:
            return None
        active = [a for a in wrapper.active_adapters if a in wrapper.lora_A]
        if not active:
            return None
        (name,) = active  # __call__ hands more than one to PEFT
        return wrapper.lora_A[name].weight, wrapper.lora_B[name].weight, wrapper.scaling[name]

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if len(self.outer.active_adapters) > 1 and not self.outer.disable_adapters:
            return self.stock(hidden_states, top_k_index, top_k_weights)
        for wrapper in self.by_name.values():
            if wrapper.disable_adapters and wrapper.merged:
                wrapper.unmerge()  # as PEFT's own forward does: else the base would be one that holds the adapter
        base, gate_up, down, biases = self.base, self.base.gate_up_proj, self.base.down_proj, None
        if self.gate is not None:  # with it come biases, and weights [E, in, out]
            gate_up, down, biases = gate_up.mT, down.mT, (base.gate_up_proj_bias, base.down_proj_bias)
        lora = self._lora("gate_up_proj"), self._lora("down_proj")
        return swiglu_experts(hidden_states, top_k_index, top_k_weights, gate_up, down, *lora, self.gate, biases)


def why_not(experts: nn.Module) -> str:
    """Why this experts module can't take the path above as one without biases or a gate of its own; empty if it can."""
    for name in ("gate_up_proj", "down_proj"):
        if getattr(experts, name, None) is None or getattr(experts, name).ndim != 3:
            return f"it has no 3-D parameter {name}"
    if getattr(experts, "is_transposed", False) or getattr(experts, "has_bias", False):
        return "its weights are transposed or have biases"
    if (
        not isinstance(getattr(experts, "act_fn", None), nn.SiLU)
        and type(getattr(experts, "act_fn", None)).__name__ != "SiLUActivation"
    ):
        return f"its activation is {type(getattr(experts, 'act_fn', None)).__name__}, not SiLU"
    if not getattr(experts, "is_concatenated", True) or type(experts)._apply_gate.__module__ != "transformers.integrations.moe":
        return "it gates in its own way"
    return ""


def install(model: nn.Module) -> int:
    """Run every LoRA-wrapped experts module of a PEFT model through ``swiglu_experts``; returns how many there were.

    Raises:
        BadInput: no experts module carries LoRA (a target that matched nothing), or one has another layout.
    """
    inner = {id(m.base_layer) for m in model.modules() if isinstance(m, ParamWrapper)}
    outermost = [(n, m) for n, m in model.named_modules() if isinstance(m, ParamWrapper) and id(m) not in inner]
    for name, wrapper in outermost:
        forward = _ExpertsForward(wrapper)
        if reason := "" if forward.gate is not None else why_not(forward.base):
            raise BadInput(f"{name}: LoRA over these experts is not supported, because {reason}; set adapter.experts to false")
        wrapper.forward = forward
    if not outermost:
        raise BadInput("adapter.experts: no expert parameters matched the LoRA targets; is the base a mixture of experts?")
    return len(outermost)
