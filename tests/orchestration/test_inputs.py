"""What a run learns from is the same when it is resumed, or the resume is refused and says what is another."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
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
        ("algorithms/mine.py", "algorithm"),
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
