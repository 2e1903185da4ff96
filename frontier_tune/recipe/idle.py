"""Settings that are there and have no effect as the others stand: refused, not ignored, where a run is checked.

Those of an algorithm are its own (``algorithms.base.Algorithm.idle``), those of overlapping orchestration's.
"""

from __future__ import annotations

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import Adapter, Learner, Recipe, full


def idle(recipe: Recipe) -> list[str]:
    """What is wrong, and how to mend it. A key that has its default says nothing, whether it was written down or not."""
    found = []
    learner, warm, adapter, placement = recipe.learner, recipe.warm_start, recipe.adapter, recipe.placement
    if learner.schedule == "constant" and learner.final_lr_ratio != Learner.model_fields["final_lr_ratio"].default:
        found.append("learner.final_lr_ratio: it has no effect at schedule: constant; set linear or cosine, or take it out")
    if warm.evaluate and not (warm.sft or warm.dpo):
        found.append(
            "warm_start.evaluate: it has no effect without a stage; give warm_start.sft or warm_start.dpo, or take it out"
        )
    if warm.allow_model_output and not (warm.sft or warm.dpo):
        found.append("warm_start.allow_model_output: it has no effect without a stage; give one, or take it out")
    if full.whole(recipe):
        for key in ("rank", "alpha", "attention", "experts", "targets"):
            if getattr(adapter, key) != Adapter.model_fields[key].default:
                found.append(f"adapter.{key}: it has no effect at learner.trainable: all; take it out")
    if not adapter.router and learner.router_lr_ratio != Learner.model_fields["router_lr_ratio"].default:
        found.append("learner.router_lr_ratio: it has no effect on routers that don't learn; set adapter.router, or take it out")
    if recipe.algorithm.replay == "learner" and recipe.algorithm.epochs * recipe.algorithm.minibatches == 1:
        found.append(
            "algorithm.replay: learner has no effect at one update a step, whose routes are its own; raise algorithm.minibatches "
            "or algorithm.epochs, or take it out"
        )
    if placement.shard_base and placement.learners == 1:
        found.append("placement.shard_base: it has no effect on a single learner; raise placement.learners, or take it out")
    if recipe.sampler.head_dtype == recipe.sampler.dtype:
        found.append("sampler.head_dtype: float32 has no effect at dtype: float32; set sampler.dtype: bfloat16, or take it out")
    if not placement.gpus_per_node:
        for key in ("gpu_memory_gib", "node_memory_gib", "layout"):
            if getattr(placement, key) != type(placement).model_fields[key].default:
                found.append(f"placement.{key}: it has no effect without placement.gpus_per_node; state that, or take it out")
    if (placement.sampler_tokens_per_second is None) != (placement.learner_tokens_per_second is None):
        found.append(
            "placement.sampler_tokens_per_second, learner_tokens_per_second: one has no effect without the other; give both, or "
            "take it out"
        )
    if adapter.targets and not adapter.attention:
        found.append(
            "adapter.attention: false has no effect beside adapter.targets, which names projections of the attention to adapt; "
            "take one of them out"
        )
    return found


def check(recipe: Recipe, before: Recipe | None = None) -> None:
    """Raises BadInput for the settings of ``idle``; those that a run had ``before`` are no reason not to go on with it."""
    known = idle(before) if before else []
    if lines := [line for line in idle(recipe) if line not in known]:
        raise BadInput("\n".join(lines))
