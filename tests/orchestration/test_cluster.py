"""Ray on this machine: on one that is too busy for Ray's own patience it is started again, and leaves nothing behind."""

from __future__ import annotations

import subprocess

import psutil
import pytest

from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration import cluster

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup or ..."


def started(times: int) -> tuple[list[subprocess.Popen[bytes]], object]:
    """What Ray does: processes are started, and given up ``times`` times."""
    children: list[subprocess.Popen[bytes]] = []

    def init() -> None:
        children.append(subprocess.Popen(["sleep", "600"]))
        if len(children) <= times:
            raise Exception(SLOW)  # noqa: TRY002  # of that very type

    return children, init


def test_a_slow_start_is_tried_again() -> None:
    children, init = started(2)
    cluster._start(init)  # type: ignore[arg-type]
    assert [c.poll() is None and psutil.Process(c.pid).status() != psutil.STATUS_ZOMBIE for c in children][2]
    assert [c.wait(60) for c in children[:2]] == [-9, -9]
    children[2].kill()
    children[2].wait()


def test_a_machine_that_is_always_too_busy_ends_the_run_resumably() -> None:
    children, init = started(9)
    with pytest.raises(LimitReached, match="Ray did not start, 3 times: this machine is too busy"):
        cluster._start(init)  # type: ignore[arg-type]
    assert [c.wait(60) for c in children] == [-9] * 3


def test_any_other_fault_is_raised_at_once() -> None:
    with pytest.raises(ValueError, match="no such setting"):
        cluster._start(lambda: (_ for _ in ()).throw(ValueError("no such setting")))
