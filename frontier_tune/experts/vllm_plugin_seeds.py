"""Seeded requests whose prompt is read in several steps: vLLM's CPU path crashes on them, here they draw as any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

_stock_bookkeeping = CPUModelRunner._bookkeeping_sync


def _rewind(state: Any) -> None:
    """Put a request's generator where it was before this step: the CPU sampler draws one number a token."""
    generator = state.generator
    generator.manual_seed(state.sampling_params.seed)
    for _ in state.output_token_ids:
        torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)


def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A step that reads only part of a prompt samples a token and throws it away, then takes the draw back by an offset
    that CPU generators don't have. Taken back here instead; the generators are hidden from the stock code meanwhile."""
    batch = self.input_batch
    discarded = np.nonzero(self.discard_request_mask.np[: batch.num_reqs])[0]
    hidden = {int(i): batch.generators.pop(int(i)) for i in discarded if int(i) in batch.generators}
    for i in hidden:
        _rewind(self.requests[batch.req_ids[i]])
    try:
        return _stock_bookkeeping(self, *args, **kwargs)
    finally:
        batch.generators.update(hidden)


def install() -> list[str]:
    runner: Any = CPUModelRunner
    runner._bookkeeping_sync = _bookkeeping_sync
    return ["seeded requests survive a prompt that is read in several steps"]
