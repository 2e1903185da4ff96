"""Bad input is refused before training starts, with one message that says what, where and how to mend it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.algorithms import registry
from frontier_tune.contracts import BadInput, Task
from frontier_tune.orchestration import plan, preflight
from frontier_tune.orchestration.checkpoint import same_recipe
from tests import tiny


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    return {family: tiny.build_base(home / family, family) for family in ("qwen3_moe", "llama")}


def check(where: Path, directory: Path, **sections: Any) -> preflight.Ready:
    file = tiny.write_workspace(where, directory, sections)
    return preflight.check(recipes.load(file), file)


def test_a_good_recipe_is_ready(tmp_path: Path, bases: dict[str, Path]) -> None:
    ready = check(tmp_path, bases["qwen3_moe"])
    assert ready.counts == {"training": 40, "held-out": 20, "general": 0}
    assert (ready.root, ready.name) == (tmp_path, "echo")
    assert not {t.hash for t in ready.train} & {t.hash for t in ready.heldout}
    said = plan.describe(ready.plan, ready.recipe, ready.counts)
    assert "40 training, 20 held-out" in said and "16 episodes" in said and "GiB" in said and "not known" in said


def test_the_company_s_seed_reaches_the_environment(tmp_path: Path, bases: dict[str, Path]) -> None:
    ready = check(tmp_path, bases["qwen3_moe"], company={"seed": 11})
    assert ready.environments["workflow"] == ("envs/echo", {"company_seed": 11})


def test_a_company_s_seed_that_the_environment_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of_one_company = nullcontext(SimpleNamespace(description={"options": ["size"]}))
    monkeypatch.setattr(preflight, "environment", lambda *a: of_one_company)
    assert preflight.environment_options(recipes.parse({}), tmp_path) == {}
    with pytest.raises(BadInput, match="company.seed: it has no effect on envs/month_end_close"):
        preflight.environment_options(recipes.parse({"company": {"seed": 11}}), tmp_path)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"base": "no/such/base"}, ["no/such/base"]),
        ({"environment": {"path": "envs/ecko"}}, ["envs/ecko", "envs/echo"]),
        (
            {"algorithm": {"name": "dapo", "overlong_buffer": 1}, "environment": {"max_turns": 1000}},
            ["algorithm.overlong_buffer: costs reward beyond", "set algorithm.overlong_limit to"],
        ),
        ({"environment": {"options": {"colour": 1}}}, ["colour", "fault"]),
        ({"environment": {"options": {"size": 10}}}, ["10 tasks", "train_tasks"]),
        ({"environment": {"options": {"duplicate": True}}}, ["same"]),
        ({"environment": {"options": {"leak": True}}}, ["held-out", "leak"]),
        ({"environment": {"options": {"fault": "begin"}}}, ["can't be read", "close.xlsx"]),
        ({"environment": {"max_tokens_per_turn": 500}}, ["max_model_len"]),
        ({"adapter": {"targets": ["q_porj"]}}, ["q_porj", "q_proj"]),
        ({"adapter": {"experts": False, "attention": True, "targets": ["gate"]}}, ["gate", "0 modules"]),
        ({"adapter": {"attention": False, "targets": ["q_proj"]}}, ["adapter.attention: false has no effect", "take one"]),
        ({"learner": {"schedule": "constant", "final_lr_ratio": 0.5}}, ["final_lr_ratio: it has no effect", "linear or cosine"]),
        ({"warm_start": {"evaluate": True}}, ["warm_start.evaluate: it has no effect", "warm_start.sft"]),
        ({"algorithm": {"kl_in": "reward"}}, ["algorithm.kl_in: it has no effect without a kl_coefficient above 0"]),
        ({"environment": {"options": {"company_seed": 5}}}, ["company_seed: 5, but company.seed is 7", "take the option out"]),
        ({"sampler": {"max_model_len": 4096}}, ["1024 positions"]),
        ({"sampler": {"kv_cache_mb": 100_000_000}}, ["memory", "KV cache", "sampler.kv_cache_mb"]),
        ({"run": {"steps": 10**13}}, ["disk", "run.steps"]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, list) else "",
)
def test_refused(tmp_path: Path, bases: dict[str, Path], sections: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadInput) as e:
        check(tmp_path, bases["qwen3_moe"], **sections)
    assert all(w in str(e.value) for w in words), e.value


def test_a_dense_base_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="dense|mixture-of-experts"):
        check(tmp_path, bases["llama"])


def test_parameters_are_counted_from_the_configuration_alone(bases: dict[str, Path]) -> None:
    import transformers

    config = tiny.config()
    total, experts, active = plan.count_parameters(config)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(bases["qwen3_moe"]))
    assert total == sum(p.numel() for p in model.parameters())
    assert experts == 2 * 6 * 3 * 64 * 96
    assert active == total - experts + experts * 2 // 6


def test_adapter_parameters_are_those_of_peft(tmp_path: Path, bases: dict[str, Path]) -> None:
    import peft
    import transformers

    from frontier_tune.experts import families

    ready = check(tmp_path, bases["qwen3_moe"])
    model = transformers.AutoModelForCausalLM.from_pretrained(str(bases["qwen3_moe"]))
    tuned = peft.get_peft_model(model, families.peft_config(ready.recipe.adapter, ready.config))
    assert ready.plan.adapter_parameters == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def test_a_cgroup_s_file_cache_is_no_shortage(tmp_path: Path) -> None:
    """Installing packages fills it; it gives way to whoever needs memory."""
    assert plan.cgroup_left(tmp_path) is None
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("3500\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 2500\nactive_file 100\n")
    assert plan.cgroup_left(tmp_path) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert plan.cgroup_left(tmp_path) is None


def test_a_penalty_for_length_that_no_episode_can_reach_is_refused() -> None:
    algorithm = {"name": "dapo", "overlong_buffer": 64}
    recipe = recipes.parse(
        {"algorithm": algorithm, "environment": {"max_turns": 32}, "sampler": {"max_model_len": 1024}}
    )  # 32 turns of 64 tokens would be 2,048: the context binds
    dapo = registry.build(recipe)
    preflight.check_overlong(recipe, dapo, [[0] * 63, [0] * 100], None)
    with pytest.raises(BadInput, match="beyond 960 sampled tokens, but openings of 64 .*overlong_limit to 960 or less"):
        preflight.check_overlong(recipe, dapo, [[0] * 64], None)
    with pytest.raises(BadInput, match="but the environment's limits.tokens leave at most 500; set"):
        preflight.check_overlong(recipe, dapo, [[0] * 63], 500)
    short = recipes.parse({"algorithm": {**algorithm, "overlong_limit": 900}})
    with pytest.raises(BadInput, match="environment.max_turns times max_tokens_per_turn leave at most 512"):
        preflight.check_overlong(short, registry.build(short), [], None)
    preflight.check_overlong(short, None, [], None)
    rehearsed = recipes.parse({"algorithm": {**algorithm, "rehearsal_groups": 2}})  # general tasks have no such limit
    preflight.check_overlong(rehearsed, registry.build(rehearsed), [], 100)
    with pytest.raises(BadInput, match=r"to 50 or less, and algorithm.overlong_buffer below that \(64\)"):
        preflight.check_overlong(recipe, dapo, [], 50)


def test_the_environment_says_how_long_an_episode_is_where_the_recipe_does_not(tmp_path: Path, bases: dict[str, Path]) -> None:
    file = tiny.write_workspace(tmp_path, bases["qwen3_moe"], {})
    text = file.read_text()
    assert "max_turns" in text
    file.write_text("\n".join(line for line in text.split("\n") if "max_turns" not in line))
    recipe = recipes.load(file)
    assert recipe.environment.max_turns is None
    ready = preflight.check(recipe, file)
    with preflight.environment("envs/echo", tmp_path, {}) as pool:
        assert ready.recipe.environment.max_turns == ready.recipe.environment.turns == pool.description["limits"]["turns"]
    longer = ready.recipe.model_copy(update={"environment": ready.recipe.environment.model_copy(update={"max_turns": 5})})
    assert same_recipe(longer, recipe, file).environment.max_turns == 5  # a resume by the recipe file goes on as it began
    assert same_recipe(longer, longer, file) == longer


def test_an_environment_s_limit_of_tokens_is_what_constants_are_derived_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = {"turns": 4, "tokens": 100}
    monkeypatch.setattr(
        preflight, "environment", lambda *a: nullcontext(SimpleNamespace(description={"options": [], "limits": limits}))
    )
    asked = recipes.parse({"algorithm": {"name": "dr_grpo"}})
    settled, _ = preflight.settle(asked, tmp_path)
    assert (settled.algorithm.loss_constant, settled.environment.max_turns) == (100, 4)
    assert same_recipe(settled, asked, tmp_path) == settled
    assert preflight.settle(asked, tmp_path, "resume")[0].algorithm.loss_constant is None  # as that run began
    limits["tokens"] = None
    assert preflight.settle(asked, tmp_path)[0].algorithm.loss_constant is None
    asked = recipes.parse({"algorithm": {"name": "dapo", "overlong_buffer": 200}})
    limits["tokens"] = 100
    with pytest.raises(BadInput, match="between 0 and the limit of 100"):
        registry.build(preflight.settle(asked, tmp_path)[0])


def test_a_run_that_has_begun_goes_on_with_settings_that_no_new_one_would_begin_with(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    file = tiny.write_workspace(tmp_path, bases["qwen3_moe"], {"algorithm": {"proximal": "learner", "clip_high": 0.3}})
    recipe = recipes.load(file)
    with pytest.raises(BadInput, match="clip_high: it has no effect"):
        preflight.check(recipe, file)
    assert preflight.check(recipe, file, "resume").recipe.algorithm.clip_high == 0.3
    wrong = recipes.load(file, ["algorithm.clip_high=null", "algorithm.kl_coefficient=0.1", "algorithm.kl_estimator=k1"])
    with pytest.raises(BadInput, match="k1 has a gradient of mean 0 .* The run began with this: .* start a new run"):
        preflight.check(wrong, file, "resume")
    preflight.check(wrong, file, "evaluate")  # for which it is nothing


def test_an_own_algorithm_with_a_kl_to_the_base_is_refused_where_there_will_be_none(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    rank, alpha = (recipes.Adapter.model_fields[key].default for key in ("rank", "alpha"))
    file = tiny.write_workspace(
        tmp_path, bases["qwen3_moe"], {"learner": {"trainable": "all"}, "adapter": {"rank": rank, "alpha": alpha}}
    )
    (tmp_path / "own_kl.py").write_text(
        "from dataclasses import dataclass\nfrom frontier_tune.algorithms.grpo import GRPO\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Held(GRPO):\n    kl_coefficient: float = 0.01\n"
    )
    with pytest.raises(BadInput, match="own_kl:Held takes a KL to the base, .* set its kl_coefficient to 0"):
        preflight.check(recipes.load(file, ["algorithm.name=own_kl:Held"]), file)


def test_a_task_that_takes_more_turns_than_an_episode_has_is_refused() -> None:
    task = Task("close", "train", {"n": 1})
    recipe = recipes.parse({"environment": {"max_turns": 2}})

    def golden(asked: Task) -> list[str]:
        if asked.kind == "none":
            raise BadInput("no golden program")
        return ["look", "write", "submit"]

    preflight.check_turns(SimpleNamespace(golden=golden), recipe, [Task("none", "train", {})])
    with pytest.raises(BadInput, match=rf"max_turns: 2, .* of train task {task.hash} \(close\) takes 3 turns; raise it"):
        preflight.check_turns(SimpleNamespace(golden=golden), recipe, [Task("none", "train", {}), task])
    preflight.check_turns(SimpleNamespace(golden=golden), recipes.parse({"environment": {"max_turns": 3}}), [task])
