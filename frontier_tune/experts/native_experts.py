"""The expert layer with adapters as one operator on CPU, for inference: no merged copies, weights read once for all adapters.

Tokens are sorted by expert and then by adapter slot; each expert's rows take the base's product and, on the same tiles, the
low-rank path of their own slot. A row's result is bitwise the same whatever the other rows and their adapters are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from frontier_tune.native import build

WIDTH = 32  # H and I are multiples of it: the width of a packed panel
_LANES = 16  # low-rank activations are padded to a multiple of it
_NO_SLOTS = torch.empty(0, dtype=torch.long)


def supported(dtype: torch.dtype, hidden: int, width: int) -> bool:
    """Whether ``forward`` takes experts of this type, hidden size and expert width."""
    return dtype == torch.float32 and hidden % WIDTH == 0 and width % WIDTH == 0


def pack(weight: Tensor) -> Tensor:
    """Weights [E, out, in] in the operator's order: as many elements, to be handed to ``forward`` alone."""
    build.load()
    packed = torch.empty_like(weight, memory_format=torch.contiguous_format)
    torch.ops.frontier_tune.pack_panels(weight.contiguous(), packed)
    return packed


def _padded(t: Tensor) -> Tensor:
    return F.pad(t, (0, -t.shape[-1] % _LANES)).contiguous()


@dataclass(frozen=True)
class Adapters:
    """Low-rank matrices of S slots in the operator's layout, of adapter size. Make them with ``of`` and ``set``."""

    rank: int
    tensors: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def empty(cls, slots: int, experts: int, hidden: int, width: int, rank: int) -> Adapters:
        """All zero: every slot is the base."""

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size)

        wide, narrow = (-(-r // _LANES) * _LANES for r in (2 * rank, rank))
        return cls(
            rank,
            (
                zeros(slots, experts, hidden, wide),
                zeros(slots, experts, 2, rank, width),
                zeros(slots, experts, width, narrow),
                zeros(slots, experts, rank, hidden),
            ),
        )

    def set(self, slot: int, gate: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> None:
        """Put one adapter into ``slot``: (A [E, R, in], B [E, out, R]) of each projection, the scaling folded into B."""
        a13, b13, a2, b2 = self.tensors
        a13[slot] = _padded(torch.cat([gate[0], up[0]], dim=1).transpose(1, 2))
        b13[slot] = torch.stack([gate[1], up[1]], dim=1).transpose(2, 3)
        a2[slot] = _padded(down[0].transpose(1, 2))
        b2[slot] = down[1].transpose(1, 2)


def forward(
    x_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor, packed13: Tensor, packed2: Tensor,
    slot_T: Tensor | None = None, adapters: Adapters | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``y_t = sum_k w_tk down_e(silu(gate_e x_t) * up_e x_t)`` with ``e = expert_tk`` and each token's own adapter. [T, H].

    Args:
        x_TH: hidden states [T, H], float32; T may be 0.
        expert_TK, weight_TK: chosen experts and routing weights [T, K].
        packed13, packed2: ``pack`` of [E, 2I, H] (gate above up) and of [E, H, I].
        slot_T: adapter slot of each token [T], int64; -1 is the base. None: all are the base's.
    """
    out = torch.empty_like(x_TH) if out is None else out
    lora: list[Tensor] = []
    rank, slots = 0, _NO_SLOTS
    if adapters is not None and slot_T is not None:
        lora, rank, slots = list(adapters.tensors), adapters.rank, slot_T
    ids, weights = expert_TK.to(torch.int32).contiguous(), weight_TK.to(torch.float32).contiguous()
    torch.ops.frontier_tune.experts(out, x_TH.contiguous(), ids, weights, packed13, packed2, slots, lora, rank, False)
    return out
