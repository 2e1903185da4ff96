"""SwiGLU experts with LoRA by the Triton programs of ``kernels``: what ``lora_experts.swiglu_experts`` runs on CUDA.

``verify`` compares them with the formula on a device. Nothing else may run there before it has passed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.errors import TritonError

from frontier_tune.experts.grouped import kernels

# Largest deviation from the formula, as a share of the largest value; a product's operands are rounded to the type.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
MOST_RANK, MOST_EXPERTS = 128, 4096

_INTERPRETED = bool(kernels.INTERPRETED)
# Columns of a tile, warps, stages. gate_up_kernel has two sums for each column, down_backward_kernel a long epilogue.
_CONFIGS = {
    kernels.gate_up_kernel: ((32, 4, 4), (64, 4, 4), (64, 8, 3), (128, 8, 3)),
    kernels.project_kernel: ((64, 4, 4), (128, 4, 3), (128, 8, 3), (256, 8, 3)),
    kernels.down_backward_kernel: ((32, 4, 4), (64, 4, 3), (64, 8, 3), (128, 8, 3)),
}
_NARROWEST = 16 if _INTERPRETED else 32  # columns of the narrowest tile of down_backward_kernel


class KernelRefused(RuntimeError):
    """The kernels do not compile on a device, or do not give there what the formula gives."""


@functools.cache
def _tuned(kernel: Any, bytes_each: int) -> Any:
    """The kernel with its shapes of tiles, the fastest of which is measured once for each size and kept on disk.

    All have the same BLOCK_K, in whose steps a sum is taken. Measuring runs them all on the call's own tensors, and narrower
    tiles leave more parts of the routing weights' gradient than the chosen ones write over: they are wiped.
    """
    block_k = 64 if bytes_each == 2 else 32
    configs = [triton.Config({"BLOCK_N": n, "BLOCK_K": block_k}, num_warps=w, num_stages=s) for n, w, s in _CONFIGS[kernel]]
    key, wiped = ["K", "N", "E", "BLOCK_M", "BLOCK_R"], ["dweight"] if kernel is kernels.down_backward_kernel else None
    return triton.autotune(configs, key=key, reset_to_zero=wiped, cache_results=True)(kernel)


def _launch(kernel: Any, tiles: int, columns: int, like: Tensor, *arguments: Any, **constants: Any) -> None:
    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (tiles * triton.cdiv(columns, meta["BLOCK_N"]),)

    if _INTERPRETED:  # small tiles, so that small tests have several
        kernel[grid](*arguments, BLOCK_N=16, BLOCK_K=16, **constants)
    else:
        _tuned(kernel, like.element_size())[grid](*arguments, **constants)


def _rank_block(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


class _Plan:
    """Rows sorted by expert, found without a word to the host: ``order``, its inverse and the experts' offsets."""

    def __init__(self, order: Tensor, inverse: Tensor, offsets: Tensor, top_k: int) -> None:
        self.order, self.inverse, self.offsets, self.top_k = order, inverse, offsets, top_k
        self.rows, self.experts = order.numel(), offsets.numel() - 1

    @classmethod
    def of(cls, ids: Tensor, experts: int) -> _Plan:
        ordered, order = torch.sort(ids.reshape(-1), stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        bounds = torch.arange(experts + 1, device=ids.device, dtype=ordered.dtype)
        return cls(order, inverse, torch.searchsorted(ordered, bounds, out_int32=True), ids.shape[1])

    def tiles(self, like: Tensor, rank: int, most: int = 128) -> tuple[int, dict[str, Any]]:
        """How many tiles of up to ``most`` rows there can be at most, and the constants of a launch over them."""
        block = min(most, max(16, triton.next_power_of_2(triton.cdiv(self.rows, self.experts))))
        block = min(block, 64 if like.element_size() == 4 or rank > 32 else 128)  # what is summed stays in registers
        used = min(self.experts, self.rows)  # of which each has less than a tile over
        return (self.rows + used * (block - 1)) // block, {
            "BLOCK_M": block, "BLOCK_E": max(16, triton.next_power_of_2(self.experts)), "BLOCK_R": _rank_block(rank),
            "LORA": rank > 0,
        }  # fmt: skip


