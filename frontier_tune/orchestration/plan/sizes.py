"""What a base is made of, from its config.json alone: parameters by part, bytes by number format, widths."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.experts.families import FAMILIES, MoEShape, family_of, moe_shape, target_modules
from frontier_tune.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}
# Bytes of one parameter in MXFP4: 4 bits, and 8 bits of scale for each 32 (OCP Microscaling Formats 1.0, section 5.2). In FP8:
# 8 bits, and a float32 scale for each block (DeepSeek-V3: 128 x 128, arXiv:2412.19437, section 3.3).
MXFP4_BYTES = 0.5 + 1 / 32


@dataclass(frozen=True)
class Parameters:
    """Counts of a base's parameters. ``vector``: norms, biases, sinks; ``active``: what one token passes through."""

    embedding: int
    head: int
    attention: int
    router: int
    experts: int
    expert_biases: int
    dense: int
    vector: int
    active: int

    @property
    def total(self) -> int:
        parts = (self.embedding, self.head, self.attention, self.router, self.experts, self.expert_biases, self.dense)
        return sum(parts) + self.vector

    @property
    def in_experts(self) -> int:
        return self.experts + self.expert_biases


def parameters(config: Any) -> Parameters:
    """Counted on the model's skeleton: no weights are read. Tied parameters count once, as the embedding."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts = dict.fromkeys(("embedding", "head", "attention", "router", "experts", "expert_biases", "dense", "vector"), 0)
    for name, p in model.named_parameters():
        counts[_part(name, p.ndim)] += p.numel()
    total = sum(counts.values())
    if getattr(config, "model_type", None) not in FAMILIES:
        return Parameters(**counts, active=total)
    shape, in_experts = moe_shape(config), counts["experts"] + counts["expert_biases"]
    return Parameters(**counts, active=total - in_experts + in_experts * shape.top_k // shape.num_experts)


def _part(name: str, dimensions: int) -> str:
    if ".experts." in name:
        return "experts" if dimensions == 3 else "expert_biases"
    if "embed_tokens" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "head"
    if dimensions < 2:
        return "vector"
    if "self_attn" in name:
        return "attention"
    return "router" if ".gate." in name or ".router." in name else "dense"


def count_parameters(config: Any) -> tuple[int, int, int]:
    """(all, in experts, active for one token)."""
    p = parameters(config)
    return p.total, p.in_experts, p.active


def quantization(config: Any) -> str | None:
    """How a checkpoint's weights are quantized: 'mxfp4', 'fp8', or None. Raises BadInput for a method that can't be planned."""
    from frontier_tune.experts import quantized

    method = quantized.method(config)
    if method not in (None, "mxfp4", "fp8"):
        raise BadInput(f"base: its weights are quantized by '{method}'; mxfp4, fp8 and unquantized ones can be planned")
    return method


def weight_bytes(p: Parameters, config: Any, dtype: str) -> int:
    """Bytes of the base's weights where they are served: as the checkpoint has them if it is quantized, else in ``dtype``.

    MXFP4 checkpoints (gpt-oss) quantize the experts' matrices alone, FP8 ones (DeepSeek-V3) all but embedding, head, router
    and norms; the rest is bfloat16.
    """
    method = quantization(config)
    if method == "mxfp4":
        return round(p.experts * MXFP4_BYTES) + 2 * (p.total - p.experts)
    if method == "fp8":
        inside = p.experts + p.attention + p.dense
        rows, columns = _block(config)
        return round(inside * (1 + 4 / (rows * columns))) + 2 * (p.total - inside)
    return p.total * BYTES[dtype]


def _block(config: Any) -> tuple[int, int]:
    block = config.quantization_config.get("weight_block_size") if isinstance(config.quantization_config, dict) else None
    return (int(block[0]), int(block[1])) if block else (128, 128)


def adapter_parameters(recipe: Recipe, config: Any) -> int:
    """All parameters of the recipe's adapter, over all layers; routers included where they learn."""
    from frontier_tune.experts.canonical import expected_shapes

    adapter = recipe.adapter
    shapes = expected_shapes(config, target_modules(adapter, config), adapter.experts, adapter.rank, adapter.router)
    return sum(prod(s) for s in shapes.values())


def router_parameters(recipe: Recipe, config: Any) -> int:
    """Those of them that are routers, which the adapter holds whole; 0 where they don't learn."""
    shape = moe_shape(config)
    return len(shape.layers) * shape.num_experts * shape.hidden if recipe.adapter.router else 0


@dataclass(frozen=True)
class Sizes:
    """Widths of one base that memory follows from. ``query``, ``key_value``: of all heads together.

    ``qk_norm``: whether queries and keys are normalised. ``groups``: of experts, and how many of them a token may choose from.
    ``latent``: widths of latent attention (query's, 0 for none; key-value's; rotary's), None elsewhere. ``windows[i]``: the
    attention window of layer i, None for all of the context.
    """

    model_type: str
    moe: MoEShape
    vocabulary: int
    heads: int
    kv_heads: int
    head: int
    value_head: int
    qk_norm: bool
    latent: tuple[int, int, int] | None
    dense_width: int
    shared_width: int
    normalised_weights: bool
    groups: tuple[int, int]
    windows: tuple[int | None, ...]

    @property
    def query(self) -> int:
        return self.heads * self.head

    @property
    def key_value(self) -> int:
        return (self.heads if self.latent else self.kv_heads) * self.head

    @property
    def hidden(self) -> int:
        return self.moe.hidden


def sizes(config: Any) -> Sizes:
    """Read from a transformers configuration of a known family. Raises BadInput for others."""
    family, shape = family_of(config), moe_shape(config)
    heads, kind = int(config.num_attention_heads), family.model_type
    latent, shared, dense = None, 0, int(getattr(config, "intermediate_size", 0) or 0)
    head = int(getattr(config, "head_dim", None) or shape.hidden // heads)
    value = head
    if kind == "deepseek_v3":
        latent = (int(config.q_lora_rank or 0), int(config.kv_lora_rank), int(config.qk_rope_head_dim))
        head, value = int(config.qk_nope_head_dim) + latent[2], int(config.v_head_dim)
        shared = int(config.moe_intermediate_size) * int(config.n_shared_experts or 0)
    return Sizes(
        kind,
        shape,
        int(config.vocab_size),
        heads,
        int(config.num_key_value_heads or heads),
        head,
        value,
        kind in ("qwen3_moe", "olmoe"),
        latent,
        dense,
        shared,
        kind in ("mixtral", "gpt_oss") or bool(getattr(config, "norm_topk_prob", False)),
        (int(getattr(config, "n_group", None) or 1), int(getattr(config, "topk_group", None) or 1)),
        windows(config),
    )


def windows(config: Any) -> tuple[int | None, ...]:
    """The attention window of every layer; None where a layer attends to the whole context."""
    depth, window = int(config.num_hidden_layers), getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return (None,) * depth
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * depth
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
