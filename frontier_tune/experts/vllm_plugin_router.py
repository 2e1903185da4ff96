"""The routing op in place of vLLM's CPU router, on router logits in float32.

Only together with ``routing.trainer.install`` in the trainer: two routers that settle ties differently send several tokens in a
hundred to different experts. What is replaced is softmax routing without groups (Qwen3-MoE, OLMoE, Mixtral, gpt-oss), as there;
other conventions stay vLLM's.

An adapter may bring routers of its own: a row's logits then come from those of its adapter, beside rows of the base and of other
adapters in the same batch. So they are a part of the policy's version like its low-rank matrices: nothing is swapped under
requests that still run, and what the prefix cache keeps is kept under the adapter's name. Stock vLLM refuses such adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.lora.model_manager import DEFAULT_LANGUAGE_WRAPPER_KEY
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear

from frontier_tune.contracts import BadInput
from frontier_tune.experts import families
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
    x = x.to(self.weight.dtype)
    own: dict[int, Tensor] | None = self.__dict__.get("frontier_routers")
    if not own:
        return _stock_gate_forward(self, x)
    parts = list(_routed(self.frontier_manager, own, x.shape[0]))
    if len(parts) == 1 and parts[0][1] is None:  # all rows are of one adapter
        logits = F.linear(x, parts[0][0])
        return (logits, None) if self.return_bias else logits
    out = _stock_gate_forward(self, x)
    logits = out[0] if self.return_bias else out
    for weight, rows in parts:
        logits[rows] = F.linear(x[rows], weight).to(logits.dtype)
    return out


def _routed(manager: Any, own: Mapping[int, Tensor], rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(router, its rows) of each adapter in the batch that brings one; rows is None where one adapter has them all."""
    groups = manager.punica_wrapper_mapping[DEFAULT_LANGUAGE_WRAPPER_KEY].frontier_groups(rows)
    for slot, members in groups:
        weight = own.get(manager.lora_index_to_id[slot]) if slot >= 0 else None
        if weight is not None:
            yield weight, members


def _gates(manager: Any, config: Any) -> dict[int, Any]:
    """The gates of vLLM's model, by decoder layer."""
    name = families.family_of(config).vllm_router
    return {i: manager.model.get_submodule(f"model.layers.{i}.{name}") for i in families.moe_shape(config).layers}


def put(manager: Any, config: Any, adapter_id: int, routers: Mapping[int, Tensor]) -> None:
    """Give the gates the routers [E, H] of an adapter, by decoder layer. Raises BadInput where this engine can't use them."""
    gates = _gates(manager, config)
    if type(next(iter(gates.values()))).forward is not _gate_forward:
        raise BadInput("adapter.router: an adapter's own routers are applied by the CPU engine alone; set it to false")
    for layer, gate in gates.items():
        gate.frontier_manager = manager
        gate.__dict__.setdefault("frontier_routers", {})[adapter_id] = routers[layer].to(gate.weight.device, torch.float32)


def held(manager: Any, config: Any, adapter_id: int) -> dict[int, Tensor]:
    """The routers of an adapter, as the gates apply them; layers without one are left out."""
    found = {i: gate.__dict__.get("frontier_routers", {}).get(adapter_id) for i, gate in _gates(manager, config).items()}
    return {i: t for i, t in found.items() if t is not None}


def forget(manager: Any, config: Any, adapter_id: int) -> None:
    """The adapter is gone, and its routers with it."""
    for gate in _gates(manager, config).values():
        gate.__dict__.get("frontier_routers", {}).pop(adapter_id, None)


def install() -> list[str]:
    """Replace the router and the gate's arithmetic, before any engine is built. Returns what was changed; a second call changes
    nothing more."""
    op.register()
    router: Any = CPURouter
    gate: Any = GateLinear
    router._compute_routing = _compute_routing
    gate.__init__, gate.forward = _gate_init, _gate_forward
    return ["experts are chosen by the routing op, from logits in float32"]
