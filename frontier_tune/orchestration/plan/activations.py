"""What one micro-batch takes in the learner: kept for backward, and alive besides at the fullest moment.

Every figure is a count of tensors that the forward in ``learning`` and in transformers' modelling code keeps; a benchmark
(benchmarks/plan_memory.py) and tests compare them with what torch allocates. Stated for CPUs, where it is measured. What a GPU
has otherwise (``device``: blocks of its attention, all routes of its experts at once, the optimizer's copy) is read from the
code; nothing of it was measured on one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from frontier_tune.orchestration.plan.sizes import BYTES, Sizes

_INDEX = 8  # int64
_FLOAT = 4  # what is float32 whatever the base's type
_ID = 4  # int32, of an expert
GROUPED_RANK, GROUPED_EXPERTS, GROUPED_COLUMNS = 128, 4096, 32  # experts.grouped: what it takes, and its narrowest tile
_CHUNK_LOGITS, _CACHED_LOGITS, _CACHED_ROWS = 1 << 24, 1 << 18, 128  # learning.logprobs


@dataclass(frozen=True)
class Batch:
    """One micro-batch: ``rows`` tokens, of which ``predicting`` are the context of a sampled one."""

    rows: int
    predicting: int


@dataclass(frozen=True)
class Setting:
    """What besides the sizes decides: the base's type, the adapter's rank and targets, the device, checkpointing by layer.

    ``whole``: all weights learn; then rank is 0, and the targets are all.
    """

    dtype: str
    rank: int
    projections: tuple[str, ...]
    experts: bool
    device: str = "cpu"
    checkpointing: bool = False
    whole: bool = False

    @property
    def exact(self) -> bool:
        """Whether the lean forwards of learning.fused are in: they take float32 alone."""
        return self.dtype == "float32"


@dataclass(frozen=True)
class Need:
    """Bytes. ``kept`` by kind, when the forward has ended; ``peak`` of activations and gradient together, and when it comes.

    ``holes`` is what the C library's heap has in pieces afterwards: about two of the largest tensor that comes and goes, and up
    to eight pieces of logits; where torch takes one expert after another, in each layer the widest of its tensors besides
    (measured).
    """

    kept: dict[str, int]
    peak: int
    moment: str
    holes: int
    moments: dict[str, int] = field(default_factory=dict)


def _norm(s: Setting, width: int) -> int:
    """Of one RMS norm over ``width``: its input; in bfloat16 as a float32 copy, with the root."""
    return _FLOAT * width if s.exact and s.device == "cpu" else _FLOAT * (width + 1)


def _lora_inputs(s: Setting, widths: dict[str, int]) -> int:
    """Of the LoRA linears that share one input: in float32 that input once, else a float32 copy for each; and x A of each."""
    found = [w for name, w in widths.items() if name in s.projections]
    inputs = 0 if not found else found[0] if s.exact else sum(found)
    return _FLOAT * (inputs + s.rank * len(found))


def _extra(z: Sizes) -> int:
    """By how much a head is widened where its sink is a key (learning.sinks)."""
    return 8 if z.model_type == "gpt_oss" else 0


def attention_row(z: Sizes, s: Setting, first: bool, windowed: bool = False) -> dict[str, int]:
    """Bytes a row of one layer's attention, norms before it included. The first layer's input takes no gradient, unless the
    embedding learns."""
    b, first = BYTES[s.dtype], first and not s.whole
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
    blocks = windowed or s.device != "cpu"  # of their own; and the output once more, in rows
    if grad:
        more = _extra(z) if blocks else 0
        keys = 2 if windowed else 1  # of each block its own keys, and the window before it
        kept = z.query + more * z.heads if not windowed and expanded_keys(z, s) else keys * (z.key_value + more * z.kv_heads)
        inner = b * (2 * (z.query + more * z.heads) + 2 * kept) + _FLOAT * z.heads
        if blocks and not windowed:
            inner += b * z.query
    out = {"o_proj": z.heads * z.value_head}
    shared = s.exact and grad and z.value_head == z.head and not blocks  # o_proj's input is attention's output itself
    projections += _lora_inputs(s, out) - (_FLOAT * out["o_proj"] if shared and "o_proj" in s.projections else 0)
    return {"norms": norms, "attention": inner, "projections": projections}


def moe_row(z: Sizes, s: Setting) -> dict[str, int]:
    """Bytes a row of one mixture-of-experts layer, its norm included."""
    b, k, e = BYTES[s.dtype], z.moe.top_k, z.moe.num_experts
    router = _FLOAT * e + _INDEX * k + (_FLOAT * (1 + k) if z.normalised_weights else 0)
    if z.model_type == "deepseek_v3":  # sigmoid scores, groups and their mask
        router = _FLOAT * e + _INDEX * (2 * z.groups[0] + z.groups[1]) + e + _INDEX * k + _FLOAT * (1 + k)
    weight = _FLOAT if z.model_type in ("deepseek_v3", "mixtral", "gpt_oss") else b
    wide, hidden = z.moe.expert_width, z.hidden
    if s.experts:
        order = _INDEX + _FLOAT if native_experts(z, s) else 2 * _INDEX
        experts = b * hidden + weight * k + order * k + b * k * 2 * wide + 2 * b * k * s.rank
    else:  # transformers' own experts: gate and up, the activation, and each route's output before its weight
        experts = b * k * (3 * wide + hidden) + weight * k + 3 * _INDEX * k
    if z.shared_width:
        experts += 3 * b * z.shared_width
    return {"norms": _norm(s, z.hidden), "router": router, "experts": experts}


def native_experts(z: Sizes, s: Setting) -> bool:
    """Whether the native kernel trains the expert adapters: as learning's own question, ``experts.lora_experts._native``."""
    small = z.hidden % 16 == 0 and z.hidden * z.moe.expert_width <= 1 << 17
    able = small and z.model_type != "gpt_oss" and not s.whole
    return s.experts and s.exact and s.device == "cpu" and able


