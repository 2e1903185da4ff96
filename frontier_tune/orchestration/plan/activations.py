"""What one micro-batch takes in the learner: kept for backward, and alive besides at the fullest moment.

Every figure is a count of tensors that the forward in ``learning`` and in transformers' modelling code keeps; a benchmark
(benchmarks/plan_memory.py) and tests compare them with what torch allocates. Stated for CPUs, where it is measured; a GPU's
attention keeps its own copies of queries, keys, values and output besides (``device``), which nothing here was measured with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from frontier_tune.orchestration.plan.sizes import BYTES, Sizes

_INDEX = 8  # int64
_FLOAT = 4  # what is float32 whatever the base's type
_CHUNK_LOGITS = 1 << 24  # learning.logprobs


@dataclass(frozen=True)
class Batch:
    """One micro-batch: ``rows`` tokens, of which ``predicting`` are the context of a sampled one."""

    rows: int
    predicting: int


@dataclass(frozen=True)
class Setting:
    """What besides the sizes decides: the base's type, the adapter's rank and targets, the device, checkpointing by layer."""

    dtype: str
    rank: int
    projections: tuple[str, ...]
    experts: bool
    device: str = "cpu"
    checkpointing: bool = False

    @property
    def exact(self) -> bool:
        """Whether the lean forwards of learning.fused are in: they take float32 alone."""
        return self.dtype == "float32"


@dataclass(frozen=True)
class Need:
    """Bytes. ``kept`` by kind, when the forward has ended; ``peak`` of activations and gradient together, and when it comes.

    ``gradient`` is what the adapter's gradient has of the peak.
    """

    kept: dict[str, int]
    peak: int
    gradient: int
    moment: str
    moments: dict[str, int] = field(default_factory=dict)


def _norm(s: Setting, width: int) -> int:
    """Of one RMS norm over ``width``: its input; in bfloat16 as a float32 copy, with the root."""
    return _FLOAT * width if s.exact and s.device == "cpu" else _FLOAT * (width + 1)


def _lora_inputs(s: Setting, widths: dict[str, int]) -> int:
    """Of the LoRA linears that share one input: in float32 that input once, else a float32 copy for each; and x A of each."""
    found = [w for name, w in widths.items() if name in s.projections]
    inputs = 0 if not found else found[0] if s.exact else sum(found)
    return _FLOAT * (inputs + s.rank * len(found))


def attention_row(z: Sizes, s: Setting, first: bool) -> dict[str, int]:
    """Bytes a row of one layer's attention, norms before it included. The first layer's input takes no gradient."""
    b = BYTES[s.dtype]
    norms = 0 if first else _norm(s, z.hidden)
    inner = 0
    if z.latent is not None:
        query, kv, rotary = z.latent
        grad = not first
        projections = 0
        if grad:
            norms += _norm(s, kv) + (_norm(s, query) if query else 0)
    else:
        projections = _lora_inputs(s, dict.fromkeys(("q_proj", "k_proj", "v_proj"), z.hidden))
        grad = not first or any(p in s.projections for p in ("q_proj", "k_proj", "v_proj"))
        if z.qk_norm and grad:
            if s.exact and s.device == "cpu":
                norms += _FLOAT * (z.query + z.key_value)
            else:
                roots = z.heads + z.kv_heads if z.model_type == "qwen3_moe" else 2
                norms += _FLOAT * (z.query + z.key_value + roots)
    if grad:
        inner = b * (2 * z.query + 2 * z.key_value) + _FLOAT * z.heads
        if s.device != "cpu":  # blocks of their own, and the output once more in rows
            inner += b * z.query
    out = {"o_proj": z.heads * z.value_head}
    shared = s.exact and grad and z.value_head == z.head  # o_proj's input is attention's output itself
    projections += _lora_inputs(s, out) - (_FLOAT * out["o_proj"] if shared and "o_proj" in s.projections else 0)
    return {"norms": norms, "attention": inner, "projections": projections}


def moe_row(z: Sizes, s: Setting) -> dict[str, int]:
    """Bytes a row of one mixture-of-experts layer, its norm included."""
    b, k, e = BYTES[s.dtype], z.moe.top_k, z.moe.num_experts
    router = _FLOAT * e + _INDEX * k + (_FLOAT * (1 + k) if z.normalised_weights else 0)
    weight = b
    if z.model_type == "deepseek_v3":  # sigmoid scores, groups and their mask
        groups = 1
        router = _FLOAT * e + 2 * _INDEX * groups + _INDEX * groups + e + _INDEX * k + _FLOAT * (1 + k)
        weight = _FLOAT
    elif z.model_type in ("mixtral",):
        weight = _FLOAT
    experts = b * z.hidden + weight * k + 2 * _INDEX * k + b * k * 2 * z.moe.expert_width
    if s.experts:
        experts += 2 * b * k * s.rank
    if z.shared_width:
        experts += 3 * b * z.shared_width
    return {"norms": _norm(s, z.hidden), "router": router, "experts": experts}


def dense_row(z: Sizes, s: Setting) -> dict[str, int]:
    """Bytes a row of a dense layer's SwiGLU, its norm included."""
    return {"norms": _norm(s, z.hidden), "experts": 3 * BYTES[s.dtype] * z.dense_width}


