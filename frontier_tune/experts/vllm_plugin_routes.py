"""The experts that vLLM chose for each token, kept where the token's keys and values are kept.

vLLM's own capture (``enable_return_routed_experts``) needs its second model runner, which wants Triton. Here every router's
choice is written into one array by *KV slot*: [slots, MoE layers, k] in one or two bytes an id, 0.4 % of Qwen3-30B-A3B's cache.
So a prefix-cache hit finds the routes of the very computation whose keys and values it reuses; chunks of a long prompt and rows
of a mixed batch need no bookkeeping; what a preempted request computes anew overwrites what it computed before. A block's
routes are valid for as long as its keys and values are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from frontier_tune.contracts import BadInput


class RouteStore:
    """Routes of all tokens in the KV cache of an engine that runs in this process. The engine's thread owns it."""

    def __init__(self, runner: Any, layers: tuple[int, ...], experts: int, top_k: int) -> None:
        """Bind to every router of a model runner whose KV cache is there, before its first request.

        Args:
            runner: vLLM's model runner (``driver_worker.worker.model_runner``).
            layers: decoder layers that are MoE, in order; axis L of routes.
            experts, top_k: of the base.

        Raises:
            BadInput: layers of several cache groups (sliding windows), or routers that can't be watched.
        """
        from vllm.model_executor.layers.fused_moe.layer import MoERunner
        from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

        groups = runner.kv_cache_config.kv_cache_groups
        if len(groups) != 1:
            raise BadInput(
                f"routes of experts are kept by KV slot, and this base has {len(groups)} groups of KV caches (layers with and "
                "without a sliding window); set algorithm.replay to none or learner, and sampler.routes to false"
            )
        self._runner = runner
        self._block = int(runner.input_batch.block_table[0].block_size)
        slots = int(runner.kv_cache_config.num_blocks) * int(groups[0].kv_cache_spec.block_size)
        # One row more: vLLM's slot of padding is -1.
        self._routes = np.zeros((slots + 1, len(layers), top_k), np.uint8 if experts <= 256 else np.uint16)
        found = {m.layer_id: m.router for m in runner.get_model().modules() if isinstance(m, MoERunner)}
        if sorted(found) != list(layers) or not all(isinstance(r, BaseRouter) for r in found.values()):
            kinds = ", ".join(sorted({type(r).__name__ for r in found.values()}))
            raise BadInput(
                f"routes of experts: vLLM has routers ({kinds}) on layers {sorted(found)}, the base's configuration names "
                f"{list(layers)}; set algorithm.replay to none or learner, and sampler.routes to false"
            )
        for index, layer in enumerate(layers):
            found[layer].set_capture_fn(partial(self._capture, index))

    @property
    def bytes(self) -> int:
        return self._routes.nbytes

    def _capture(self, index: int, ids_TK: Tensor) -> None:
        from vllm.forward_context import get_forward_context

        slot_mapping = get_forward_context().slot_mapping
        if not slot_mapping:  # a profiling run: there is no cache yet
            return
        slots_T = next(iter(slot_mapping.values()))
        if slots_T.shape[0] != ids_TK.shape[0]:
            raise RuntimeError(f"routes of {ids_TK.shape[0]} tokens for {slots_T.shape[0]} slots of the KV cache")
        self._routes[slots_T.numpy(), index] = ids_TK.numpy()

    def read(self, request: str, first: int, end: int) -> np.ndarray:
        """Routes [end - first, L, k] of positions ``first`` to ``end`` of a request, right after the step that finished it.

        Its blocks are free by then, but nothing is written into them before the next step.
        """
        blocks = np.asarray(self._runner.requests[request].block_ids[0])
        at = np.arange(first, end)
        if at.size and at[-1] // self._block >= len(blocks):
            raise RuntimeError(f"request {request}: {end} positions, but {len(blocks)} blocks of {self._block}")
        return self._routes[blocks[at // self._block] * self._block + at % self._block]
