"""Experts without adapters whose own weights learn: the forward of ``lora_experts`` without its low-rank path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from frontier_tune.contracts import BadInput
from frontier_tune.experts.lora_experts import swiglu_experts, why_not


class _PlainForward:
    """The replaced ``forward`` of a module of experts without adapters, whose own weights learn."""

    def __init__(self, experts: Any) -> None:
        self.experts = experts

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        experts = self.experts
        return swiglu_experts(hidden_states, top_k_index, top_k_weights, experts.gate_up_proj, experts.down_proj)


def install(modules: Mapping[str, nn.Module]) -> None:
    """Run modules of experts, by name, through ``swiglu_experts`` without adapters: the weights' own gradients come back.

    Raises:
        BadInput: one has another layout.
    """
    for name, experts in modules.items():
        if reason := why_not(experts):
            raise BadInput(f"{name}: full fine-tuning of these experts is not supported, because {reason}")
        experts.forward = _PlainForward(experts)
