"""One fault at one chosen moment of a whole run, and what the run makes of it (docs/running.md lists them all)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.orchestration import checkpoint
from tests.faults import standin
from tests.faults.campaign import against_undisturbed
from tests.faults.conftest import FULL
from tests.faults.processes import Run, in_memory, left_in_memory

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="make test-faults")]

SOON = 60.0  # seconds in which a run has to end that can't go on


def recipe(workspace: Path, steps: int = 5, **reliability: Any) -> Any:
    limits = {"restarts": 3, "stall_timeout_s": 20, "call_timeout_s": 60} | reliability
    return standin.recipe_of(workspace, run={"steps": steps, "deterministic": True}, reliability=limits)


def struck_in(run: Run, home: Path, phase: str, role: str = "sampler") -> float:
    """Kill ``role`` once the run has done a step and is in ``phase``; when that was (Unix time)."""
    run.said_that("reward")
    run.until(lambda: run.phase(home) == phase)
    time.sleep(0.3)
    assert run.phase(home) == phase
    assert run.strike(role)
    return time.time()


@pytest.mark.parametrize(("phase", "slow"), [("learning", {"learner": 3.0}), ("sampling", {"sampler": 1.5})])
def test_a_sampler_killed_idle_or_in_mid_generation(workspace: Path, phase: str, slow: dict[str, float]) -> None:
    """While the learner learns it has nothing to do; while episodes are played it is at their turns."""
    found, home = recipe(workspace), workspace / "run"
    run = Run(workspace, home, slow)
    struck = struck_in(run, home, phase)
    assert run.wait() == 0, run.said
    events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    (died,) = [e for e in events if e["event"] == "died"]
    assert died["role"] == "sampler"
    assert died["time"] - struck < found.reliability.stall_timeout_s, "it was found out by a deadline only"
    whole = against_undisturbed(workspace, home, found)
    assert whole["exactly_once"] and whole["adapter_equal"] and whole["ledger_equal"], whole
    assert not run.orphans() and not run.scratch


def test_the_last_restart_used_up(workspace: Path) -> None:
    recipe(workspace, restarts=0)
    home, before = workspace / "run", in_memory()
    run = Run(workspace, home, {"sampler": 0.5})
    struck = struck_in(run, home, "sampling")
    assert run.wait(SOON) == 4, run.said
    assert time.time() - struck < SOON
    assert "a process of the run died (sampler" in run.said and "engine.log" in run.said and "--resume" in run.said
    assert "Traceback" not in run.said
    assert not run.orphans() and not left_in_memory(before)
    found = recipe(workspace)
    again = Run(workspace, home)
    assert again.wait() == 0, again.said
    whole = against_undisturbed(workspace, home, found)
    assert whole["adapter_equal"] and whole["ledger_equal"], whole


@pytest.mark.parametrize("role", ["sampler", "learner", "episodes"])
def test_killed_while_the_run_starts(workspace: Path, role: str) -> None:
    """As soon as its process is there, before anybody has heard of it."""
    found, home = recipe(workspace), workspace / "run"
    run = Run(workspace, home)
    run.until(lambda: run.strike(role))
    assert run.wait() == 0, run.said
    assert "starting another (1 of" in run.said
    whole = against_undisturbed(workspace, home, found)
    assert whole["exactly_once"] and whole["adapter_equal"] and whole["ledger_equal"], whole
    assert not run.orphans() and not run.scratch


def test_stopped_while_the_run_starts(workspace: Path) -> None:
    """Ray takes the signals for itself when it starts."""
    recipe(workspace)
    run = Run(workspace, workspace / "run")
    run.until(lambda: any("ray::Sampler" in " ".join(p.cmdline()) for p in run.look() if p.is_running()))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.said
    assert "Traceback" not in run.said
    assert not run.orphans() and not run.scratch


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_ray_s_own_processes_killed(workspace: Path, name: str) -> None:
    found, home = recipe(workspace), workspace / "run"
    run = Run(workspace, home, {"sampler": 0.3})
    run.said_that("reward")
    (head,) = [p for p in run.look() if p.is_running() and Path(p.exe()).name == name]
    struck = time.time()
    head.send_signal(signal.SIGKILL)
    assert run.wait(SOON) == 4, run.said
    assert time.time() - struck < SOON
    assert f"Ray itself died ({name}" in run.said and "--resume" in run.said
    assert "Traceback" not in run.said and len(run.said.split("Ray itself died")[1].splitlines()) == 1, run.said
    assert not run.orphans() and not run.scratch
    again = Run(workspace, home)
    assert again.wait() == 0, again.said
    whole = against_undisturbed(workspace, home, found)
    assert whole["adapter_equal"] and whole["ledger_equal"], whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", where]).returncode:
        pytest.skip("file systems can't be mounted here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize("left", [6 * 2**20, 0])
def test_the_disk_fills_up(workspace: Path, small_disk: Path, left: int) -> None:
    """Nearly: told before a checkpoint is begun. Wholly: whatever is written next fails."""
    found, home = recipe(workspace, steps=30), small_disk / "run"
    run = Run(workspace, home, {"sampler": 0.3})
    run.said_that("step 2/")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as f:
        try:
            while shutil.disk_usage(small_disk).free > left:
                f.write(bytes(min(2**20, max(4096, shutil.disk_usage(small_disk).free - left))))
        except OSError:
            assert not left
    assert run.wait(SOON) == 4, run.said
    assert ("no room for a checkpoint" if left else "disk is full") in run.said or "no room" in run.said, run.said
    assert "Traceback" not in run.said and "--resume" in run.said
    assert not list((home / "checkpoints").glob(".writing-*"))
    assert not any(checkpoint.problem(p) for p in (home / "checkpoints").glob("step-*"))
    filler.unlink()
    again = Run(workspace, home)
    assert again.wait() == 0, again.said
    whole = against_undisturbed(workspace, home, found)
    assert whole["adapter_equal"] and whole["ledger_equal"], whole
