"""The processes of a run and what each needs, part by part: in main memory, and on each of its GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from frontier_tune.orchestration.plan import activations, cache
from frontier_tune.orchestration.plan.machine import MIB
from frontier_tune.orchestration.plan.sizes import (
    BYTES,
    MXFP4_BYTES,
    Parameters,
    Sizes,
    adapter_parameters,
    quantization,
    router_parameters,
    weight_bytes,
)
from frontier_tune.orchestration.plan.work import Work, microbatch
from frontier_tune.recipe import Recipe, full

GIB = 2**30
# Resident memory of each process before any model is in it (interpreter, torch, engine code), measured on the CPU builds.
PROCESSES = {"driver": 450 * MIB, "episodes": 350 * MIB, "environment worker": 160 * MIB, "ray": 600 * MIB}
ENGINE, LEARNER = 900 * MIB, 550 * MIB
# Estimates, not measured here: CUDA's context with its libraries' workspaces; buffers of NCCL in a process that talks to others.
CUDA_CONTEXT, NCCL = 700 * MIB, 400 * MIB
# Read from Triton's code: what it writes over between two measurements of a kernel's tiles, when the learner's experts first run.
TUNING = 256 * MIB
# Of the learner on a CPU in bfloat16, measured by benchmarks/plan_memory.py: oneDNN compiles a kernel for every shape of matrix
# that an expert happens to get, and keeps a thousand of them.
ONEDNN_KERNELS = 850 * MIB
# Of the learner with learner.compile, measured by benchmarks/learner_compile.py: torch's compiler and what it keeps.
COMPILER = 150 * MIB
# Of the learner, where large pieces go back to the system at once.
SMALL_PIECES = 32 * MIB
TRAJECTORY_BYTES_PER_TOKEN = 40  # token, mask, log-probability, version as Python lists, in three processes at times
_BATCHED_TOKENS = 4096  # sampling.backend: tokens of one forward of the engine, at least


@dataclass(frozen=True)
class Part:
    """``key``: the recipe's key that makes it smaller. ``exact``: counted; else a figure measured elsewhere, or an estimate."""

    name: str
    bytes: int
    key: str
    exact: bool = True


@dataclass(frozen=True)
class Actor:
    """One process. ``gpus``: how many it has; ``device``: what it needs on each of them; ``host``: in main memory."""

    name: str
    gpus: int
    device: tuple[Part, ...]
    host: tuple[Part, ...]


@dataclass(frozen=True)
class Subject:
    """What is planned: everything that parts are computed from. ``adapter``: parameters that learn, all where all weights do."""

    recipe: Recipe
    config: Any
    sizes: Sizes
    parameters: Parameters
    adapter: int
    work: Work


def subject(recipe: Recipe, config: Any, parameters: Parameters, sizes: Sizes, work: Work) -> Subject:
    learning = parameters.total if full.whole(recipe) else adapter_parameters(recipe, config)
    return Subject(recipe, config, sizes, parameters, learning, work)


def _setting(s: Subject, device: str) -> activations.Setting:
    """What of the recipe decides over a micro-batch's memory."""
    from frontier_tune.experts.families import attention_projections, target_modules

    r, whole = s.recipe, full.whole(s.recipe)
    return activations.Setting(
        r.learner.dtype,
        0 if whole else r.adapter.rank,
        tuple(attention_projections(s.config) if whole else target_modules(r.adapter, s.config)),
        r.adapter.experts or whole,
        device,
        r.learner.activation_checkpointing,
        whole,
    )


def learner_need(s: Subject, device: str, learners: int = 1) -> activations.Need:
    """Of the fullest micro-batch that the recipe allows: as many rows predict as there are."""
    rows = microbatch(s.recipe, s.work, learners)
    return activations.need(s.sizes, _setting(s, device), activations.Batch(rows, rows), s.adapter, learners > 1)


