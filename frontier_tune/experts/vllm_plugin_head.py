"""The output embedding in ``head_dtype`` on CPU, cast once: vLLM casts all of it anew in every forward there.

The copy lies beside the weights that it was made of, as long as these stand: a reload writes new ones into the same memory, by
which no tensor's version counter changes, so that it drops the copies itself. The arithmetic is vLLM's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

_COPY = "frontier_head"  # in the head's __dict__: what the copy was made of, and the copy
_stock_apply = LogitsProcessor._apply_head
_stock_reload = CPUModelRunner.reload_weights


def _apply_head(self: Any, lm_head: Any, hidden_states: Tensor, embedding_bias: Tensor | None) -> Tensor:
    wanted: torch.dtype | None = self.head_dtype
    plain = isinstance(lm_head.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod)
    if wanted is None or wanted == hidden_states.dtype or not plain or lm_head.weight.dtype == wanted:
        out: Tensor = _stock_apply(self, lm_head, hidden_states, embedding_bias)
        return out
    bias = None if embedding_bias is None else embedding_bias.to(wanted)
    return F.linear(hidden_states.to(wanted), _cast(lm_head, wanted), bias)


def _cast(lm_head: Any, wanted: torch.dtype) -> Tensor:
    weight: Tensor = lm_head.weight
    source = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, wanted)
    held: tuple[Any, Tensor] | None = lm_head.__dict__.get(_COPY)
    if held is None or held[0] != source:
        held = lm_head.__dict__[_COPY] = (source, weight.detach().to(wanted))
    return held[1]


def _reload_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return _stock_reload(self, *args, **kwargs)
    finally:  # half a reload has changed weights, too
        for module in self.get_model().modules():
            module.__dict__.pop(_COPY, None)


def install() -> list[str]:
    """Before any engine is built. Returns what was changed."""
    processor: Any = LogitsProcessor
    runner: Any = CPUModelRunner
    processor._apply_head, runner.reload_weights = _apply_head, _reload_weights
    return ["an output embedding in another type than the model's is cast once, not in every forward"]
