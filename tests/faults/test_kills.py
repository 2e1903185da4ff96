"""Whatever is killed, each planned group is trained on exactly once, the adapter's bytes are those of a run that nobody
disturbed, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.orchestration.audit import audit, planned_groups
from frontier_tune.orchestration.checkpoint import problem
from tests.faults import standin
from tests.faults.conftest import FULL
from tests.faults.driver import ready_of
from tests.faults.processes import ROLES, Run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="make test-faults")]

KILLS = int(os.environ.get("FRONTIER_TUNE_KILLS", "200"))  # of the crew's processes; a tenth as many of the whole run
SLOW = {"sampler": 0.1, "learner": 0.2}


def in_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def scratch(run: Run) -> list[Path]:
    return list(Path("/tmp").glob(f"ft-ray-{run.process.pid}-*"))


def as_if_undisturbed(root: Path, home: Path, recipe: recipes.Recipe, same_ledger: bool) -> None:
    """The finished run at ``home`` against the same one with nothing happening."""
    tasks = ready_of(root, recipe).train
    adapter, ledger = standin.undisturbed(recipe, root, root / "undisturbed", tasks)
    found = audit(home / "ledger.jsonl", planned_groups(recipe, recipe.run.steps))
    assert found.complete, str(found)
    assert standin.read(home / "adapter") == adapter
    assert not same_ledger or (home / "ledger.jsonl").read_bytes() == ledger
    rows = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, recipe.run.steps + 1))
    assert not [p for p in (home / "checkpoints").iterdir() if problem(p)]


def test_each_process_in_turn_and_the_run_itself(workspace: Path) -> None:
    """Every role killed once, one stopped so that it only looks alive, then the whole run killed and resumed."""
    recipe = standin.recipe_of(
        workspace,
        run={"steps": 12, "deterministic": True},
        reliability={"restarts": 9, "stall_timeout_s": 15, "max_backoff_s": 1, "call_timeout_s": 30},
        environment={"step_timeout_s": 14, "workers": 1},
    )
    home, before = workspace / "run", in_memory()
    run = Run(workspace, home, SLOW)
    strikes = [("sampler", signal.SIGKILL), ("environment", signal.SIGKILL), ("learner", signal.SIGKILL)]
    strikes += [("episodes", signal.SIGKILL), ("sampler", signal.SIGSTOP)]
    deaths = 0
    for role, signum in strikes:
        run.says_more("reward")
        run.until(lambda r=role, s=signum: run.strike(r, s))  # type: ignore[misc]
        if role != "environment":  # whose worker its pool replaces, without a word
            deaths += 1
            run.said_that(f"starting another ({deaths} of")
    run.says_more("reward")
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    assert "the sampler (process" in run.said and "does not even answer signals" in run.said
    assert not run.orphans(180)
    again = Run(workspace, home)
    assert again.wait() == 0, again.said
    assert "resuming after step" in again.said
    as_if_undisturbed(workspace, home, recipe, same_ledger=True)
    events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    assert [e["role"] for e in events if e["event"] == "died"] == ["sampler", "learner", "episodes", "sampler"]
    assert not again.orphans() and not scratch(again)
    assert in_memory() <= before


def test_hundreds_of_random_kills_over_one_run(workspace: Path) -> None:
    recipe = standin.recipe_of(workspace, run={"steps": max(10, KILLS // 2)}, reliability={"restarts": 10**6})
    run, draw, struck = Run(workspace, workspace / "run", {"sampler": 0.2, "learner": 0.5}), random.Random(0), 0
    before = in_memory()
    run.said_that("step 1/")
    while run.running and struck < KILLS:
        time.sleep(draw.uniform(0, 6))
        struck += run.strike(draw.choice(list(ROLES)))
    assert run.wait(1800) == 0, run.said[-3000:]
    assert struck == KILLS, f"the run was over after {struck} kills"
    as_if_undisturbed(workspace, workspace / "run", recipe, same_ledger=False)
    assert not run.orphans() and not scratch(run) and in_memory() <= before


def test_random_kills_where_playing_and_learning_overlap(workspace: Path) -> None:
    """Which policy a group is played under depends on the kills; that each is trained on once does not."""
    recipe = standin.recipe_of(workspace, run={"steps": 60, "staleness": 2}, reliability={"restarts": 10**6})
    run, draw, struck = Run(workspace, workspace / "run", {"sampler": 0.2, "learner": 0.5}), random.Random(2), 0
    run.said_that("step 1/")
    while run.running and struck < max(4, KILLS // 10):
        time.sleep(draw.uniform(0, 6))
        struck += run.strike(draw.choice(list(ROLES)))
    assert run.wait(900) == 0, run.said[-3000:]
    found = audit(workspace / "run" / "ledger.jsonl", planned_groups(recipe, 60))
    assert found.complete and found.trained, str(found)
    assert not run.orphans() and not scratch(run)


def test_the_run_itself_killed_at_random_moments(workspace: Path) -> None:
    """Checkpoints are written all the time, so that some kills fall into that."""
    recipe = standin.recipe_of(workspace, run={"steps": 60, "deterministic": True})
    home, draw = workspace / "run", random.Random(1)
    for _ in range(max(2, KILLS // 10)):
        run = Run(workspace, home, {"sampler": 0.05})
        run.said_that("step ")
        time.sleep(draw.uniform(0, 2))
        run.process.kill()
        run.wait()
        assert not run.orphans(180)
    last = Run(workspace, home)
    assert last.wait(900) == 0, last.said
    as_if_undisturbed(workspace, home, recipe, same_ledger=True)
