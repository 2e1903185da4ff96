"""Whatever is killed, each planned group is trained on exactly once, the adapter's bytes are those of a run that nobody
disturbed, and nothing is left behind. ``benchmarks/faults.py`` does the same in pieces, and writes the figures down."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import standin
from tests.faults.campaign import Campaign, Roles, Whole, against_undisturbed
from tests.faults.conftest import FULL
from tests.faults.processes import Run, in_memory, left_in_memory

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="make test-faults")]

KILLS = int(os.environ.get("FRONTIER_TUNE_KILLS", "20"))  # of the crew's processes; the claim of 200: benchmarks/faults.py
SLOW = {"sampler": 0.1, "learner": 0.2}


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
    run.kill()
    assert "the sampler (process" in run.said and "does not even answer signals" in run.said
    assert not run.orphans(180)
    again = Run(workspace, home)
    assert again.wait() == 0, again.said
    assert "resuming after step" in again.said
    found = against_undisturbed(workspace, home, recipe)
    assert found["exactly_once"] and found["adapter_equal"] and found["ledger_equal"], found
    events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    assert [e["role"] for e in events if e["event"] == "died"] == ["sampler", "learner", "episodes", "sampler"]
    assert not again.orphans() and not again.scratch and not left_in_memory(before)


def through(campaign: Campaign, deterministic: bool = True, same_adapter: bool = True) -> dict[str, Any]:
    campaign.piece(1200)
    found = campaign.finish()
    assert sum(found["kills"].values()) == campaign.wanted, found
    assert found["exactly_once"] and found["every_step_once"] and found["checkpoints_verify"], found
    assert not same_adapter or found["adapter_equal"], found
    assert not deterministic or found["ledger_equal"], found
    assert not found["left"], found
    return found


def test_random_kills_over_one_run(workspace: Path) -> None:
    through(Roles(workspace, KILLS, {}, SLOW), deterministic=False)


def test_random_kills_where_playing_and_learning_overlap(workspace: Path) -> None:
    """Which policy a group is played under depends on the kills; that each is trained on once does not."""
    through(Roles(workspace, max(4, KILLS // 4), {"run": {"staleness": 2}}, SLOW, 2), deterministic=False, same_adapter=False)


def test_the_run_itself_killed_at_random_moments(workspace: Path) -> None:
    """Checkpoints are written all the time, so that some kills fall into that."""
    through(Whole(workspace, max(3, KILLS // 5), {"run": {"deterministic": True}}, {"sampler": 0.05, "learner": 0.4}, 1))
