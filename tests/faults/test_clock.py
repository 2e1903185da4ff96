"""The machine's clock jumps, back by days and forward, in the middle of a run: nothing that a run decides hangs on it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from frontier_tune.contracts import Task
from frontier_tune.orchestration import status as statuses
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.status import Status
from tests.faults import standin

DAY = 86_400.0
TASKS = [Task("word", "train", {"number": n, "side": "train"}) for n in range(40)]


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = standin.recipe_of(workspace, run={"steps": 2, "max_hours": 1.0, "deterministic": True})
    steady = standin.undisturbed(recipe, workspace, workspace / "steady", TASKS)
    real, jumps = time.time, itertools.cycle([0.0, -3 * DAY, 40 * DAY, -400 * DAY])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    assert standin.undisturbed(recipe, workspace, workspace / "jumping", TASKS) == steady


def test_status_of_a_run_that_seems_to_begin_tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run").lock()
    recipe = standin.recipe_of(tmp_path)
    run.write_recipe(recipe)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + DAY)
    Status(run.status, recipe).phase("sampling", LoopState())
    monkeypatch.undo()
    found = statuses.gather(run)
    assert found["state"] == "live" and found["phase_seconds"] == 0.0
    assert "sampling for 0:00" in statuses.describe(json.loads(json.dumps(found)))
    run.unlock()
