"""What a run learns from is the same when it is resumed, or the resume is refused and says what is another."""

from __future__ import annotations

import bisect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.algorithms import registry
from frontier_tune.contracts import BadInput, Task
from frontier_tune.orchestration import inputs
from frontier_tune.orchestration.run_dir import RunDir


@pytest.fixture
def ready(tmp_path: Path) -> Any:
    for file in ("base/config.json", "envs/desk/environment.py", "rewards/desk.py", "algorithms/mine.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1")
    recipe = recipes.parse({"environment": {"path": "envs/desk"}, "algorithm": {"name": "algorithms.mine:Mine"}})
    tasks = {split: [Task("word", split, {"number": n}) for n in range(3)] for split in ("train", "heldout")}
    return SimpleNamespace(recipe=recipe, root=tmp_path, base=tmp_path / "base", **tasks)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    for name in ("base-greedy.jsonl", "canaries.json", "tuned-greedy.jsonl"):
        (tmp_path / "run" / "evaluation" / name).write_text("")
    return RunDir(tmp_path / "run")


def evaluations(run: RunDir) -> list[str]:
    return sorted(p.name for p in (run.root / "evaluation").iterdir())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("base/config.json", "base/config.json"),
        ("base/model.safetensors", "base/model.safetensors"),
        ("envs/desk/environment.py", "environment/environment.py"),
        ("rewards/desk.py", "rewards/desk.py"),
        ("algorithms/mine.py", "algorithm/mine.py"),
        ("algorithms/helper.py", "algorithm/helper.py"),
    ],
)
def test_a_file_that_is_another_is_named_and_refused_until_it_is_accepted(ready: Any, run: RunDir, file: str, name: str) -> None:
    said: list[str] = []
    assert inputs.pin(ready, run, said.append) == [] == inputs.pin(ready, run, said.append)
    was = (run.root / inputs.FILE).read_text()
    (ready.root / file).write_text("2")
    with pytest.raises(BadInput, match=f"have changed: {name}. Put back"):
        inputs.pin(ready, run, said.append)
    assert (run.root / inputs.FILE).read_text() == was and len(evaluations(run)) == 3 and not said
    assert inputs.pin(ready, run, said.append, accept=True) == [name] and len(said) == 1
    assert evaluations(run) == ["tuned-greedy.jsonl"]  # of the base, and of agents that cheat, by what is there now
    (change,) = json.loads((run.root / inputs.FILE).read_text())["changes"]
    assert change["from"] == {name: json.loads(was)["files"].get(name)} and change["ledger_rows"] == 0
    assert inputs.pin(ready, run, said.append) == []


def test_a_run_of_before_inputs_were_taken_says_from_where_they_are_known(ready: Any, run: RunDir) -> None:
    run.ledger.write_text("{}\n{}\n")
    inputs.pin(ready, run, print)
    assert json.loads((run.root / inputs.FILE).read_text())["ledger_rows"] == 2


def test_another_list_or_order_of_tasks_is_refused(ready: Any, run: RunDir) -> None:
    inputs.pin(ready, run, print)
    ready.train.reverse()
    with pytest.raises(BadInput, match="tasks/train"):
        inputs.pin(ready, run, print)
    ready.train.reverse()
    ready.heldout.pop()
    with pytest.raises(BadInput, match="tasks/heldout"):
        inputs.pin(ready, run, print)


def test_what_running_code_leaves_behind_is_no_change(ready: Any, run: RunDir) -> None:
    inputs.pin(ready, run, print)
    (ready.root / "envs/desk/__pycache__").mkdir()
    (ready.root / "envs/desk/__pycache__/environment.pyc").write_text("")
    assert inputs.pin(ready, run, print) == []


@pytest.mark.parametrize(
    ("name", "file", "found"),
    [
        ("grpo", "unused.py", None),
        ("lonely:Mine", "lonely.py", "lonely.py"),
        ("losses.imitate:Mine", "losses/imitate/__init__.py", "losses/imitate"),
        ("losses.imitate:Mine", "losses/imitate.py", "losses"),
        ("json.decoder:Mine", "unused.py", str(Path(json.__file__).parent)),
        ("json:Mine", "unused.py", str(Path(json.__file__).parent)),
        ("bisect:Mine", "unused.py", bisect.__file__),
        ("sys:Mine", "unused.py", None),
    ],
)
def test_where_an_own_algorithm_lies(tmp_path: Path, name: str, file: str, found: str | None) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("")
    assert registry.source(name, tmp_path) == (tmp_path / found if found else None)


def test_what_starts_anew_in_a_run_has_to_be_what_began_it(ready: Any, run: RunDir) -> None:
    inputs.require_same(ready, run)  # of a run that took none there is nothing to compare
    inputs.pin(ready, run, print)
    inputs.require_same(ready, run)
    (ready.root / "base/config.json").write_text("2")
    inputs.require_same(ready, run)  # that of a base takes minutes where it is large: it is compared at the end
    assert inputs.changed_since(ready, run) == ["base/config.json"]
    (ready.root / "rewards/desk.py").write_text("2")
    with pytest.raises(BadInput, match="a process died, and since this run began these have changed.*: rewards/desk.py"):
        inputs.require_same(ready, run)


def test_settings_that_a_resume_changes_are_written_down(ready: Any, run: RunDir) -> None:
    said: list[str] = []
    inputs.pin(ready, run, said.append)
    inputs.goes_on(ready, run, said.append)
    run.write_recipe(ready.recipe)
    assert not said and not inputs.written(run)["changes"]
    began = ready.recipe
    changed = {**began.model_dump(mode="json"), "learner": {"learning_rate": 1e-4}}
    ready.recipe = recipes.parse({**changed, "run": {"steps": 9, "directory": "elsewhere"}})
    assert inputs.pin(ready, run, said.append) == [] and not said  # nobody has started yet: that may fail
    inputs.goes_on(ready, run, said.append)
    assert "learner.learning_rate 0.001 -> 0.0001" in said[0]
    (change,) = inputs.written(run)["changes"]
    assert change["recipe"]["learner.learning_rate"] == [0.001, 0.0001] and change["recipe"]["run.steps"][1] == 9
    assert "run.directory" not in change["recipe"] and len(evaluations(run)) == 3
    run.write_recipe(began)  # edited by hand: the settings that the run last went on by stand elsewhere, too
    inputs.goes_on(ready, run, said.append)
    assert len(inputs.written(run)["changes"]) == 1
    ready.recipe = began
    inputs.goes_on(ready, run, said.append)
    assert inputs.written(run)["changes"][1]["recipe"]["learner.learning_rate"] == [0.0001, 0.001]


def test_settings_of_a_run_that_an_earlier_version_began_are_those_of_its_recipe(ready: Any, run: RunDir) -> None:
    inputs.pin(ready, run, lambda text: None)
    run.write_recipe(ready.recipe)
    lines = run.recipe_file.read_text().splitlines()
    run.recipe_file.write_text("\n".join(line for line in lines if "rehearsal_groups" not in line))  # as if it had no such key
    ready.recipe = recipes.parse({**ready.recipe.model_dump(mode="json"), "learner": {"learning_rate": 1e-4}})
    inputs.goes_on(ready, run, lambda text: None)
    assert inputs.written(run)["changes"][0]["recipe"] == {"learner.learning_rate": [0.001, 0.0001]}
