"""What full fine-tuning (``learner.trainable: all``) does not go with: refused where a recipe is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frontier_tune.recipe import Recipe


def whole(recipe: Recipe) -> bool:
    """Whether all of the base's weights are trained, instead of an adapter on it."""
    return recipe.learner.trainable == "all"


def conflicts(recipe: Recipe) -> list[str]:
    """What is wrong, and how to mend it; empty where an adapter is trained."""
    if not whole(recipe):
        return []
    p, warm = recipe.placement, recipe.warm_start
    asked = {
        "run.staleness: the sampler's only model is replaced at every update, which nothing may be under way for; set it to 0": (
            recipe.run.staleness > 0
        ),
        "overlap.stream: episodes of a stream are under way while the sampler's only model is replaced; take it out": (
            recipe.overlap.stream
        ),
        "algorithm.kl_coefficient: the base that the KL is taken to is not there any more once its weights are trained; set it "
        "to 0 (and take kl_target out)": bool(recipe.algorithm.kl_coefficient) or recipe.algorithm.kl_target is not None,
        "adapter.expert_mass: it chooses among adapters of experts, and there are none; take it out": (
            recipe.adapter.expert_mass is not None
        ),
        "adapter.router: all routers learn, as everything does; take it out": recipe.adapter.router,
        "warm_start: its stages train an adapter; take them out, or start from a base that was trained so": (
            warm.sft is not None or warm.dpo is not None
        ),
        "placement.shard_base: it splits a base that is frozen; take it out": p.shard_base,
        "placement.learners: a single learner trains all weights; set it to 1": p.learners > 1,
        "placement.samplers, placement.address: weights are handed over in a directory of this machine, to a single sampler; set "
        "samplers to 1, and take address out": p.samplers > 1 or p.address is not None,
        "learner.dtype: weights are their own masters, in float32; take bfloat16 out (sampler.dtype may be bfloat16)": (
            recipe.learner.dtype != "float32"
        ),
        "learner.compile: it was made for layers that are frozen, and was not tried with others; take it out": (
            recipe.learner.compile
        ),
    }
    return [f"{line} (learner.trainable is all)" for line, wanted in asked.items() if wanted]