def grouped_experts(z: Sizes, s: Setting) -> bool:
    """Whether Triton's kernels train the expert adapters: as ``experts.lora_experts.swiglu_experts`` asks on CUDA."""
    able = s.rank <= GROUPED_RANK and z.moe.num_experts <= GROUPED_EXPERTS and z.model_type != "gpt_oss" and not s.whole
    return s.experts and s.device != "cpu" and able


def expanded_keys(z: Sizes, s: Setting) -> bool:
    """Whether keys and values are copied to all query heads, as ``learning.attention`` does in float32 on CUDA."""
    return s.exact and s.device != "cpu" and z.key_value < z.query


def _padding(z: Sizes, s: Setting, rows: int) -> int:
    """Of one layer's experts: the native kernel begins each expert's rows with a tile of 32."""
    if not native_experts(z, s):
        return 0
    routes = rows * z.moe.top_k
    return 31 * min(z.moe.num_experts, routes) * _FLOAT * (2 * z.moe.expert_width + 2 * s.rank)


def dense_row(z: Sizes, s: Setting) -> dict[str, int]:
    """Bytes a row of a dense layer's SwiGLU, its norm included."""
    inputs = z.hidden if s.whole else 0
    return {"norms": _norm(s, z.hidden), "experts": BYTES[s.dtype] * (3 * z.dense_width + inputs)}


def expert_adapter(z: Sizes, s: Setting) -> int:
    """Parameters of one layer's expert adapter, or of its experts where they learn themselves."""
    h, i = z.moe.hidden, z.moe.expert_width
    if s.whole:
        return z.moe.num_experts * 3 * h * i
    return z.moe.num_experts * s.rank * (h + 2 * i + i + h) if s.experts else 0


def _copies(z: Sizes, s: Setting) -> int:
    """Copies of one layer's expert adapter in the order that the kernels take: B in float32, else A and B."""
    if not s.experts:
        return 0
    h, i = z.moe.hidden, z.moe.expert_width
    ours = 2 * i + h if s.exact else 2 * i + h + h + i
    return BYTES[s.dtype] * z.moe.num_experts * s.rank * ours


