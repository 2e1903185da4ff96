"""Names, settings and own algorithms: what a recipe may say, and what it is told when it says something else."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.algorithms import registry
from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.dapo import DAPO
from frontier_tune.algorithms.grpo import GRPO
from frontier_tune.algorithms.ppo import PPO
from frontier_tune.algorithms.registry import ALGORITHMS, find, settled
from frontier_tune.algorithms.reinforce_pp import ReinforcePP
from frontier_tune.algorithms.rloo import RLOO
from frontier_tune.contracts import BadInput

OWN = """
from dataclasses import dataclass
from frontier_tune.algorithms.grpo import GRPO

@dataclass(frozen=True, kw_only=True)
class Scaled(GRPO):
    factor: float = 2.0

    def advantages(self, rollout):
        return self.factor * super().advantages(rollout)

class NotOne:
    pass

class Unfinished(GRPO.__base__):
    pass
"""


@dataclass(frozen=True, kw_only=True)
class Thrice(GRPO):
    times: int = 3


class OwnPpo(PPO): ...


class OwnRloo(RLOO): ...


class OwnReinforcePp(ReinforcePP): ...


class OwnGrpo(GRPO): ...


@dataclass(frozen=True, kw_only=True)
class OwnDAPO(DAPO):
    shape: Literal["round", "square"] = "round"


IDLE = {
    "turn_discount",
    "loss_constant",
    "overlong_limit",
    "entropy_step",
    "entropy_limit",
    "kl_in",
    "kl_estimator",
    "value_clip",
} | {f"correction_{x}" for x in ("level", "low", "high")}

VALUES = {"value_clip": recipes.ALGORITHMS["ppo"]["value_clip"]}


def build(recipe: recipes.Recipe, root: Path | None = None) -> Algorithm:
    return registry.build(recipe, root, strict=True)


def parse(**algorithm: Any) -> recipes.Recipe:
    return recipes.parse({"algorithm": algorithm})


def test_the_recipe_knows_the_algorithms_and_their_defaults() -> None:
    """Two tables, one in a room without torch: this holds them together."""
    assert recipes.ALGORITHMS.keys() == ALGORITHMS.keys()
    for name, cls in ALGORITHMS.items():
        own = {f.name: f.default for f in fields(cls)}
        assert MISSING not in own.values()
        assert recipes.ALGORITHMS[name] == own, name
        assert own.keys() <= recipes.Algorithm.model_fields.keys()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_bare_name_builds_the_algorithm_with_its_defaults(name: str) -> None:
    recipe = parse(name=name)
    built = build(recipe)
    derived = {"loss_constant": 8 * 64} if name == "dr_grpo" else {}  # environment.max_turns * max_tokens_per_turn
    assert type(built) is ALGORITHMS[name]
    assert vars(built) == {**recipes.ALGORITHMS[name], **derived}
    again = recipes.parse(recipe.model_dump(mode="json"))
    assert again == recipe and build(again) == built


def test_the_shipped_recipe_is_grpo_that_keeps_the_reward_s_scale() -> None:
    recipe = recipes.load(Path(__file__).parents[2] / "recipes" / "month_end_close.yaml")
    assert build(recipe) == GRPO(clip_low=0.2, clip_high=0.28, normalization="token", advantage="group", scale_by_std=False)


def test_settings_reach_the_algorithm() -> None:
    built = build(parse(name="dapo", overlong_buffer=10, kl_coefficient=0.01, kl_in="reward", dynamic_sampling=0))
    assert vars(built)["overlong_limit"] == 512 and built.penalises and not built.needs_base


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"name": "gpro"}, "unknown algorithm 'gpro'; did you mean .*'grpo'"),
        ({"name": "drgrpo"}, "did you mean 'dr_grpo'"),
        ({"name": "xyzzy"}, "known are grpo"),
        ({"name": "grpo", "trace": 0.9}, r"'trace' is not used by grpo.*used by: ppo"),
        ({"name": "rloo", "scale_by_std": True}, "'scale_by_std' is not used by rloo"),
        ({"name": "ppo", "dynamic_sampling": 2}, r"used by: dapo"),
        ({"name": "grpo", "options": {"x": 1}}, "'options' is not used by grpo"),
        ({"name": "grpo", "kl_cofficient": 0.1}, "did you mean 'algorithm.kl_coefficient'"),
        ({"name": "grpo", "kl_estimator": "k4"}, "algorithm.kl_estimator"),
    ],
)
def test_the_recipe_refuses(algorithm: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse(**algorithm)


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"correction": "mask"}, "proximal"),
        ({"kl_target": 0.1}, "kl_coefficient"),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1"}, "k1 has a gradient of mean 0 in the loss.*take k2 or k3"),
        ({"entropy_target": 1.0, "entropy_coefficient": 0.2}, "entropy_coefficient 0.2 is above entropy_limit 0.1"),
        ({"name": "dapo", "advantage": "batch"}, "have advantages, too, with advantage: batch; set dynamic_sampling to 0"),
        ({"name": "dapo", "advantage": "turn", "turn_discount": 0.9}, "have advantages, too, with turn_discount below 1"),
        ({"name": "dapo", "kl_coefficient": 0.1, "kl_in": "reward"}, "have advantages, too, with the KL in the reward"),
        ({"name": "dapo", "overlong_buffer": 600}, "between 0 and the limit of 512"),
        ({"name": "own_algorithm:Scaled", "trace": 0.5}, "algorithm.trace: own_algorithm:Scaled does not use it"),
        ({"name": "own_algorithm:Scaled", "options": {"factr": 1}}, "algorithm.factr: .*did you mean 'factor'"),
        ({"name": "own_algorithm:Scaled", "clip_low": 0.1, "options": {"clip_low": 0.2}}, "a place of its own"),
        ({"name": "own_algorithm:Missing"}, "has no such subclass"),
        ({"name": "own_algorithm:NotOne"}, "has no such subclass"),
        ({"name": "own_algorithm:Unfinished"}, "lacks advantages, policy_loss"),
        ({"name": "no_such_module:X"}, "import of no_such_module failed: ModuleNotFoundError"),
    ],
)
def test_building_refuses(algorithm: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_algorithm.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match=words):
        build(parse(**algorithm), tmp_path)


def test_an_own_algorithm_by_import_path() -> None:
    recipe = parse(name=f"{__name__}:Thrice", clip_high=0.5, options={"times": 4})
    built = build(recipe)
    assert isinstance(built, Thrice) and (built.times, built.clip_high, built.clip_low) == (4, 0.5, 0.2)
    assert recipes.parse(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"advantage": "grup"}, r"algorithm.options.advantage: .*did you mean 'group'\? \(got 'grup'\)"),
        ({"normalization": "tokens"}, "did you mean 'token'"),
        ({"kl_in": 7}, "one of loss, reward"),
        ({"clip_low": -3}, r"algorithm.options.clip_low: .*greater than 0 \(got -3\)"),
        ({"dynamic_sampling": "three"}, "algorithm.options.dynamic_sampling: .*integer"),
        ({"dynamic_sampling": None}, "leave it out for .*default, 3"),
        ({"shape": "squared"}, "shape 'squared': did you mean 'square'"),
        ({"overlong_limit": 9}, "overlong_limit: it has no effect without an overlong_buffer"),
        ({"group_size": 4}, "algorithm.group_size: .*does not use it"),
    ],
)
def test_options_of_an_own_algorithm_are_checked_like_the_settings_they_are_named_after(options: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        build(parse(name=f"{__name__}:OwnDAPO", options=options))


def test_options_are_read_as_the_section_reads_them() -> None:
    options = {"dynamic_sampling": "0", "advantage": "turn", "turn_discount": 0.5, "shape": "square", "overlong_buffer": None}
    built = build(parse(name=f"{__name__}:OwnDAPO", options=options))
    assert built == OwnDAPO(dynamic_sampling=0, advantage="turn", turn_discount=0.5, shape="square")


@pytest.mark.parametrize(
    ("algorithm", "needed"),
    [
        ({"turn_discount": 0.9}, "advantage: turn"),
        ({"turn_discount": 0.9, "advantage": "batch"}, "advantage: turn"),
        ({"loss_constant": 100}, "normalization: constant"),
        ({"name": "dr_grpo", "normalization": "token", "loss_constant": 100}, "normalization: constant"),
        ({"name": "dapo", "overlong_limit": 100}, "an overlong_buffer"),
        ({"correction_level": "sequence", "proximal": "learner"}, "a correction"),
        ({"correction_high": 5}, "correction: truncate or mask"),
        ({"correction_low": 0.5}, "correction: truncate or mask"),
        ({"correction_high": 5, "correction": "full", "proximal": "learner"}, "correction: truncate or mask"),
        ({"kl_in": "reward"}, "a kl_coefficient above 0"),
        ({"kl_estimator": "k2", "kl_coefficient": 0.0}, "a kl_coefficient above 0"),
        ({"entropy_limit": 0.2}, "an entropy_target"),
        ({"entropy_step": 0.2, "name": "ppo"}, "an entropy_target"),
        ({"name": "ppo", "value_clip": 0.1}, r"several updates a step \(epochs, minibatches\)"),
    ],
)
def test_a_setting_without_effect_is_refused(algorithm: dict[str, Any], needed: str) -> None:
    with pytest.raises(BadInput, match=rf"it has no effect without {needed}; set that, or take"):
        build(parse(**algorithm))
    registry.build(parse(**algorithm))  # no reason to stop a run that has begun
    recipe = parse(**{**algorithm, **{key: (recipes.ALGORITHMS["dapo"] | VALUES)[key] for key in IDLE & algorithm.keys()}})
    build(recipe)  # at its default it says nothing that isn't so


@pytest.mark.parametrize(
    "algorithm",
    [
        {"turn_discount": 0.9, "advantage": "turn"},
        {"loss_constant": 100, "normalization": "constant"},
        {"name": "dr_grpo", "loss_constant": 100},
        {"name": "dapo", "overlong_limit": 100, "overlong_buffer": 10},
        {
            "correction": "mask",
            "correction_level": "sequence",
            "correction_low": 0.5,
            "correction_high": 5,
            "proximal": "learner",
        },
        {"entropy_step": 0.2, "entropy_limit": 0.2, "entropy_target": 1.0},
        {"kl_in": "reward", "kl_estimator": "k1", "kl_coefficient": 0.01},
    ],
)
def test_a_setting_with_effect_is_taken(algorithm: dict[str, Any]) -> None:
    built = vars(build(parse(**algorithm)))
    assert all(built[key] == value for key, value in algorithm.items() if key != "name")


@pytest.mark.parametrize("key", ["clip_low", "clip_high"])
def test_nothing_is_clipped_against_the_learner_s_own_policy_at_one_update_a_step(key: str) -> None:
    with pytest.raises(BadInput, match=rf"algorithm.{key}: it has no effect without several updates a step"):
        build(parse(proximal="learner", **{key: 0.1}))
    build(parse(proximal="learner", minibatches=2, **{key: 0.1}))
    build(parse(**{key: 0.1}))  # against the sampler's the ratio is another one at once


@pytest.mark.parametrize(
    ("algorithm", "estimator"),
    [
        ({"name": "ppo", "kl_in": "loss"}, "k2"),
        ({"name": "rloo", "kl_in": "loss", "kl_estimator": "k3"}, "k3"),
        ({"name": "reinforce_pp", "kl_in": "reward"}, "k1"),
        ({"name": "grpo", "kl_in": "reward"}, "k1"),
        ({"name": "grpo", "kl_in": "reward", "kl_estimator": "k3"}, "k3"),
        ({"name": "grpo", "kl_in": "loss"}, "k3"),
    ],
)
def test_the_estimator_s_default_fits_where_the_kl_is(algorithm: dict[str, Any], estimator: str) -> None:
    recipe = parse(kl_coefficient=0.1, **algorithm)
    assert build(recipe).kl_estimator == recipe.algorithm.kl_estimator == estimator
    own = {**algorithm, "name": f"{__name__}:Own{algorithm['name'].title().replace('_', '')}"}
    assert build(settled(parse(kl_coefficient=0.1, **own), None)).kl_estimator == estimator
    assert recipes.parse(recipe.model_dump(mode="json")) == recipe


def test_a_run_that_began_without_an_estimator_written_down_goes_on_by_its_class_s() -> None:
    own = parse(name=f"{__name__}:OwnGrpo", kl_coefficient=0.1, kl_in="reward")
    assert registry.build(own).kl_estimator == "k3" and registry.build(settled(own, None)).kl_estimator == "k1"


def test_what_is_derived_from_an_episode_s_tokens_knows_the_environment_s_limit() -> None:
    def constant(recipe: recipes.Recipe) -> Any:
        return build(recipe).loss_constant

    recipe = parse(name="dr_grpo")
    assert constant(settled(recipe, 200)) == 200 and settled(recipe, None) == settled(recipe, 512) == recipe
    assert constant(settled(parse(name="dr_grpo", loss_constant=300), 200)) == 300  # what is said stands
    assert settled(parse(name="grpo"), 200) == parse(name="grpo")
    overlong = settled(parse(name="dapo", overlong_buffer=20), 200)
    assert vars(build(overlong))["overlong_limit"] == 200 and build(overlong).loss_constant is None
    rehearsed = parse(name="dapo", overlong_buffer=20, rehearsal_groups=2)  # the general tasks have no such limit
    assert settled(rehearsed, 200) == rehearsed
    own = parse(name=f"{__name__}:OwnDAPO", options={"overlong_buffer": 20, "overlong_limit": 100})
    assert vars(build(settled(own, 200)))["overlong_limit"] == 100


def test_literals_are_checked_where_an_algorithm_is_made() -> None:
    with pytest.raises(ValueError, match=r"advantage 'grup': did you mean 'group'\?"):
        GRPO(advantage="grup")  # type: ignore[arg-type]


def test_find_says_what_is_known() -> None:
    with pytest.raises(BadInput, match="known are grpo, dr_grpo"):
        find("nothing")
    assert issubclass(find("ppo"), Algorithm)