def learner_parts(s: Subject, device: str, learners: int = 1, sharded: bool = False) -> list[Part]:
    """The learner's memory where its model is."""
    r, whole = s.recipe, full.whole(s.recipe)
    base = kept_by_one(s.parameters, learners) * BYTES[r.learner.dtype] if sharded else _whole_base(s)
    found = learner_need(s, device, learners)
    beyond = max(0, found.peak - s.adapter * 4)  # the gradient is in the row before, whether it is there at the peak or not
    parts = [
        *([] if whole else [Part(_held(s), base, "placement.shard_base" if learners > 1 else "learner.dtype")]),
        Part(
            f"{'weights' if whole else 'adapter'}, gradient, two moments",
            s.adapter * 4 * 4,
            "learner.trainable" if whole else "adapter.rank",
        ),
        *([Part("state to go back to", s.adapter * 4 * 3, "learner.rollbacks")] if r.learner.rollbacks else []),
        # Those of eager layers: what compiled ones keep is torch's choice, which it makes when it compiles them. Where all
        # weights learn an estimate.
        Part("activations of a micro-batch", beyond, "learner.tokens_per_microbatch", exact=not (r.learner.compile or whole)),
    ]
    if whole:
        parts.append(Part("weights on their way to the sampler", handover_bytes(s), "sampler.dtype", exact=False))
    if device == "cpu":
        parts += retained(found, r.learner.dtype, sharded, r.learner.activation_checkpointing)
    elif activations.grouped_experts(s.sizes, _setting(s, device)):
        parts.append(Part("tiles of the experts' kernels, measured once", TUNING, "", exact=False))
    if sharded:
        parts.append(Part("whole layers of the base in use", gathered(s, found, device), "placement.shard_base"))
    if r.algorithm.name == "ppo":
        width = s.sizes.hidden
        critic = (width * width + 2 * width + 1) * 4 * 4 + 2 * 4 * width * microbatch(r, s.work, learners)
        parts.append(Part("critic", critic, "algorithm.name"))
    return parts


def _whole_base(s: Subject) -> int:
    """Bytes of the base as a learner computes with it."""
    return s.parameters.total * BYTES[s.recipe.learner.dtype]


def _held(s: Subject) -> str:
    """What the learner's base is called: of a quantized checkpoint it holds the numbers unpacked (experts.quantized)."""
    return "base, unpacked from MXFP4" if quantization(s.config) == "mxfp4" else "base"