def expert_adapter(z: Sizes, s: Setting) -> int:
    """Parameters of one layer's expert adapter."""
    h, i = z.moe.hidden, z.moe.expert_width
    return z.moe.num_experts * s.rank * (h + 2 * i + i + h) if s.experts else 0


def _copies(z: Sizes, s: Setting) -> int:
    """Copies of one layer's expert adapter in the order that the kernels take: B in float32, else A and B."""
    if not s.experts:
        return 0
    h, i = z.moe.hidden, z.moe.expert_width
    ours = 2 * i + h if s.exact else 2 * i + h + h + i
    return BYTES[s.dtype] * z.moe.num_experts * s.rank * ours


def need(z: Sizes, s: Setting, batch: Batch, adapter: int) -> Need:
    """What a micro-batch needs. ``adapter``: parameters of the whole adapter, whose gradient is float32."""
    t, m = batch.rows, batch.predicting
    b, h, depth = BYTES[s.dtype], z.hidden, z.moe.depth
    kept: dict[str, int] = {}
    total = _add(kept, {"positions and indices": t * 5 * _INDEX + 2 * t * b * (z.latent[2] if z.latent else z.head)})
    before, after = [], []  # kept when a layer's attention is done, and when the layer is
    for layer in range(depth):
        attention, rest = _layer(z, s, batch, layer)
        if s.checkpointing:  # of other layers their inputs; this one's own is there while backward computes it again
            total += _add(kept, {"inputs of layers": t * h * b})
            before.append(total + sum(attention.values()))
            after.append(before[-1] + sum(rest.values()))
        else:
            before.append(total + _add(kept, attention))
            total = before[-1] + _add(kept, rest)
            after.append(total)
    total += _add(kept, {"norms": m * (_norm(s, h) + b * h)})  # the final norm's input, and what the head projects
    held, forward, backward = _logits(z, s, m)
    total += _add(kept, {"logits": held})
    moments = {"logits, forward": total - held + forward, "logits, backward": total - held + backward + m * b * h}

    per_layer = expert_adapter(z, s)
    gradient = {name: 0 for name in moments}
    whole = adapter * _FLOAT
    for layer in {depth - 1, max(0, depth - 2)}:
        rows = m if layer == depth - 1 else t
        name = "last" if layer == depth - 1 else "last but one"
        wide = rows * z.moe.top_k * h * b if layer in z.moe.layers else rows * z.dense_width * b
        moments[f"experts of the {name} layer, forward"] = after[layer] + wide + rows * h * b + t * h * b
        gradient[f"experts of the {name} layer, forward"] = 0
        done = (depth - 1 - layer) * whole // depth
        here = 2 * per_layer * _FLOAT
        moments[f"experts of the {name} layer, backward"] = after[layer] + wide + 2 * rows * h * b + t * h * b + done + here
        gradient[f"experts of the {name} layer, backward"] = done + here
        turn = b * t * (4 * z.query + 4 * z.key_value)
        moments[f"attention of the {name} layer, backward"] = before[layer] + turn + 2 * t * h * b + done + per_layer * _FLOAT
        gradient[f"attention of the {name} layer, backward"] = done + per_layer * _FLOAT
    moments["optimizer"], gradient["optimizer"] = whole, whole
    moment = max(moments, key=lambda k: moments[k])
    return Need(kept, moments[moment], gradient[moment], moment, moments)


def _layer(z: Sizes, s: Setting, batch: Batch, layer: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a layer's attention keeps, and the rest of it. The last layer's experts see the predicting rows alone."""
    rows = batch.predicting if layer == z.moe.depth - 1 else batch.rows
    attention = _times(attention_row(z, s, layer == 0), batch.rows)
    moe = layer in z.moe.layers
    per_row = moe_row(z, s) if moe else dense_row(z, s)
    norms = per_row.pop("norms")
    rest = {"norms": norms * batch.rows, **_times(per_row, rows), "copies of the adapter": _copies(z, s) if moe else 0}
    return attention, rest


def _logits(z: Sizes, s: Setting, rows: int) -> tuple[int, int, int]:
    """Bytes held for backward; alive in forward; alive in backward.

    A chunk's logits live until the next chunk's are there (in backward with the probabilities made of them); in bfloat16 the
    projection comes before its float32 copy.
    """
    per_chunk = max(1, _CHUNK_LOGITS // z.vocabulary)
    chunk = min(rows, per_chunk) * z.vocabulary * _FLOAT
    cast = 0 if s.dtype == "float32" else 0.5
    if rows <= per_chunk:
        return chunk, round((1 + cast) * chunk), round((2 + cast) * chunk)
    second = min(rows - per_chunk, per_chunk) * z.vocabulary * _FLOAT
    return 0, chunk + round((1 + cast) * second), 2 * chunk + round((1 + cast) * second)


def _times(per_row: dict[str, int], rows: int) -> dict[str, int]:
    return {name: n * rows for name, n in per_row.items()}


def _add(kept: dict[str, int], parts: dict[str, int]) -> int:
    for name, n in parts.items():
        kept[name] = kept.get(name, 0) + n
    return sum(parts.values())
