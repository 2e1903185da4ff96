"""The routing op in place of vLLM's CPU router, on router logits in float32.

Only together with ``routing.trainer.install`` in the trainer: two routers that settle ties differently send several tokens in a
hundred to different experts. What is replaced is softmax routing without groups (Qwen3-MoE, OLMoE, Mixtral, gpt-oss), as there;
other conventions stay vLLM's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear

from frontier_tune.experts.routing import op

_stock_routing = CPURouter._compute_routing
_stock_gate_init, _stock_gate_forward = GateLinear.__init__, GateLinear.forward


def _compute_routing(
    self: Any, hidden_states: Tensor, router_logits: Tensor, indices_type: torch.dtype | None, *, input_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if self.use_grouped_topk or self.custom_routing_function is not None or self.scoring_func != "softmax":
        return _stock_routing(self, hidden_states, router_logits, indices_type, input_ids=input_ids)
    return op.route(router_logits.float(), self.top_k, renormalize=self.renormalize)


def _gate_init(self: Any, *args: Any, **kwargs: Any) -> None:
    """vLLM's own switch for gates that want it: weights are kept in float32."""
    _stock_gate_init(self, *args, **kwargs | {"force_fp32_compute": True})


def _gate_forward(self: Any, x: Tensor) -> Any:
    return _stock_gate_forward(self, x.to(self.weight.dtype))


def install() -> list[str]:
    """Replace the router and the gate's arithmetic, before any engine is built. Returns what was changed; a second call changes
    nothing more."""
    op.register()
    router: Any = CPURouter
    gate: Any = GateLinear
    router._compute_routing = _compute_routing
    gate.__init__, gate.forward = _gate_init, _gate_forward
    return ["experts are chosen by the routing op, from logits in float32"]
