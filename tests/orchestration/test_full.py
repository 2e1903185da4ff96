"""Full fine-tuning in a run: its plan, its space, and what takes or refuses what it leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, LimitReached
from frontier_tune.experts import whole
from frontier_tune.orchestration import base, checkpoint, evaluate, narrow, plan
from frontier_tune.orchestration.plan import actors, capability, machine
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.reporting import report
from frontier_tune.serving import export as serving
from tests import tiny

ROOT = Path(__file__).parents[2]
ALL = {"learner": {"trainable": "all"}}


def config(name: str) -> Any:
    return base.read_config(ROOT / "recipes" / "production" / "configs" / name)


def parts(made: plan.Plan, actor: str) -> dict[str, int]:
    (found,) = [one.actor for one in made.placed if one.actor.name == actor]
    return {part.name: part.bytes for part in found.host}


def test_the_plan_counts_weights_gradients_moments_and_what_is_handed_over(tmp_path: Path) -> None:
    c = config("OLMoE-1B-7B-0924")
    recipe = recipes.parse(ALL | {"sampler": {"dtype": "bfloat16"}})
    made, lora = (plan.make(r, c, tmp_path, "x") for r in (recipe, recipes.parse({"sampler": {"dtype": "bfloat16"}})))
    total = made.parameters
    assert total / 1e9 == pytest.approx(6.92, abs=0.01)
    learner = parts(made, "learner")
    assert learner["weights, gradient, two moments"] == 16 * total and learner["state to go back to"] == 12 * total
    assert learner["weights on their way to the sampler"] == 2 * total and "base" not in learner
    assert parts(made, "sampler")["base"] == 2 * total == parts(lora, "sampler")["base"]
    assert parts(made, "sampler")["adapter slots"] < parts(lora, "sampler")["adapter slots"]
    assert actors.handover_bytes(made.subject) == 2 * total and actors.handover_bytes(lora.subject) == 4 * lora.adapter_parameters
    assert made.checkpoint_bytes == 12 * total and made.disk["checkpoints"] == 3 * 12 * total
    assert made.disk["the tuned model"] == 2 * total and "adapter versions and canaries" not in made.disk
    text = plan.describe(made, recipe, {"training": 1})
    assert "trained    all of them; every update hands 12.9 GiB to the sampler" in text and "of rank" not in text


def test_what_this_version_cannot_do_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.parse(ALL)
    for name in ("gpt-oss-20b", "DeepSeek-V3"):
        assert any("learner.trainable" in line for line in capability.missing(recipe, config(name)))
    gpus = recipes.parse(ALL | {"placement": {"gpus_per_node": 1, "gpu_memory_gib": 80}})
    assert any("samplers on CPUs alone" in line for line in capability.missing(gpus, config("OLMoE-1B-7B-0924")))
    monkeypatch.setattr(machine, "gpus", list)
    assert not capability.missing(recipe, config("OLMoE-1B-7B-0924"))
    assert not any("learner.trainable" in line for line in capability.missing(recipes.parse({}), config("gpt-oss-20b")))


def test_space_for_the_first_checkpoint_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=checkpoint.MARGIN + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    recipe, written = recipes.parse({}), []
    with pytest.raises(LimitReached, match="a checkpoint needs about"):
        checkpoint.save(tmp_path, checkpoint.LoopState(), recipe, written.append, planned=1001)
    assert not written
    checkpoint.save(tmp_path, checkpoint.LoopState(), recipe, written.append, planned=1000)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run, as far as its result goes."""
    root = tmp_path / "runs" / "one"
    tiny.build_base(root / "model")
    whole.write_digests(root / "model")
    (root / "recipe.yaml").write_text(recipes.dump(recipes.parse(ALL)))
    return RunDir(root)


def test_a_tuned_model_is_found_and_held_against_the_recipe(run: RunDir) -> None:
    recipe = recipes.load(run.recipe_file)
    assert run.result(recipe) == run.model and run.result(recipes.parse({})) == run.adapter
    for target in (run.root, run.model):
        found, result, file = evaluate._locate(str(target), None)
        assert found is not None and (found.root, result, file) == (run.root, run.model, run.recipe_file)
    ready: Any = type("Ready", (), {"recipe": recipes.parse({})})
    with pytest.raises(BadInput, match="evaluate it with learner.trainable=all"):
        evaluate.check_result(run.model, ready)
    ready.recipe = recipe
    (run.root / "adapter").mkdir()
    with pytest.raises(BadInput, match="is an adapter; evaluate it with learner.trainable=adapter"):
        evaluate.check_result(run.adapter, ready)


def test_what_has_no_adapter_is_neither_exported_nor_narrowed(run: RunDir, tmp_path: Path) -> None:
    for source in (run.root, run.model):
        with pytest.raises(BadInput, match="there is no adapter to export.*the tuned model itself"):
            serving.export(source, "peft", tmp_path / "out")
    with pytest.raises(BadInput, match="no adapters of experts"):
        narrow.routing(run)


def test_the_report_tells_of_the_model(run: RunDir) -> None:
    contents = report.gather(run.root)
    assert contents.model is not None and contents.adapter is None
    assert contents.model["parameters"] == plan.count_parameters(tiny.config())[0]
    assert contents.model["bytes"] == (run.model / "model.safetensors").stat().st_size
    assert not any(line.startswith("adapter/") for line in contents.missing)
    html = report.write(run.root).read_text()
    assert "full fine-tuning" in html and "LoRA adapter of rank" not in html
