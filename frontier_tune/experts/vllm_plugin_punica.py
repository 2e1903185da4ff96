"""Low-rank updates of vLLM's linear layers on CPU, grouped by adapter.

vLLM's CPU kernels gather a full copy of A and B for every token and take slot -1 ("no adapter") as an index, which is the
last slot. Here each adapter's rows are multiplied at once and rows without adapter are left as they are. The grouping is
computed once per batch, not once per layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from frontier_tune.native import build

Groups = list[tuple[int, Tensor | None]]


def _slots(self: Any, rows: int) -> Tensor:
    """Adapter slot of each of ``rows`` rows; -1 is the base, also for rows beyond the batch (padding, profiling)."""
    known = self.indices_len[0]
    if known is not None and known >= rows:
        return self._token_lora_indices[:rows]
    slots = torch.full((rows,), -1, dtype=torch.long)
    if known:
        slots[:known] = self._token_lora_indices[:known]
    return slots


def _groups(self: Any, rows: int) -> Groups:
    """(slot, its rows) for each slot in the batch; rows is None where one slot has them all."""
    cached = self.__dict__.setdefault("_frontier_groups", {})
    if rows not in cached:
        slots = _slots(self, rows)
        present = torch.unique(slots).tolist()
        cached[rows] = [(s, None if len(present) == 1 else (slots == s).nonzero()[:, 0]) for s in present]
    return cached[rows]


def _update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
    self.__dict__["_frontier_groups"] = {}
    PunicaWrapperBase.update_metadata(self, *args, **kwargs)


def _add_lora_linear(
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    *,
    buffer: tuple[Tensor, ...] | None = None,
    add_inputs: bool = True,
    **kwargs: Any,
) -> None:
    """y[:, slice j] += x A_j^T B_j^T * scale, each row with its own adapter. A_j [slots, 1, r, in], B_j [slots, 1, out, r]."""
    if not add_inputs:
        raise NotImplementedError("add_lora_linear without add_inputs belongs to CUDA's second stream, not to CPU")
    out, rows = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    if out.dtype == rows.dtype == lora_a_stacked[0].dtype == torch.float32:
        if any(slot >= 0 for slot, _ in _groups(self, rows.shape[0])):
            slots = _slots(self, rows.shape[0])
            torch.ops.frontier_tune.lora_linear(out, rows.contiguous(), slots, list(lora_a_stacked), list(lora_b_stacked), scale)
        return
    for slot, members in _groups(self, rows.shape[0]):
        if slot < 0:
            continue
        own, at = rows if members is None else rows[members], 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low = own @ a[slot, 0].T
            part = out[:, at : at + width]
            if members is None:
                part.addmm_(low, b[slot, 0].T, alpha=scale)
            else:
                part.index_add_(0, members, low @ b[slot, 0].T, alpha=scale)
            at += width


_stock_logits = PunicaWrapperCPU.add_lora_logits


def _add_lora_logits(
    self: Any, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **kwargs: Any
) -> None:
    """Logits of the sampled rows as in stock vLLM; those of prompt_logprobs have no row-to-adapter map."""
    if not bool(lora_b_stacked.any()):
        return
    if x.view(-1, x.shape[-1]).shape[0] != self.sampler_indices.shape[0]:
        raise ValueError("prompt_logprobs with an adapter on lm_head doesn't work on CPU; leave lm_head out of the adapter")
    if bool((self.sampler_indices < 0).any()):
        raise ValueError("an adapter on lm_head in one batch with base requests doesn't work on CPU; leave lm_head out of it")
    _stock_logits(self, y, x, lora_a_stacked, lora_b_stacked, scale, **kwargs)


def install() -> list[str]:
    """Replace three methods of the CPU wrapper. Returns what was changed."""
    build.load()
    wrapper: Any = PunicaWrapperCPU
    wrapper.frontier_slots, wrapper.frontier_groups = _slots, _groups
    wrapper.update_metadata = _update_metadata
    wrapper.add_lora_linear = _add_lora_linear
    wrapper.add_lora_logits = _add_lora_logits
    return [
        "requests without adapter in a mixed batch are left to the base",
        "prompt_logprobs pass with an adapter-capable lm_head",
    ]
