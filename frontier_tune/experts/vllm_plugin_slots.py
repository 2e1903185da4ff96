"""A shortcut in vLLM's bookkeeping: a request that generates one more token into a block that it already has needs no new block.

With small models the scheduler's Python is a large part of a step; for this most common case it asks six questions a request
whose answers are known.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

_stock_allocate = KVCacheManager.allocate_slots


def _allocate_slots(self: Any, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
    managers = self.coordinator.single_type_managers
    if num_new_tokens == 1 and not args and len(managers) == 1 and type(managers[0]) is FullAttentionManager:
        size, after = managers[0].block_size, request.num_computed_tokens + 1
        # Neither the first token of a block (it has to be allocated) nor the last (the full block is offered to other requests).
        inside = after % size > 1 and len(managers[0].req_to_blocks[request.request_id]) * size >= after
        if inside and not any(kwargs.get(k) for k in kwargs if k != "has_scheduled_reqs"):
            return self.empty_kv_cache_blocks
    return _stock_allocate(self, request, num_new_tokens, *args, **kwargs)


def install() -> list[str]:
    manager: Any = KVCacheManager
    manager.allocate_slots = _allocate_slots
    return ["a token within a block that a request has is scheduled without allocation"]
