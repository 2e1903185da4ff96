"""Stopping a run: the first signal saves and says how to go on, the second leaves no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import tiny
from tests.e2e.conftest import run, start

pytestmark = pytest.mark.slow


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read the command's output up to a line with ``text``."""
    assert process.stdout
    said = ""
    while text not in said:
        line = process.stdout.readline()
        assert line, f"ended before '{text}': {said}{process.stderr.read() if process.stderr else ''}"
        said += line
    return said


def belonging(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process], seconds: float = 20.0) -> list[str]:
    gone = time.monotonic() + seconds
    while (left := [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]) and time.monotonic() < gone:
        time.sleep(0.1)
    return [" ".join(p.cmdline()) for p in left]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_saves_and_says_how_to_go_on(tmp_path: Path, taught_base: Path, signum: int, code: int) -> None:
    tiny.write_workspace(tmp_path, taught_base, {"run": {"steps": 500, "checkpoint_every": 400}})
    process = start(tmp_path, "tune", "recipes/echo.yaml", "run.directory=runs/stopped")
    until(process, "step 2/500")
    children = belonging(process)
    os.killpg(process.pid, signum)  # as a terminal or a scheduler does it: to the whole group
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "--resume" in err and "Traceback" not in err
    assert not alive(children)
    steps = int(next((tmp_path / "runs" / "stopped" / "checkpoints").glob("step-*")).name.removeprefix("step-"))
    assert steps >= 2
    resume = ("tune", "--resume", "runs/stopped", f"run.steps={steps + 1}")
    if signum == signal.SIGTERM:  # somebody mends a rubric in the meantime
        (tmp_path / "rewards").mkdir(exist_ok=True)
        (tmp_path / "rewards" / "mended.py").write_text("")
        assert "have changed: rewards/mended.py. Put back" in run(tmp_path, *resume, expect=2)
        resume = (*resume, "--accept-changes")
    said = run(tmp_path, *resume)
    assert f"resuming after step {steps}" in said and f"step {steps + 1}/{steps + 1}" in said
    assert ("changed since the run began: rewards/mended.py" in said) == (signum == signal.SIGTERM)


def test_the_second_signal_ends_at_once_without_orphans(tmp_path: Path, taught_base: Path) -> None:
    tiny.write_workspace(tmp_path, taught_base, {"run": {"steps": 500}})
    process = start(tmp_path, "tune", "recipes/echo.yaml")
    until(process, "step 1/500")
    children = belonging(process)
    assert children
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not alive(children)


def test_a_killed_run_leaves_no_orphan_and_its_lock_counts_for_nothing(tmp_path: Path, taught_base: Path) -> None:
    tiny.write_workspace(tmp_path, taught_base, {"run": {"steps": 500}})
    process = start(tmp_path, "tune", "recipes/echo.yaml", "run.directory=runs/killed")
    until(process, "step 2/500")
    children = belonging(process)
    second = run(tmp_path, "tune", "recipes/echo.yaml", "--resume", "runs/killed", expect=2)
    assert f"process {process.pid}" in second
    process.kill()
    process.communicate()
    assert not alive(children, seconds=180)  # Ray's idle helpers take a while to see that nobody is left
    run(tmp_path, "tune", "--resume", "runs/killed", "run.steps=3")
