"""Settings without effect: which ones are told, and that no shipped recipe has any."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.algorithms import registry
from frontier_tune.contracts import BadInput
from frontier_tune.recipe import idle

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_have_none(path: Path) -> None:
    recipe = recipes.load(path)
    idle.check(recipe)
    registry.build(recipe, strict=True)
    again = recipes.parse(recipe.model_dump(mode="json"))  # as a run writes it down: every key is there
    idle.check(again)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("learner.schedule=constant", "learner.final_lr_ratio=0"), "learner.final_lr_ratio"),
        (("warm_start.evaluate=true",), "warm_start.evaluate"),
        (("adapter.attention=false", "adapter.targets=[q_proj]"), "adapter.attention: false"),
        (("warm_start.allow_model_output=[gpt]",), "warm_start.allow_model_output"),
        (("algorithm.replay=learner",), "algorithm.replay: learner"),
        (("sampler.head_dtype=float32",), "sampler.head_dtype"),
        (("placement.gpu_memory_gib=80",), "placement.gpu_memory_gib"),
        (("placement.node_memory_gib=20", "placement.gpus_per_node=0"), "placement.node_memory_gib"),
        (("placement.layout=disaggregated",), "placement.layout"),
        (("placement.learner_tokens_per_second=9",), "placement.sampler_tokens_per_second, learner"),
    ],
)
def test_one_that_is_set_in_vain_is_named(overrides: tuple[str, ...], key: str) -> None:
    with pytest.raises(BadInput, match=f"^{key}.* has no effect .*; .*take"):
        idle.check(recipes.parse({}, overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("learner.schedule=constant", "learner.final_lr_ratio=0.1"),
        ("learner.schedule=cosine", "learner.final_lr_ratio=0"),
        ("warm_start.evaluate=true", "warm_start.sft.traces=t"),
        ("adapter.targets=[q_proj]", "adapter.experts=false"),
        ("algorithm.replay=learner", "algorithm.epochs=2"),
        ("sampler.head_dtype=float32", "sampler.dtype=bfloat16"),
        ("placement.learner_tokens_per_second=9", "placement.sampler_tokens_per_second=9"),
    ],
)
def test_others_pass(overrides: tuple[str, ...]) -> None:
    idle.check(recipes.parse({}, overrides))


def test_what_a_run_had_before_is_no_reason_not_to_go_on_with_it() -> None:
    written = recipes.parse({"learner": {"schedule": "constant", "final_lr_ratio": 0.5}})
    idle.check(written, written)
    moved = recipes.parse({**written.model_dump(mode="json"), "placement": {"shard_base": True}})
    with pytest.raises(BadInput, match="^placement.shard_base: it has no effect on a single learner[^\n]*$"):
        idle.check(moved, written)