def need(z: Sizes, s: Setting, batch: Batch, adapter: int, summed: bool = False) -> Need:
    """What a micro-batch needs. ``adapter``: parameters of the whole adapter, whose gradient is float32.

    ``summed``: gradients of several learners are added up, in one flat buffer more.
    """
    t, m = batch.rows, batch.predicting
    b, h, depth = BYTES[s.dtype], z.hidden, z.moe.depth
    kept: dict[str, int] = {}
    angles = z.latent[2] if z.latent else z.head // 2 if z.model_type == "gpt_oss" else z.head
    total = _add(kept, {"positions and indices": t * 5 * _INDEX + 2 * t * b * angles})
    total += _add(kept, {"masks of windows": sum(2 * w * t * b * z.heads // z.kv_heads for w in _short(z, t))})
    before, after = [], []  # kept when a layer's attention is done, and when the layer is
    for layer in range(depth):
        attention, rest = _layer(z, s, batch, layer)
        if s.checkpointing:  # of other layers their inputs; this one's own is there while backward computes it again
            total += _add(kept, {"inputs of layers": t * h * b, "routes of layers": _routes(z, batch, layer)})
            twice = t * h * b if s.exact and layer else 0  # its first norm keeps the input itself
            before.append(total + sum(attention.values()) - twice)
            after.append(before[-1] + sum(rest.values()))
        else:
            before.append(total + _add(kept, attention))
            total = before[-1] + _add(kept, rest)
            after.append(total)
    total += _add(kept, {"norms": m * (_norm(s, h) + b * h)})  # the final norm's input, and what the head projects
    held, forward, backward = _logits(z, s, m)
    total += _add(kept, {"logits": held})
    head = z.vocabulary * h * _FLOAT if s.whole else 0  # its gradient
    moments = {"logits, forward": total - held + forward, "logits, backward": total - held + backward + m * b * h + head}

    whole, of_layer = adapter * _FLOAT, expert_adapter(z, s) * _FLOAT
    looked_at = {max(0, depth - 2): "last but one", depth - 1: "last"}
    if s.checkpointing:  # where a layer's input is smaller than its adapter's gradient, memory is fullest at the end of backward
        looked_at = {0: "first"} | looked_at
    for layer, name in looked_at.items():
        rows = m if layer == depth - 1 else t
        done = (depth - 1 - layer) * whole // depth  # of the layers behind, whose gradient is there
        forward, backward = _experts(z, s, rows) if layer in z.moe.layers else (0, 3 * rows * z.dense_width * b)
        into, back = _attention(z, s, t, z.windows[layer] in _short(z, t))
        gradients = 2 * rows + (0 if s.checkpointing and layer < depth - 1 else t)
        moments |= {
            f"experts of the {name} layer, forward": after[layer] + forward + (rows + t) * h * b,
            f"experts of the {name} layer, backward": after[layer] + backward + gradients * h * b + done + 2 * of_layer,
            f"attention of the {name} layer, forward": before[layer] + into + 2 * t * h * b,
            f"attention of the {name} layer, backward": before[layer] + back + 2 * t * h * b + done + of_layer,
        }
    # Beside the gradient: one parameter's root of its second moment, or, where CUDA takes all parameters in one call, everyone's.
    moments["optimizer"] = max(3 * whole if summed else 0, whole + (of_layer if s.device == "cpu" else whole))
    moment = max(moments, key=lambda k: moments[k])
    at_once = _piece(z, m)
    chunk = min(m, at_once) * z.vocabulary * _FLOAT
    holes = 2 * max(chunk, t * z.moe.top_k * h * b) + min(8, max(0, -(-m // at_once) - 2)) * chunk
    if s.device == "cpu" and s.exact and (not s.experts or z.model_type == "gpt_oss"):
        # torch's path takes one expert after another: pieces of all sizes, between which layers keep theirs.
        holes += len(z.moe.layers) * t * z.moe.top_k * 2 * z.moe.expert_width * b
    return Need(kept, moments[moment], moment, holes, moments)


def _experts(z: Sizes, s: Setting, rows: int) -> tuple[int, int]:
    """Alive besides in forward and in backward: every route's output (input's gradient), and what one expert's rows take.

    An expert is taken to have twice its even share of them. Triton's kernels take all routes at once: the activation until the
    output is there; in backward with its gradients, the two rank-r ones, and the parts of the routing weights'.
    """
    b, routes = BYTES[s.dtype], rows * z.moe.top_k
    of_one = min(routes, 2 * routes // z.moe.num_experts)
    h, i = z.hidden, z.moe.expert_width
    if z.model_type == "gpt_oss":  # its gate's parts are tensors of their own
        return b * (routes * h + of_one * 3 * i), b * (routes * h + of_one * (9 * i + 2 * h))
    if native_experts(z, s):
        return b * routes * h, b * routes * h
    if grouped_experts(z, s):
        return b * routes * (h + i), b * routes * (h + 3 * i + 2 * s.rank) + _FLOAT * routes * -(-i // GROUPED_COLUMNS)
    return b * (routes * h + of_one * i), b * (routes * h + of_one * (4 * i + 2 * h))


def _short(z: Sizes, rows: int) -> set[int]:
    """The windows that are shorter than a sequence, which may have all ``rows``."""
    return {w for w in z.windows if w is not None and w < rows}


def _attention(z: Sizes, s: Setting, rows: int, windowed: bool) -> tuple[int, int]:
    """Alive besides in forward and in backward. The native kernel reads rows where they lie; others take padded blocks."""
    b, q, kv = BYTES[s.dtype], z.query, z.key_value
    native = not windowed and s.exact and s.device == "cpu" and z.head % 8 == 0 and z.head <= 256
    into = 0 if native else 4 * q + 2 * kv
    back = 2 * q + 2 * kv if native else 8 * q + 6 * kv if s.device == "cpu" else 4 * q + 4 * kv
    if not windowed and expanded_keys(z, s):  # the gradients of the copies
        back += 2 * q
    if z.latent is not None:  # queries and expanded keys before they are put together, and, for the kernel, in rows
        into += q + z.heads * (z.head - z.latent[2] + z.value_head) + (q + kv if native else 0)
    freed = 0 if s.exact or "o_proj" not in s.projections else _FLOAT * z.heads * z.value_head  # o_proj's input is gone by then
    return b * rows * into, b * rows * back - rows * freed


def _layer(z: Sizes, s: Setting, batch: Batch, layer: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a layer's attention keeps, and the rest of it. The last layer's experts see the predicting rows alone."""
    rows = batch.predicting if layer == z.moe.depth - 1 else batch.rows
    attention = _times(attention_row(z, s, layer == 0, z.windows[layer] in _short(z, batch.rows)), batch.rows)
    moe = layer in z.moe.layers
    per_row = moe_row(z, s) if moe else dense_row(z, s)
    norms = per_row.pop("norms")
    rest = {"norms": norms * batch.rows, **_times(per_row, rows), "copies of the adapter": _copies(z, s) if moe else 0}
    if moe:
        rest["padding of experts"] = _padding(z, s, rows)
    return attention, rest


def _routes(z: Sizes, batch: Batch, layer: int) -> int:
    """Ids that a layer is run again with (learning.recompute). DeepSeek's routers stay stock: they choose again."""
    if layer not in z.moe.layers or z.model_type == "deepseek_v3":
        return 0
    return _ID * z.moe.top_k * (batch.predicting if layer == z.moe.depth - 1 else batch.rows)


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
    if s.device == "cpu":
        chunk = _piece(z, rows) * z.vocabulary * _FLOAT
        return 0, round((2 + cast) * chunk), round((2 + cast) * chunk)
    second = min(rows - per_chunk, per_chunk) * z.vocabulary * _FLOAT
    return 0, chunk + round((1 + cast) * second), 2 * chunk + round((1 + cast) * second)


def _piece(z: Sizes, rows: int) -> int:
    """Rows whose logits a CPU has at once: all where they wait for backward, else pieces that stay in the cache."""
    per_chunk = max(1, _CHUNK_LOGITS // z.vocabulary)
    return rows if rows <= per_chunk else min(per_chunk, max(_CACHED_ROWS, _CACHED_LOGITS // z.vocabulary))


def _times(per_row: dict[str, int], rows: int) -> dict[str, int]:
    return {name: n * rows for name, n in per_row.items()}


def _add(kept: dict[str, int], parts: dict[str, int]) -> int:
    for name, n in parts.items():
        kept[name] = kept.get(name, 0) + n
    return sum(parts.values())
