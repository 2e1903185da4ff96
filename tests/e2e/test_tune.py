"""The whole chain through the command: Ray, vLLM, environments, learner, gate, evaluation, record and report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.orchestration import checkpoint
from frontier_tune.orchestration.audit import audit, planned_groups
from tests import tiny
from tests.e2e.conftest import run

pytestmark = pytest.mark.slow


def rows(workspace: Path, name: str = "latest") -> list[dict[str, object]]:
    return [json.loads(line) for line in (workspace / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def played(workspace: Path, name: str) -> list[list[tuple[object, ...]]]:
    """Per step the episodes as (task, reward, text): what was planned and what came of it."""
    steps = sorted((workspace / "runs" / name / "rollouts").glob("step-*.jsonl"))
    found = []
    for step in steps:
        episodes = [json.loads(line) for line in step.read_text().splitlines()]
        found.append([(e["task"], e["group"], e["member"], e["reward"], e["messages"][1]["content"]) for e in episodes])
    return found


def test_a_run_from_recipe_to_report_and_its_evaluation_again(tmp_path: Path, taught_base: Path) -> None:
    sections = {"run": {"steps": 20}, "algorithm": {"groups_per_step": 6, "group_size": 6}, "learner": {"learning_rate": 0.003}}
    tiny.write_workspace(tmp_path, taught_base, sections)
    said = run(tmp_path, "tune", "recipes/echo.yaml")
    home = (tmp_path / "runs" / "latest").resolve()
    for name in ("recipe.yaml", "evaluation.json", "record.json", "report.html", "learning-curve.png", "engine.log"):
        assert (home / name).is_file(), name
    assert (home / "adapter" / "adapter_model.safetensors").is_file()
    assert not (home / "sync").exists()
    places = [str(p.resolve()).encode() for p in (tmp_path, taught_base.parent)]  # an adapter says nothing of this machine
    assert not [p.name for p in (home / "adapter").iterdir() for place in places if place in p.read_bytes()]
    assert "step 20/20" in said and "Traceback" not in said and "WARNING" not in said
    found = json.loads((home / "evaluation.json").read_text())
    assert found["train"]["steps"] == 20 and found["base"]["n"] == found["tuned"]["n"] == 20
    assert found["tuned"]["success"] >= found["base"]["success"] + 0.5  # the company's word was learned from reward
    assert found["canaries"]["no_op"] == 0
    trained = rows(tmp_path)
    assert [r["step"] for r in trained] == list(range(1, 21))
    assert any("canary_effect" in r["parity"] for r in trained if "parity" in r)  # type: ignore[operator]
    assert run(tmp_path, "verify", "latest").endswith("is as recorded\n")

    again = run(tmp_path, "eval", "runs/latest")
    assert "tuned" in again
    assert json.loads((home / "evaluation.json").read_text()) == found  # a new evaluation goes beside the recorded one
    (beside,) = (home / "evaluations").iterdir()
    second = json.loads((beside / "evaluation.json").read_text())
    assert run(tmp_path, "verify", "latest").endswith("is as recorded\n")
    assert second["tuned"]["success"] == found["tuned"]["success"] and second["train"] == found["train"]

    other = tiny.build_base(tmp_path / "other", seed=5)
    assert "another" in run(tmp_path, "eval", "runs/latest", f"base={other}", expect=2)


def test_an_interrupted_run_resumes_as_if_it_had_not_been(tmp_path: Path, taught_base: Path) -> None:
    """Stopped by its token budget in the middle (exit code 4), resumed: the adapter and the ledger of the uninterrupted run, byte
    for byte."""
    tiny.write_workspace(tmp_path, taught_base, {"run": {"deterministic": True}, "environment": {"workers": 2}})
    run(tmp_path, "tune", "recipes/echo.yaml", "run.directory=runs/whole")
    run(tmp_path, "tune", "recipes/echo.yaml", "run.directory=runs/cut", "run.max_tokens=1", expect=4)
    assert len(rows(tmp_path, "cut")) == 1
    refused = run(tmp_path, "tune", "recipes/echo.yaml", "--resume", "runs/cut", "seed=3", expect=2)
    assert "seed" in refused and "differ" in refused
    run(tmp_path, "tune", "recipes/echo.yaml", "--resume", "runs/cut")
    assert [r["step"] for r in rows(tmp_path, "cut")] == [1, 2, 3]
    assert [[e[:3] for e in s] for s in played(tmp_path, "cut")] == [[e[:3] for e in s] for s in played(tmp_path, "whole")]
    for path in (tmp_path / "runs" / "cut" / "checkpoints").iterdir():
        assert checkpoint.problem(path) is None
    for name in ("adapter/adapter_model.safetensors", "ledger.jsonl"):
        assert (tmp_path / "runs" / "cut" / name).read_bytes() == (tmp_path / "runs" / "whole" / name).read_bytes(), name
    recipe = recipes.load(tmp_path / "runs" / "cut" / "recipe.yaml")
    done = audit(tmp_path / "runs" / "cut" / "ledger.jsonl", planned_groups(recipe, 3))
    assert done.complete and done.trained, str(done)


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_other_families_run_the_same_path_to_the_end(tmp_path: Path, random_base: Callable[[str], Path], family: str) -> None:
    """Names differ between transformers and vLLM there: the gate would see experts that were dropped."""
    tiny.write_workspace(tmp_path, random_base(family), {"run": {"steps": 2}, "environment": {"max_tokens_per_turn": 32}})
    run(tmp_path, "tune", "recipes/echo.yaml")
    assert len(rows(tmp_path)) == 2
