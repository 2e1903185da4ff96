"""The sampler's key-value cache: bytes of a sequence, and what else an engine holds for its adapters."""

from __future__ import annotations

from frontier_tune.orchestration.plan.sizes import BYTES, Sizes

# Tokens of a block: the engine's own choice on GPUs, sampling.backend's on CPUs; for latent attention the largest that any of the
# engine's kernels asks for, whichever it takes.
BLOCK, CPU_BLOCK, LATENT_BLOCK = 16, 32, 128
# Adapter ranks that vLLM has buffers for, and adapters in one batch (sampling.backend).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SLOTS = 2


def cached_bytes(z: Sizes, dtype: str, tokens: int, tensor_parallel: int = 1, device: str = "cuda") -> int:
    """Bytes that one sequence of ``tokens`` takes at most on one of ``tensor_parallel`` GPUs, in the engine's whole blocks."""
    count, each = _blocks(z, dtype, tokens, tensor_parallel, device)
    return count * each


def least_bytes(z: Sizes, dtype: str, tokens: int, tensor_parallel: int = 1, device: str = "cuda") -> int:
    """The smallest cache with which an engine starts for sequences of ``tokens``: of one, and a block that it keeps to itself."""
    count, each = _blocks(z, dtype, tokens, tensor_parallel, device)
    return (count + 1) * each


def _blocks(z: Sizes, dtype: str, tokens: int, tensor_parallel: int, device: str) -> tuple[int, int]:
    """Blocks of one sequence, and bytes of a block.

    Of every layer keys and values (arXiv:2305.13245: of the key-value heads alone), split by heads, none below one; of latent
    attention the compressed vector and the rotary key (arXiv:2405.04434, section 2.1), whole on each GPU. A layer with a window
    frees what is behind it only from one forward to the next, and a forward takes a whole sequence (sampling.backend): at most
    it holds that, and a block more, since a window need not begin with one. Where layers are of both kinds, a block is one of as
    many layers as there are of the rarer kind, and each such group has blocks of its own.
    """
    if z.latent is not None:
        size, per_token = LATENT_BLOCK, z.latent[1] + z.latent[2]
    else:
        size = CPU_BLOCK if device == "cpu" else BLOCK
        per_token = 2 * max(1, z.kv_heads // tensor_parallel) * z.head
    needed = -(-tokens // size)
    windowed = sum(w is not None for w in z.windows)
    kinds = [(layers, blocks) for layers, blocks in ((len(z.windows) - windowed, needed), (windowed, needed + 1)) if layers]
    few, many = min(layers for layers, _ in kinds), max(layers for layers, _ in kinds)
    together = many if many < 1.5 * few else few  # as vLLM groups them
    groups = [-(-layers // together) for layers, _ in kinds]
    wide = max(-(-layers // n) for (layers, _), n in zip(kinds, groups, strict=True))
    count = sum(n * blocks for (_, blocks), n in zip(kinds, groups, strict=True))
    return count, wide * size * per_token * BYTES[dtype]


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
