"""The sampler's key-value cache: bytes of a sequence, and what else an engine holds for its adapters."""

from __future__ import annotations

from frontier_tune.orchestration.plan.sizes import BYTES, Sizes

BLOCK = 16  # tokens; vLLM allocates a cache in blocks, and CPU builds in larger ones
# Adapter ranks that vLLM has buffers for, and adapters in one batch (sampling.backend).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SLOTS = 2


def cached_bytes(z: Sizes, dtype: str, tokens: int, tensor_parallel: int = 1) -> int:
    """Bytes of one sequence of ``tokens`` on one of ``tensor_parallel`` GPUs.

    Keys and values of every layer (arXiv:2305.13245: of the key-value heads alone), split by heads, none below one; of latent
    attention the compressed vector and the rotary key (arXiv:2405.04434, section 2.1), whole on each GPU; a layer with a window
    holds that many tokens, and a block.
    """
    if z.latent is not None:
        per_token = z.latent[1] + z.latent[2]
    else:
        per_token = 2 * max(1, z.kv_heads // tensor_parallel) * z.head
    blocks = sum(-(-(tokens if w is None else min(tokens, w + BLOCK)) // BLOCK) for w in z.windows)
    return blocks * BLOCK * per_token * BYTES[dtype]


def buffer_rank(rank: int) -> int:
    return next((r for r in RANKS if r >= rank), rank)


def adapter_slots(z: Sizes, rank: int, low_rank: int, experts: bool, dtype: str) -> int:
    """Bytes of vLLM's stacked adapter buffers: ``SLOTS`` of the next larger rank; gate and up have an A each.

    ``low_rank``: parameters of the recipe's adapter of ``rank``, without routers, which are no matrices of that rank
    (``router_slots``).
    """
    again = len(z.moe.layers) * z.moe.num_experts * z.moe.hidden if experts else 0
    return SLOTS * BYTES[dtype] * buffer_rank(rank) * (low_rank // rank + again)


def router_slots(routers: int) -> int:
    """Bytes of the routers that adapters in those slots bring: whole, in float32 (experts.vllm_plugin_router)."""
    return SLOTS * routers * 4