def kept_by_one(p: Parameters, learners: int) -> int:
    """Parameters of a split base that each learner keeps: an even share of the matrices (learning.shard), and all of the rest."""
    whole = p.vector + p.router
    return -(-(p.total - whole) // learners) + whole


def gathered(s: Subject, need: activations.Need, device: str) -> int:
    """By how much the learner's fullest moment grows where what it uses of the base has to be put together first.

    In forward a layer lies there twice (as it came, and as its parameters), in backward with the next one that is on its way; on
    a CPU gloo has a copy besides while it gathers. The vocabulary's matrix is there twice in forward, once in backward, and with
    the last layer where it serves as input and output.
    """
    z, p, width = s.sizes, s.parameters, BYTES[s.recipe.learner.dtype]
    moe = p.experts // len(z.moe.layers) + 3 * z.hidden * z.shared_width
    dense = 3 * z.hidden * z.dense_width if len(z.moe.layers) < z.moe.depth else 0
    layer = (p.attention // z.moe.depth + max(moe, dense)) * width
    head = p.embedding * width  # as large as the output embedding, tied or not
    more = {"logits, forward": 2 * head, "logits, backward": head + (0 if p.head else layer), "optimizer": 0}
    layers = (3 if device == "cpu" else 2) * layer
    moments = [held + more.get(moment, layers) for moment, held in need.moments.items()]
    return max(*moments, 2 * head) - need.peak


def retained(need: activations.Need, dtype: str, sharded: bool = False, checkpointing: bool = False) -> list[Part]:
    """What the learner's process on a CPU holds beyond its tensors, once a micro-batch has gone through it.

    Freed memory stays with the process (learning.memory), and an aligned allocation does not fill every hole of its size. With a
    split base, or layers that are run again, it goes back to the system but for small pieces.
    """
    left = SMALL_PIECES if checkpointing else need.holes
    holes = Part("pieces that freed memory leaves", left, "learner.tokens_per_microbatch", exact=False)
    parts = [] if sharded else [holes]
    if dtype != "float32":
        parts.append(Part("oneDNN's kernels", ONEDNN_KERNELS, "learner.dtype", exact=False))
    return parts


def handover_bytes(s: Subject) -> int:
    """What every update hands to the sampler: an adapter in float32, or a whole model at the sampler's type."""
    return s.adapter * (BYTES[s.recipe.sampler.dtype] if full.whole(s.recipe) else 4)


def _served(s: Subject) -> Subject:
    """As the sampler sees it: for whole models its engine is built with an adapter's smallest place, that nothing fills."""
    if not full.whole(s.recipe):
        return s
    from frontier_tune.experts.whole import ENGINE_ADAPTER  # imports torch: not before a plan needs it

    recipe = s.recipe.model_copy(update={"adapter": ENGINE_ADAPTER})
    return replace(s, recipe=recipe, adapter=adapter_parameters(recipe, s.config))


def sampler_parts(s: Subject, device: str, tensor_parallel: int = 1) -> list[Part]:
    """The sampler's memory where its model is, on each of its GPUs."""
    s = _served(s)
    r, tp = s.recipe.sampler, tensor_parallel
    base, routers = weight_bytes(s.parameters, s.config, r.dtype), router_parameters(s.recipe, s.config)
    slots = cache.adapter_slots(s.sizes, s.recipe.adapter.rank, s.adapter - routers, s.recipe.adapter.experts, r.dtype)
    parts = [
        Part("base", -(-base // tp), "placement.tensor_parallel" if device != "cpu" else "sampler.dtype"),
        Part("adapter slots", -(-slots // tp), "adapter.rank"),
        Part("KV cache", r.kv_cache_mb * MIB, "sampler.kv_cache_mb"),
    ]
    if device != "cpu" and quantization(s.config) == "mxfp4":
        parts.append(Part("MXFP4 as the kernels want it", mxfp4_padding(s.sizes, tp), "placement.tensor_parallel", exact=False))
    if routers:
        parts.append(Part("routers of adapters", cache.router_slots(routers), "adapter.router"))
    if device == "cpu" and r.head_dtype != "model" and BYTES[r.dtype] < BYTES[r.head_dtype]:
        # The plugin keeps the cast copy (experts.vllm_plugin_head); on a GPU the product is added up in float32 without one.
        parts.append(
            Part(f"output embedding in {r.head_dtype}", s.parameters.embedding * BYTES[r.head_dtype], "sampler.head_dtype")
        )
    if device == "cpu" and s.recipe.adapter.experts:
        if _sampler_kernel(s):
            parts.append(Part("adapter slots as the kernel reads them", slots, "adapter.rank"))
        else:  # unpacked weights to merge into, and a packed copy of the experts for the base and each slot
            merged = (2 + cache.SLOTS) * s.parameters.in_experts * BYTES[r.dtype]
            parts.append(Part("experts with adapter merged", merged, "adapter.experts"))
    if full.whole(s.recipe):  # as they came, as they are laid out for the kernels, and as they were
        layer = 3 * s.parameters.in_experts // len(s.sizes.moe.layers) * BYTES[r.dtype]
        parts.append(Part("a layer that is read again", layer, "sampler.dtype", exact=False))
    if device != "cpu":
        parts.append(Part("workspace of a forward", -(-_workspace(s) // tp), "sampler.max_sequences", exact=False))
    return parts


def mxfp4_padding(z: Sizes, tensor_parallel: int) -> int:
    """Bytes on each GPU by which vLLM pads experts in MXFP4, at most: of its kernels on NVIDIA's GPUs one wants the expert's
    width in multiples of 128, hidden states of 256; others less."""
    hidden, width = -(-z.hidden // 256) * 256, -(-z.moe.expert_width // (128 * tensor_parallel)) * 128
    more = hidden * width - z.hidden * z.moe.expert_width / tensor_parallel
    return round(len(z.moe.layers) * z.moe.num_experts * 3 * more * MXFP4_BYTES)


def _sampler_kernel(s: Subject) -> bool:
    """Whether the sampler's CPU kernel takes these experts, as ``experts.vllm_plugin_experts`` asks: gpt-oss' have biases."""
    return s.sizes.model_type != "gpt_oss" and s.sizes.moe.hidden % 32 == 0 and s.sizes.moe.expert_width % 32 == 0


def _workspace(s: Subject) -> int:
    """Alive in one forward of the engine: the experts' three buffers, and logits in float32 three times over."""
    r, z = s.recipe.sampler, s.sizes
    tokens = max(r.max_model_len, _BATCHED_TOKENS)
    experts = tokens * z.moe.top_k * (3 * z.moe.expert_width + z.hidden) * BYTES[r.dtype]
    return experts + 3 * 4 * r.max_sequences * z.vocabulary


def crew(s: Subject, device: str) -> list[Actor]:
    """Every process of the run. On ``cpu`` models are in main memory, on ``cuda`` on GPUs, but for a learner.device of cpu."""
    p, env = s.recipe.placement, s.recipe.environment
    on_gpu = device != "cpu"
    learns_on = "cpu" if s.recipe.learner.device == "cpu" else device
    out = []
    for n in range(p.learners):
        parts = learner_parts(s, learns_on, p.learners, p.shard_base)
        compiler = s.recipe.learner.compile
        process = Part("process" + (", torch.compile" if compiler else ""), LEARNER + COMPILER * compiler, "", exact=False)
        if learns_on != "cpu":
            context = Part(
                "CUDA context" + (", NCCL" if p.learners > 1 else ""), CUDA_CONTEXT + NCCL * (p.learners > 1), "", False
            )
            # transformers puts a base together in main memory, from where it goes to the GPU; a split one is read slice by slice
            loading = [] if p.shard_base else [Part("base while it is loaded", _whole_base(s), "learner.dtype")]
            out.append(Actor(_numbered("learner", n, p.learners), 1, (*parts, context), (*loading, process)))
        else:
            out.append(Actor(_numbered("learner", n, p.learners), 0, (), (*parts, process)))
    for n in range(p.samplers):
        parts = sampler_parts(s, device, p.tensor_parallel if on_gpu else 1)
        process = Part("process", ENGINE * (p.tensor_parallel if on_gpu else 1), "", exact=False)
        if on_gpu:
            many = p.tensor_parallel > 1
            context = Part("CUDA context" + (", NCCL" if many else ""), CUDA_CONTEXT + NCCL * many, "", False)
            spare = Part("adapters in main memory", cache.SLOTS * s.adapter * BYTES[s.recipe.sampler.dtype], "adapter.rank")
            out.append(Actor(_numbered("sampler", n, p.samplers), p.tensor_parallel, (*parts, context), (spare, process)))
        else:
            out.append(Actor(_numbered("sampler", n, p.samplers), 0, (), (*parts, process)))
    for n in range(p.episode_actors):
        count = env.workers * (2 if env.general_tasks or s.work.rehearsal else 1)  # general tasks have workers of their own
        workers = Part(f"{count} environment workers", count * PROCESSES["environment worker"], "environment.workers", False)
        process = Part("process", PROCESSES["episodes"], "", exact=False)
        out.append(Actor(_numbered("episodes", n, p.episode_actors), 0, (), (workers, process)))
    held = (
        s.work.episodes_at_most * s.work.longest * (TRAJECTORY_BYTES_PER_TOKEN + _route_bytes(s)) * (1 + s.recipe.run.staleness)
    )
    driver = (
        Part("trajectories of a step", held, "algorithm.groups_per_step"),
        Part("process and Ray", PROCESSES["driver"] + PROCESSES["ray"], "", exact=False),
    )
    out.append(Actor("driver", 0, (), driver))
    return out


def _route_bytes(s: Subject) -> int:
    """Of one token, where the sampler's routes go to the learner: the experts of every layer, in two processes at times."""
    if not (s.recipe.sampler.routes or s.recipe.algorithm.replay == "sampler"):
        return 0
    return 2 * len(s.sizes.moe.layers) * s.sizes.moe.top_k * (1 if s.sizes.moe.num_experts <= 256 else 2)


def _numbered(name: str, n: int, count: int) -> str:
    return name if count == 1 else f"{name} {n + 1}"
