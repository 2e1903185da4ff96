"""Of several episode actors one is killed: each planned group is trained on once, and the adapter is that of a single actor."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.faults import standin
from tests.faults.campaign import against_undisturbed
from tests.faults.conftest import FULL
from tests.faults.processes import Run


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.skipif(not FULL, reason="make test-faults"))])
def test_one_of_several_is_killed_and_the_run_ends_as_if_undisturbed(workspace: Path, stream: bool) -> None:
    """With completions that follow from seed and policy alone, the adapter is that of a single actor, byte for byte."""
    recipe = standin.recipe_of(
        workspace,
        run={"steps": 3, "checkpoint_every": 1, "eval_tasks": 1},
        environment={"heldout_tasks": 2},
        placement={"episode_actors": 2},
        **({"overlap": {"stream": True}} if stream else {}),
    )
    run = Run(workspace, workspace / "run", {"sampler": 0.05, "learner": 0.2})
    run.says_more("reward")
    pids = json.loads(run.said.split("pids ", 1)[1].splitlines()[0])
    assert set(pids) == {"sampler", "episodes", "episodes 2", "learner"}
    signalled = [p for p in run.family.values() if p.pid == pids["episodes 2"]]
    signalled[0].send_signal(signal.SIGKILL)
    assert run.wait() == 0, run.said
    found = against_undisturbed(workspace, workspace / "run", recipe)
    assert found["exactly_once"] and found["adapter_equal"], found
    events = [json.loads(line) for line in (workspace / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["role"] for e in events if e["event"] == "died"] == ["episodes 2"]