def _project(left: Tensor, plan: _Plan, weight: Tensor, a: Tensor | None, b: Tensor | None, scale: float, keep: bool) -> Any:
    """left [S, in] times each expert's weight [E, out, in], with a [E, R, in] and b [E, R, out]: [S, out], and left a^T."""
    out = left.new_empty(plan.rows, weight.shape[1])
    rank = 0 if a is None else a.shape[1]
    low = left.new_empty(plan.rows, rank) if keep else left
    tiles, constants = plan.tiles(left, rank)
    _launch(
        kernels.project_kernel, tiles, weight.shape[1], left,
        left, plan.offsets, weight, left if a is None else a, left if b is None else b, out, low,
        plan.experts, weight.shape[2], weight.shape[1], rank, *weight.stride(), scale, KEEP=keep, **constants,
    )  # fmt: skip
    return out, low


def _outer(
    low: Tensor, wide: Tensor, plan: _Plan, scale: float, like: Tensor, gather: bool = False, routing: Tensor | None = None
) -> Tensor:
    """Gradient of a low-rank matrix ``like`` [E, R, N]: scale * low^T wide over each expert's rows."""
    out = torch.empty_like(like)
    experts, rank, columns = like.shape
    block = 16 if _INTERPRETED else 128
    kernels.outer_kernel[(experts * triton.cdiv(columns, block),)](
        low, wide, plan.order, plan.offsets, low if routing is None else routing, out, columns, rank, scale,
        TOP_K=plan.top_k, GATHER=gather, WEIGHTED=routing is not None,
        BLOCK_M=16 if _INTERPRETED else 32, BLOCK_N=block, BLOCK_R=_rank_block(rank),
    )  # fmt: skip
    return out


def _combine(rows: Tensor, plan: _Plan, tokens: int, routing: Tensor | None = None) -> Tensor:
    out = rows.new_empty(tokens, rows.shape[1])
    block = min(1024, triton.next_power_of_2(rows.shape[1]))
    kernels.combine_kernel[(tokens, triton.cdiv(rows.shape[1], block))](
        rows, plan.inverse, plan.offsets, rows if routing is None else routing, out, plan.experts, rows.shape[1],
        TOP_K=plan.top_k, WEIGHTED=routing is not None, BLOCK_N=block,
    )  # fmt: skip
    return out


