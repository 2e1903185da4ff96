"""One of several episode actors gets nowhere while the others work: it is found out by its own name, and nobody else is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from frontier_tune.episodes.stream import Group, Played
from frontier_tune.orchestration import handle, overlap_source
from frontier_tune.orchestration.actors import EpisodeActor
from frontier_tune.orchestration.handle import Deadlines, Handle, Wedged
from frontier_tune.orchestration.overlap_source import ActorStreams


class Clock:
    """Ray and time of our own: a call is answered when its promise, (from when on, answer), is due."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, refs: list[Any], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Any], list[Any]]:
        self.now = max(self.now, min(self.now + timeout, *(r[0] for r in refs)))
        return [r for r in refs if r[0] <= self.now], []

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        return ref[1]()


class Actor:
    """Finishes a group in less time than one look takes, or never; says how far it is by ``moves``."""

    def __init__(self, clock: Clock, works: bool, moves: Callable[[float], int]) -> None:
        self.clock, self.works, self.moves, self.has = clock, works, moves, list[str]()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.call(method, *arguments))

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "stream_put":
            self.has += [g.id for g in arguments[0]]
        if method == "stream_drop":
            self.has = [name for name in self.has if name not in arguments[0]]
        if method == "stream_take":
            return (self.clock.now + 0.3, lambda: [Played(self.has.pop(0), [])]) if self.works else (float("inf"), None)
        answer = {"moves": self.moves(self.clock.now), "waiting": "", "episodes": 0, "slowest": []}
        return self.clock.now, lambda: answer if method == "progress" else None


def wedged_by(monkeypatch: pytest.MonkeyPatch, moves: Callable[[float], int], away: float = 0.0, drops: bool = False) -> str:
    """Who is called wedged within two minutes of waiting, or ''; in between the driver is ``away`` for so long at a time."""
    clock = Clock()
    for module in (handle, overlap_source):
        monkeypatch.setattr(module, "ray", clock)
        monkeypatch.setattr(module, "time", clock)
    actors = [Actor(clock, True, lambda now: int(now)), Actor(clock, False, moves)]
    handles = [
        Handle(a, "engine.log", name, Deadlines(0.5, 10.0, 60.0))
        for a, name in zip(actors, ("episodes", "episodes 2"), strict=True)
    ]
    streams = ActorStreams(handles)
    streams.put([Group(f"{n}", "workflow", ()) for n in range(8)])
    waited = 0.0
    try:
        for n in range(8, 600):
            before = clock.now
            while not (found := streams.poll(0.5)):
                pass
            clock.now += 0.01
            waited += clock.now - before
            if waited > 120:
                break
            if drops and len(actors[1].has) > 3:
                streams.drop([actors[1].has[0]])
            streams.put([Group(f"{n}", "workflow", ())])
            assert len(found) == 1
            clock.now += away
    except Wedged as e:
        assert waited < 20
        return e.role
    return ""


def test_one_that_hangs_is_named_while_another_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wedged_by(monkeypatch, lambda now: 7) == "episodes 2"
    assert wedged_by(monkeypatch, lambda now: int(now / 4)) == ""  # slow is not stuck


def test_a_learner_s_step_between_two_looks_hides_nobody_and_makes_nobody_guilty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wedged_by(monkeypatch, lambda now: 7, away=30.0, drops=True) == "episodes 2"
    assert wedged_by(monkeypatch, lambda now: int(now / 45), away=30.0) == ""  # not always between two looks


def test_the_sampler_s_work_for_others_is_no_progress_of_one_s_own() -> None:
    passes = iter(range(100))
    actor: Any = EpisodeActor.__new__(EpisodeActor)
    stream = {"moves": 3, "waiting": "", "busy": True, "slowest": []}
    actor._stream, actor._stream_side = SimpleNamespace(progress=lambda: stream), SimpleNamespace(waiting=False)
    actor._side, actor._watch = SimpleNamespace(moves=0, waiting=False), None
    actor._done = actor._idle = actor._passes = 0

    def sampled() -> int:
        actor._passes = next(passes)
        return int(actor._passes)

    actor._sampled = sampled
    assert len({actor.progress()["moves"] for _ in range(5)}) == 1
    for side in (actor._side, actor._stream_side):  # now it waits for a turn, which may take long
        side.waiting = True
        assert len({actor.progress()["moves"] for _ in range(5)}) == 5
        side.waiting = False
