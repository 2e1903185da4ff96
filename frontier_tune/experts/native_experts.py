"""The expert layer with adapters as one operator on CPU, for inference: no merged copies, weights read once for all adapters.

Tokens are sorted by expert and then by adapter slot; each expert's rows take the base's product and, on the same tiles, the
low-rank path of their own slot. A row's result is bitwise the same whatever the other rows and their adapters are.

In float32 or in bfloat16; sums are float32 in both. In bfloat16 hidden states, weights, adapters and what is between the two
projections are rounded to it, and matrices lie in pairs of inputs, as the processor's dot products and tiles (AMX) take them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from frontier_tune.native import build

DTYPES = (torch.float32, torch.bfloat16)
WIDTH = 32  # H and I are multiples of it: the width of a packed panel
_LANES = 8  # rows of A are padded to a multiple of it
_NONE, _NO_SLOTS = torch.empty(0), torch.empty(0, dtype=torch.long)


def supported(dtype: torch.dtype, hidden: int, width: int) -> bool:
    """Whether ``forward`` takes experts of this type, hidden size and expert width."""
    return dtype in DTYPES and hidden % WIDTH == 0 and width % WIDTH == 0


def large_pages(t: Tensor) -> Tensor:
    """``t``, its memory in large pages where the system can: weights are read once a step, and so about a quarter faster."""
    build.load()
    torch.ops.frontier_tune.large_pages(t)
    return t


def pack(weight: Tensor) -> Tensor:
    """Weights [E, out, in] in the operator's order: as many elements, to be handed to ``forward`` alone."""
    build.load()
    packed = torch.empty_like(weight, memory_format=torch.contiguous_format)
    large_pages(packed)
    torch.ops.frontier_tune.pack_panels(weight.contiguous(), packed)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """What ``pack`` was given, [E, out, in]."""
    experts, out, inner = packed.shape
    depth = _depth(packed.dtype)
    panels = packed.reshape(experts, out // WIDTH, inner // depth, WIDTH, depth)
    return panels.transpose(2, 3).reshape(experts, out, inner)


def _depth(dtype: torch.dtype) -> int:
    """How many consecutive terms of a sum lie side by side in matrices."""
    return 2 if dtype == torch.bfloat16 else 1


def _columns(a_ERI: Tensor, dtype: torch.dtype) -> Tensor:
    """A [E, R, in] as [E, in, R padded]; in bfloat16 the values of two consecutive inputs lie side by side."""
    out = F.pad(a_ERI.transpose(1, 2), (0, -a_ERI.shape[1] % _LANES)).to(dtype)
    if dtype == torch.bfloat16:
        experts, inner, rank = out.shape
        out = out.view(experts, inner // 2, 2, rank).transpose(2, 3).reshape(experts, inner, rank)
    return out


def _panels(b_EOR: Tensor, dtype: torch.dtype) -> Tensor:
    """B [E, out, R] as [E, out / WIDTH, R, WIDTH], whose columns lie together; in bfloat16 two ranks side by side."""
    experts, out, rank = b_EOR.shape
    depth = _depth(dtype)
    b_EOR = F.pad(b_EOR, (0, -rank % depth)).to(dtype)
    return b_EOR.view(experts, out // WIDTH, WIDTH, -1, depth).transpose(2, 3)


@dataclass(frozen=True)
class Adapters:
    """Low-rank matrices of S slots in the operator's layout, of adapter size. Make them with ``empty`` and ``set``.

    ``tensor`` [S, E, n]: what a slot has for an expert lies in one piece, in the order in which it is read.
    """

    rank: int
    tensor: Tensor

    @classmethod
    def empty(cls, slots: int, experts: int, hidden: int, width: int, rank: int, dtype: torch.dtype = torch.float32) -> Adapters:
        """All zero: every slot is the base. ``dtype`` is that of the experts."""
        wide, narrow = (-(-r // _LANES) * _LANES for r in (2 * rank, rank))
        whole = rank + -rank % _depth(dtype)
        size = hidden * wide + 2 * width * whole + width * narrow + hidden * whole
        return cls(rank, large_pages(torch.zeros(slots, experts, size, dtype=dtype)))

    def set(self, slot: int, gate: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> None:
        """Put one adapter into ``slot``: (A [E, R, in], B [E, out, R]) of each projection, the scaling folded into B."""
        dtype = self.tensor.dtype
        parts = (
            _columns(torch.cat([gate[0], up[0]], dim=1), dtype),
            _panels(torch.cat([gate[1], up[1]], dim=1), dtype),
            _columns(down[0], dtype),
            _panels(down[1].contiguous(), dtype),
        )
        self.tensor[slot] = torch.cat([part.flatten(1) for part in parts], dim=1)


def forward(
    x_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor, packed13: Tensor, packed2: Tensor,
    slot_T: Tensor | None = None, adapters: Adapters | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``y_t = sum_k w_tk down_e(silu(gate_e x_t) * up_e x_t)`` with ``e = expert_tk`` and each token's own adapter. [T, H].

    Args:
        x_TH: hidden states [T, H], of the weights' and adapters' type; T may be 0.
        expert_TK, weight_TK: chosen experts and routing weights [T, K]; the weights are taken as float32.
        packed13, packed2: ``pack`` of [E, 2I, H] (gate above up) and of [E, H, I].
        slot_T: adapter slot of each token [T], int64; -1 is the base. None: all are the base's.
    """
    out = torch.empty_like(x_TH) if out is None else out
    lora, rank, slots = _NONE, 0, _NO_SLOTS
    if adapters is not None and slot_T is not None:
        lora, rank, slots = adapters.tensor, adapters.rank, slot_T
    x, ids, weights = x_TH, expert_TK, weight_TK
    # Asked first: one token takes microseconds, and each of these calls half of one even where there is nothing to do.
    if ids.dtype is not torch.int32 or not ids.is_contiguous():
        ids = ids.to(torch.int32).contiguous()
    if weights.dtype is not torch.float32 or not weights.is_contiguous():
        weights = weights.to(torch.float32).contiguous()
    if not x.is_contiguous():
        x = x.contiguous()
    torch.ops.frontier_tune.experts(out, x, ids, weights, packed13, packed2, slots, lora, rank, False)
    return out