class _GroupedSwiGLUExperts(torch.autograd.Function):
    """See ``swiglu_experts``. Kept for backward: x, the pre-activations [S, 2I], the two rank-r activations, and the order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor, routing: Tensor, gate_up: Tensor, down: Tensor,
        a1: Tensor | None, b1: Tensor | None, s1: float, a2: Tensor | None, b2: Tensor | None, s2: float, keep: bool,
    ) -> Tensor:  # fmt: skip
        x, routing = x.contiguous(), routing.contiguous()
        a1, a2 = (None if a is None else a.contiguous() for a in (a1, a2))
        experts, _, width = down.shape
        if not ids.numel():
            ctx.save_for_backward(x, routing, a1, b1, a2, b2)
            return torch.zeros_like(x)
        plan = _Plan.of(ids, experts)
        rank = 0 if a1 is None else a1.shape[1]
        z = x.new_empty(plan.rows, 2 * width) if keep else x
        xa = x.new_empty(plan.rows, rank) if keep else x
        h = x.new_empty(plan.rows, width)
        tiles, constants = plan.tiles(x, rank)
        _launch(
            kernels.gate_up_kernel, tiles, width, x,
            x, plan.order, plan.offsets, gate_up, x if a1 is None else a1, x if b1 is None else b1, z, h, xa,
            experts, x.shape[1], width, rank, *gate_up.stride(), s1, TOP_K=plan.top_k, KEEP=keep, **constants,
        )  # fmt: skip
        y, ha = _project(h, plan, down, a2, b2, s2, keep)
        if keep:
            ctx.save_for_backward(x, routing, a1, b1, a2, b2, gate_up, down, plan.order, plan.inverse, plan.offsets, z, xa, ha)
        ctx.s1, ctx.s2, ctx.top_k = s1, s2, plan.top_k
        return _combine(y, plan, x.shape[0], routing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, routing, a1, b1, a2, b2, *rest = ctx.saved_tensors  # once: a checkpointed layer gives them out a single time
        need_x, _, need_routing = ctx.needs_input_grad[:3]
        if not rest:
            dx, drouting, da1, db1, da2, db2 = (None if t is None else torch.zeros_like(t) for t in (x, routing, a1, b1, a2, b2))
            return dx, None, drouting, None, None, da1, db1, None, da2, db2, None, None
        gate_up, down, order, inverse, offsets, z, xa, ha = rest
        plan, dout = _Plan(order, inverse, offsets, ctx.top_k), dout.contiguous()
        width, rank = down.shape[2], 0 if a2 is None else a2.shape[1]
        h = x.new_empty(plan.rows, width) if rank else x
        dz = torch.empty_like(z)
        dha = x.new_empty(plan.rows, rank)
        # Its own even where nobody asks for it: the tuner wipes what is given as dweight.
        parts = x.new_zeros(triton.cdiv(width, _NARROWEST) if need_routing else 0, plan.rows, dtype=torch.float32)
        tiles, constants = plan.tiles(x, rank, most=64)  # its epilogue needs registers of its own
        back = down.transpose(1, 2)
        _launch(
            kernels.down_backward_kernel, tiles, width, x,
            dout, order, offsets, back, x if b2 is None else b2, x if a2 is None else a2, z, routing, h, dz, dha, parts,
            plan.rows, plan.experts, back.shape[2], width, rank, *back.stride(), ctx.s2,
            TOP_K=plan.top_k, WEIGHTS=need_routing, **constants,
        )  # fmt: skip
        dx = da1 = db1 = da2 = db2 = None
        if a2 is not None and b2 is not None:
            da2 = _outer(dha, h, plan, ctx.s2, a2)
            db2 = _outer(ha, dout, plan, ctx.s2, b2, gather=True, routing=routing)
        if need_x or a1 is not None:
            dx_rows, dxa = _project(dz, plan, gate_up.transpose(1, 2), b1, a1, ctx.s1, keep=True)
            dx = _combine(dx_rows, plan, x.shape[0]) if need_x else None
            if a1 is not None and b1 is not None:
                da1 = _outer(dxa, x, plan, ctx.s1, a1, gather=True)
                db1 = _outer(xa, dz, plan, ctx.s1, b1)
        drouting = None
        if need_routing:
            drouting = parts.sum(dim=0)[inverse].view(routing.shape).to(routing.dtype)
        return dx, None, drouting, None, None, da1, db1, None, da2, db2, None, None


def takes(x: Tensor, gate_up: Tensor, down: Tensor, a1: Tensor | None = None, a2: Tensor | None = None) -> bool:
    """Whether the kernels take these: frozen weights of the type of x, which is not float64, and ranks up to MOST_RANK."""
    return (
        x.dtype in TOLERANCE
        and x.dtype == gate_up.dtype == down.dtype
        and not (gate_up.requires_grad or down.requires_grad)
        and down.shape[0] <= MOST_EXPERTS
        and all(a is None or 0 < a.shape[1] <= MOST_RANK for a in (a1, a2))
    )


def swiglu_experts(
    x: Tensor, ids: Tensor, routing: Tensor, gate_up: Tensor, down: Tensor,
    a1: Tensor | None = None, b1: Tensor | None = None, s1: float = 1.0,
    a2: Tensor | None = None, b2: Tensor | None = None, s2: float = 1.0,
) -> Tensor:  # fmt: skip
    """``lora_experts.swiglu_experts`` of what ``takes`` takes; gradients of x, the routing weights, and every A and B.

    Args:
        x: hidden states [T, H].
        ids, routing: chosen experts and their weights [T, K]. A token with an expert outside of 0 .. E - 1 becomes NaN: an
            error would have to wait for the device.
        gate_up, down: [E, 2I, H] and [E, H, I], frozen.
        a1, b1, s1: [E, R, H], [E, R, 2I] (B transposed) in the type of x, and the scaling; or None.
        a2, b2, s2: [E, R, I], [E, R, H] and the scaling; or None.

    Returns:
        [T, H] in the type of x. Sums are float32, and rounded where the torch path rounds.
    """
    wanted = any(t is not None and t.requires_grad for t in (x, routing, a1, b1, a2, b2))
    keep = wanted and torch.is_grad_enabled()
    with torch.cuda.device_of(x):  # Triton launches on the current device
        return _GroupedSwiGLUExperts.apply(x, ids, routing, gate_up, down, a1, b1, s1, a2, b2, s2, keep)


def formula(
    x: Tensor, ids: Tensor, routing: Tensor, gate_up: Tensor, down: Tensor,
    a1: Tensor | None, b1: Tensor | None, s1: float, a2: Tensor | None, b2: Tensor | None, s2: float,
) -> Tensor:  # fmt: skip
    """What ``swiglu_experts`` is to give, by merged weights and every expert for every token: for tiny sizes."""
    if a1 is not None:
        gate_up = gate_up + s1 * torch.einsum("ero,eri->eoi", b1, a1)
    if a2 is not None:
        down = down + s2 * torch.einsum("ero,eri->eoi", b2, a2)
    gate, up = torch.einsum("th,eoh->teo", x, gate_up).chunk(2, dim=-1)
    y = torch.einsum("tei,ehi->teh", torch.nn.functional.silu(gate) * up, down)
    return torch.einsum("tk,tkh->th", routing, y[torch.arange(len(x), device=x.device)[:, None], ids])


# Tokens, experts, chosen, hidden, width, rank: few rows an expert; and, on a device, whole tiles of many rows.
_CASES = ((3, 5, 2, 40, 24, 3), (19, 2, 1, 24, 20, 17) if _INTERPRETED else (301, 3, 2, 200, 136, 20))


_NAMES = ("the output", *(f"the gradient of {n}" for n in ("x", "the routing weights", "A1", "B1", "A2", "B2")))


def verify(device: torch.device | str, dtype: torch.dtype) -> None:
    """Raise KernelRefused unless results and all gradients on ``device`` are the formula's in float64, but for rounding.

    The first to ask may be a layer that is run again in backward: what is compared is kept out of what such a layer keeps.
    """
    own = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with torch.inference_mode(False), torch.enable_grad(), own:
        for case in _CASES:
            _verify(torch.device(device), dtype, *case)


def _verify(
    device: torch.device, dtype: torch.dtype, tokens: int, experts: int, k: int, hidden: int, width: int, rank: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, hidden), (tokens, k), (experts, 2 * width, hidden), (experts, hidden, width)]
    shapes += [(experts, rank, n) for n in (hidden, 2 * width, width, hidden)]
    drawn = [torch.randn(s, generator=generator, device="cpu") / (s[-1] ** 0.5 if len(s) == 3 else 1) for s in shapes]
    x, routing, gate_up, down, *low = (t.to(device, dtype) for t in drawn)
    ids = torch.rand(tokens, experts, generator=generator, device="cpu").topk(k).indices.to(device)
    for lora in (low, []):
        leaves = [t.detach().requires_grad_() for t in (x, routing, *lora)]
        found = _results(swiglu_experts, leaves, ids, gate_up, down)
        wanted = _results(formula, [t.detach().double().requires_grad_() for t in leaves], ids, gate_up.double(), down.double())
        for name, mine, true in zip(_NAMES, found, wanted):
            off = ((mine.double() - true).abs().max() / true.abs().max()).item()
            if not off <= TOLERANCE[dtype]:
                raise KernelRefused(
                    f"the Triton kernels of the experts differ from the formula on {device} in {dtype}: {name} by {off:.1e} "
                    f"of its largest value (T {tokens}, E {experts}, K {k}, H {hidden}, I {width}, rank {rank if lora else 0})"
                )


def _results(function: Any, leaves: list[Tensor], ids: Tensor, gate_up: Tensor, down: Tensor) -> list[Tensor]:
    """The output, and the gradients of all leaves: x, the routing weights, and A1, B1, A2, B2 if there are any."""
    x, routing, *low = leaves
    a1, b1, a2, b2 = low or (None,) * 4
    try:
        out = function(x, ids, routing, gate_up, down, a1, b1, 0.5, a2, b2, 3.0)
        probe = ((torch.arange(out.numel(), device=out.device) % 17 - 8) / 8).view_as(out).to(out.dtype)  # exact in all types
        return [out.detach(), *torch.autograd.grad(out, leaves, probe)]
    except (TritonError, RuntimeError) as e:  # the latter where there is no C compiler, or from the driver
        raise KernelRefused(f"the Triton kernels of the experts do not run on {x.device}: {e}") from e
