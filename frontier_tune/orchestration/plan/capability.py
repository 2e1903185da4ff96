"""What a plan may ask for and this version can't run yet. A dry run says it; a real run is refused by it."""

from __future__ import annotations

from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.experts.families import family_of
from frontier_tune.orchestration.plan import cache, machine
from frontier_tune.orchestration.plan.sizes import quantization, windows
from frontier_tune.recipe import Recipe, full


def on_gpus(recipe: Recipe) -> bool:
    """Whether GPUs are stated, or here."""
    return bool(recipe.placement.gpus_per_node or machine.gpus())


def missing(recipe: Recipe, config: Any) -> list[str]:
    """One line each: what is missing, and the key that asks for it. Empty where the recipe can run as it is."""
    p = recipe.placement
    warm = recipe.warm_start.sft is not None or recipe.warm_start.dpo is not None
    several = p.samplers > 1 or p.address is not None
    gpus = on_gpus(recipe)
    asked = {
        "placement.gpus_per_node": (
            p.address is not None and p.gpus_per_node is None and bool(machine.gpus()),
            "GPUs of a cluster that the recipe does not state: gpus_per_node and gpu_memory_gib say what each node has",
        ),
        "placement.gpus_per_node: 0": (
            p.gpus_per_node == 0 and bool(machine.gpus()),
            "CPUs alone on a machine with GPUs, which its processes would find: hide them (CUDA_VISIBLE_DEVICES=)",
        ),
        "learner.device": (
            recipe.learner.device == "cuda" and not gpus,
            "a learner on a GPU, of which there is none here and none is stated (placement.gpus_per_node)",
        ),
        "adapter.rank": (
            not full.whole(recipe) and recipe.adapter.rank > cache.RANKS[-1],
            f"adapters of a rank above {cache.RANKS[-1]}: vLLM has no buffers for them",
        ),
        "sampler.routes": (
            gpus and (recipe.sampler.routes or recipe.algorithm.replay == "sampler"),
            "routes kept by a sampler on a GPU: the CPU engine's alone are; algorithm.replay: learner takes the learner's own",
        ),
        "run.deterministic": (
            recipe.run.deterministic and several,
            "the same bytes at every try: of several samplers whichever is freer takes a request",
        ),
        "placement.tensor_parallel": (p.tensor_parallel > 1, "splitting a sampler over GPUs: it runs in one process"),
        "warm_start": (p.shard_base and warm, "a warm start on a split base: its trainers hold all of it in one process"),
        "adapter.router": (
            recipe.adapter.router and (p.shard_base or warm or gpus),
            "routers that learn, with a split base, a warm start or GPUs: learners hold the base whole, the stages of a warm "
            "start leave routers alone, and samplers on CPUs alone apply an adapter's own",
        ),
        "learner.trainable": (
            full.whole(recipe) and gpus,
            "all weights trained with GPUs: samplers on CPUs alone take whole models",
        ),
        "learner.compile": (p.shard_base and recipe.learner.compile, "compiled layers of a split base"),
        "placement.episode_actors": (
            p.episode_actors > 1 and recipe.run.deterministic,
            "run.deterministic with several episode actors: what shares a batch in the sampler depends on which was quicker",
        ),
        "placement.nodes": (p.nodes > 1 and p.address is None, f"{p.nodes} nodes need a cluster: its placement.address"),
    }
    return [f"{what} ({key})" for key, (wanted, what) in asked.items() if wanted] + _of_the_base(recipe, config)


def _of_the_base(recipe: Recipe, config: Any) -> list[str]:
    out, r = [], recipe.sampler
    shortest = min((w for w in windows(config) if w is not None), default=r.max_model_len)
    if shortest < r.max_model_len and (r.routes or recipe.algorithm.replay == "sampler"):
        out.append("routes kept by the sampler, of a base with attention windows: it has several caches (sampler.routes)")
    method, p = quantization(config), recipe.placement
    if method == "mxfp4":
        if p.shard_base:
            out.append("a base in MXFP4, split over learners: it is unpacked whole (placement.shard_base)")
        if not on_gpus(recipe):
            out.append(
                "adapters over a base in MXFP4 on a CPU: vLLM's kernels there take none; with unpacked weights they do (base)"
            )
    elif method:
        out.append(f"training on weights quantized by {method}: the learner takes MXFP4 and unquantized ones (base)")
    if method and r.dtype == "float32":
        out.append(f"a sampler that computes in float32 over weights in {method}: bfloat16 alone (sampler.dtype)")
    if getattr(config, "kv_lora_rank", None) is not None and r.dtype == "float32" and not on_gpus(recipe):
        out.append("latent attention in float32 on a CPU: vLLM's kernels there take bfloat16 (sampler.dtype)")
    if full.whole(recipe):
        if family_of(config).router is None:
            out.append(f"training all weights of {family_of(config).label} (learner.trainable)")
        if method:
            out.append(f"training all weights of a base that is quantized by {method} (learner.trainable)")
    return out


def require(recipe: Recipe, config: Any) -> None:
    """Raises BadInput with all that is missing."""
    lines = missing(recipe, config)
    if lines:
        raise BadInput(
            "this version can't run the recipe; `--dry-run` plans it all the same. Missing:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nTake those keys out, or choose another base"
        )
