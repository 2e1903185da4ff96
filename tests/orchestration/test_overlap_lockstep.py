"""Staleness 0 through the stream is the synchronous loop, bit for bit: on the real engine, learner, environments and gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Completion, Request
from frontier_tune.episodes.stream import Group, Played
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.run_dir import RunDir
from tests import tiny

pytestmark = pytest.mark.slow


class Engine:
    """One engine for several runs: each sees versions of its own, ``shift`` apart."""

    def __init__(self, engine: Any, shift: int) -> None:
        self.engine, self.shift = engine, shift

    def exchange(
        self, requests: Sequence[Request], client: str = "", version: int | None = None, wait: float | None = None
    ) -> list[Completion]:
        pinned = None if version is None else version + self.shift
        return [replace(c, version=c.version - self.shift) for c in self.engine.exchange(requests, client, pinned, wait)]

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> Any:
        return self.engine.score(sequences, version + self.shift)

    def sync(self, adapter_dir: str, version: int, activate: bool = True) -> None:
        self.engine.sync(adapter_dir, version + self.shift, activate)

    def release(self, version: int) -> None:
        self.engine.release(version + self.shift)

    def resident(self, version: int) -> Any:
        return self.engine.resident(version + self.shift)


class Here:
    """An actor's handle whose actor is in this process."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def submit(self, method: str, *arguments: Any) -> Any:
        return getattr(self.actor, method)(*arguments)

    def wait(self, found: Any, every: Callable[[], None]) -> Any:
        return found

    def __getattr__(self, method: str) -> Any:
        return getattr(self.actor, method)


class Streams:
    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def put(self, groups: Sequence[Group]) -> None:
        self.actor.stream_put(groups)

    def poll(self, seconds: float) -> list[Played]:
        found: list[Played] = self.actor.stream_take(seconds)
        return found

    def drop(self, ids: Sequence[str]) -> None:
        self.actor.stream_drop(ids)


def train(home: Path, base: Path, workspace: Path, engine: Any, shift: int, **settings: Any) -> tuple[str, str, list[str]]:
    """Three steps; digests of the adapter and of the ledger, and what was said."""
    from frontier_tune.orchestration import actors
    from frontier_tune.orchestration.loop import Loop
    from frontier_tune.orchestration.overlap_source import Overlapped, SideBySide
    from frontier_tune.orchestration.parity import ParityGate, make_probes
    from frontier_tune.sandbox.pool import EnvironmentPool

    recipe = recipes.load(workspace / "recipes" / "echo.yaml", ["run.deterministic=true"]).model_copy(update=settings)
    sampler: Any = Engine(engine, shift)
    if recipe.overlap.stream:
        sampler = SideBySide(sampler)
    learner = actors.LearnerActor(str(base), recipe, None)
    environments: Any = {"workflow": ("envs/echo", {})}
    episodes = actors.EpisodeActor(str(base), recipe, str(workspace), environments, Engine(engine, shift), None)  # type: ignore[arg-type]
    with EnvironmentPool("envs/echo", workspace) as pool:
        tasks = pool.tasks("train", 40, 0)
    state, run = LoopState(version=1), RunDir(home)
    gate = ParityGate(learner, sampler, make_probes([[5 + i for i in range(90)]], 2, 400), "float32")
    learner.save_adapter(str(run.adapter_version(1)))
    gate.start(1, str(run.adapter_version(1)), str(run.canary(1)))
    crew: Any = SimpleNamespace(episodes=Here(episodes), sampler=sampler, learner=learner)
    plan = GroupPlan(tasks, 0, 4, 4)
    stop: Any = SimpleNamespace(check=lambda: None)
    rows: list[dict[str, Any]] = []
    loop = Loop(recipe, run, crew, plan, None, gate, state, rows.append, stop)
    if recipe.overlap.stream:
        loop.overlapped = Overlapped(recipe, Streams(episodes), plan, None, state, stop.check, loop.ledger)
    try:
        loop.train()
    finally:
        episodes.close()
    learner.save_adapter(str(run.adapter))
    assert state.version > 2, "nothing was learned: equal adapters would say nothing"
    assert all(("overlap" in row) == recipe.overlap.stream for row in rows)
    adapter = (run.adapter / "adapter_model.safetensors").read_bytes()
    said = [path.read_text() for path in sorted((home / "rollouts").iterdir())]
    return hashlib.sha256(adapter).hexdigest(), run.ledger.read_text(), said


def test_the_stream_at_staleness_0_equals_the_synchronous_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frontier_tune.orchestration import actors
    from frontier_tune.recipe import Overlap
    from frontier_tune.sampling.engine import VLLMSampler

    monkeypatch.setattr(actors, "Handle", lambda sampler, *_: sampler)
    base = tiny.build_base(tmp_path / "base", lessons=60)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    recipe = recipes.load(tiny.write_workspace(workspace, base))
    with VLLMSampler(base, recipe.sampler, recipe.adapter, log_file=tmp_path / "engine.log") as engine:
        runs = [
            train(tmp_path / name, base, workspace, engine, 1000 * n, overlap=Overlap(stream=stream))
            for n, (name, stream) in enumerate([("synchronous", False), ("stream", True)])
        ]
    (adapter, ledger, said), (other_adapter, other_ledger, other_said) = runs
    assert other_said == said
    assert other_ledger == ledger
    assert other_adapter == adapter
