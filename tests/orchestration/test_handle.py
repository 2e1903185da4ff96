"""Heartbeats on a clock of our own: who is blamed, and when nobody is."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from frontier_tune.contracts import Blame
from frontier_tune.orchestration import handle
from frontier_tune.orchestration.handle import ActorDied, Beat, Deadlines, Handle, Wedged
from frontier_tune.sandbox import WorkerStartError


class Clock:
    """Ray with answers that come ``delay`` seconds after they were asked for (None: never)."""

    exceptions = ray.exceptions

    def __init__(self, delay: float | None) -> None:
        self.now, self.delay = 100.0, delay

    def monotonic(self) -> float:
        return self.now

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [r for r in refs if self.delay is not None and self.now >= r[0] + self.delay], []

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        return ref[1]


def blamed(monkeypatch: pytest.MonkeyPatch, delay: float | None, moves: Callable[[float], int], waiting: str) -> str:
    """The role that is called wedged within two minutes, or ''."""
    clock = Clock(delay)
    monkeypatch.setattr(handle, "ray", clock)
    monkeypatch.setattr(handle, "time", clock)

    def ask() -> tuple[float, dict[str, Any]]:
        return clock.now, {"moves": moves(clock.now), "waiting": waiting, "episodes": 0, "slowest": []}

    episodes = Handle(SimpleNamespace(progress=SimpleNamespace(remote=ask)), "engine.log", "episodes", Deadlines(0.5, 6.0, 60.0))
    episodes.peers = {"sampler": Handle(None, "engine.log", "sampler")}
    beat = Beat(episodes)
    try:
        while clock.now < 220:
            beat.check()
            clock.now += 0.5
    except Wedged as e:
        assert clock.now - 100 < 20
        return e.role
    return ""


@pytest.mark.parametrize("delay", [0.0, 1.2])
def test_whoever_is_waited_for_is_named(monkeypatch: pytest.MonkeyPatch, delay: float) -> None:
    """Also where the answers themselves come late."""
    assert blamed(monkeypatch, delay, lambda now: 3, "sampler") == "sampler"
    assert blamed(monkeypatch, delay, lambda now: 3, "") == "episodes"


def test_who_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blamed(monkeypatch, None, lambda now: 3, "sampler") == "episodes"


@pytest.mark.parametrize("delay", [0.0, 1.2])
def test_slow_is_not_stuck(monkeypatch: pytest.MonkeyPatch, delay: float) -> None:
    assert blamed(monkeypatch, delay, lambda now: int(now / 4), "sampler") == ""


def test_a_process_whose_workers_are_killed_again_and_again_is_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lives, and its pool is of no more use; no fault of the environment's that would end the run."""
    cause = WorkerStartError("environment envs/echo: a worker did not start: the worker process ended (status -9)")
    cause.blame = Blame.INFRASTRUCTURE
    error = ray.exceptions.RayTaskError("play", "Traceback", cause)
    monkeypatch.setattr(ray, "get", lambda ref, timeout: (_ for _ in ()).throw(error))
    with pytest.raises(ActorDied, match="did not start: .*; the last lines of engine.log tell more") as raised:
        Handle(None, "engine.log", "episodes").get("ref")
    assert raised.value.role == "episodes"


def test_another_process_that_got_the_number_of_a_dead_one_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        ours = Handle(None, "engine.log", "learner")
        ours.meet((socket.gethostname(), other.pid))
        assert ours.alive and ours.pid == other.pid
        process: Any = ours._process
        process._ident = (other.pid, 1.0)  # ours began at another time
        assert not ours.alive
        ours.kill()
        assert other.poll() is None
        other.kill()
