"""Batches from overlapping play, on streams that finish groups in any order: what the loop gets, learns from and writes down."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import EpisodeSpec, GateFailed, Task, Trajectory
from frontier_tune.episodes.stream import Group, Played
from frontier_tune.orchestration import overlap_source
from frontier_tune.orchestration.batch import Batch
from frontier_tune.orchestration.batches import numbered
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.ledger import read
from frontier_tune.orchestration.loop import Loop
from frontier_tune.orchestration.overlap_source import ActorStreams, Overlapped, SideBySide
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.stop import Stopped

TASKS = [Task("k", "train", {"n": n}) for n in range(50)]
ALGORITHM = {"groups_per_step": 3, "group_size": 2, "proximal": "learner", "correction": "truncate"}


class FakeStreams:
    """Finishes one group a poll, drawn from ``seed``, in the policy that is current when it does."""

    def __init__(self, seed: int = 0, slow: Callable[[str], bool] = lambda name: False) -> None:
        self.draw, self.slow = random.Random(seed), slow
        self.running: dict[str, Group] = {}
        self.policy, self.issued, self.most, self.dropped = 1, list[str](), 0, list[str]()

    def put(self, groups: Sequence[Group]) -> None:
        for group in groups:
            assert group.id not in self.running
            self.running[group.id] = group
            self.issued.append(group.id)
        self.most = max(self.most, len(self.running))

    def poll(self, seconds: float) -> list[Played]:
        ready = [n for n in self.running if not self.slow(n)] or list(self.running)
        group = self.running.pop(self.draw.choice(ready))
        return [Played(group.id, [self.play(s) for s in group.specs], wasted=1)]

    def play(self, spec: EpisodeSpec) -> Trajectory:
        return Trajectory(
            spec, [1, 2], [False, True], [0.0, -1.0], [-1, self.policy], reward=float(spec.member), success=spec.member == 1
        )

    def drop(self, ids: Sequence[str]) -> None:
        for name in ids:
            del self.running[name]
            self.dropped.append(name)


class Learner:
    """Learns nothing; keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[list[list[Trajectory]]] = []

    def learn(self, batches: list[list[Trajectory]], done: int) -> dict[str, float]:
        self.given.append(batches)
        return {}

    def save_adapter(self, directory: str) -> None: ...

    def save(self, directory: str) -> None: ...


def overlapped(
    directory: Path,
    streams: FakeStreams,
    rows: list[dict[str, Any]],
    state: LoopState | None = None,
    rehearsal: bool = False,
    algorithm: dict[str, Any] | None = None,
    **settings: Any,
) -> Loop:
    recipe = recipes.parse(
        {
            "run": {"staleness": settings.pop("staleness", 2), "steps": settings.pop("steps", 6)},
            "algorithm": ALGORITHM | (algorithm or {}),
            "overlap": settings,
        }
    )
    state = state or LoopState(version=1)
    streams.policy = state.version

    def sync(path: str, version: int) -> None:
        streams.policy = version

    crew: Any = SimpleNamespace(learner=Learner(), sampler=SimpleNamespace(sync=sync))
    gate: Any = SimpleNamespace(canary=lambda v, d: {}, check=lambda v: {})
    stop: Any = SimpleNamespace(check=lambda: None)
    plan = GroupPlan(TASKS, 0, 3, 2)
    general = GroupPlan(TASKS, 1, 1, 2, first_group=3) if rehearsal else None
    loop = Loop(recipe, RunDir(directory), crew, plan, general, gate, state, rows.append, stop)
    loop.overlapped = Overlapped(recipe, streams, plan, general, state, lambda: stop.check(), loop.ledger)
    return loop


def events(directory: Path, event: str) -> list[str]:
    return [row["group"] for _, row in read(directory / "ledger.jsonl") if row["event"] == event]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overdue", ["wait", "drop"])
def test_every_planned_group_is_trained_once_within_the_bound(tmp_path: Path, seed: int, overdue: str) -> None:
    rows: list[dict[str, Any]] = []
    streams = FakeStreams(seed, slow=lambda name: zlib.crc32(f"{name}{seed}".encode()) % 4 == 0)
    loop = overlapped(tmp_path, streams, rows, rehearsal=True, overdue=overdue)
    loop.train()
    trained = events(tmp_path, "trained")
    assert sorted(trained) == sorted(f"{step}.{group}" for step in range(1, 7) for group in range(4))
    assert all(r["overlap"]["staleness_max"] <= 2 for r in rows)
    assert streams.most <= 3 * (3 + 1)
    learner: Any = loop.crew.learner
    for workflow, general in learner.given:
        members = [t.spec.group for t in (*workflow, *general)]
        assert members[::2] == members[1::2] and len(set(members)) == 4  # the learner tells groups apart by number
    assert (overdue == "drop") or not sum(r["overlap"]["dropped"] for r in rows)
    assert loop.state.tokens_sampled >= 6 * 8 + len(streams.issued) - len(streams.dropped)  # wasted ones count in the budget


def test_staleness_0_issues_a_steps_groups_when_it_asks_for_them(tmp_path: Path) -> None:
    """As the synchronous source does: all of the workflow, in order, then the general tasks; nothing while the learner learns."""
    rows: list[dict[str, Any]] = []
    streams = FakeStreams(5)
    overlapped(tmp_path, streams, rows, rehearsal=True, staleness=0, steps=2).train()
    assert streams.issued == [
        *(f"workflow/{n}/0" for n in range(3)), "general/0/0", *(f"workflow/{n}/0" for n in range(3, 6)), "general/1/0"
    ]  # fmt: skip
    assert [r["overlap"]["staleness_max"] for r in rows] == [0, 0]
    order = [(r["event"], r["group"]) for _, r in read(tmp_path / "ledger.jsonl")]
    assert order[:6] == [("issued", f"1.{g}") for g in range(3)] + [("finished", f"1.{g}") for g in range(3)]


def test_a_stopped_run_plays_again_what_was_under_way_and_nothing_else(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    streams = FakeStreams(2, slow=lambda name: name in ("workflow/0/0", "workflow/4/0"))
    loop = overlapped(tmp_path, streams, rows)
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if len(rows) == 2:
            raise Stopped(2)

    loop.stop.check = check  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        loop.train()
    saved = json.loads((tmp_path / "checkpoints" / "step-000002" / "loop.json").read_text())
    ahead = saved["ahead"]["workflow"]
    assert ahead and 0 not in ahead
    first = events(tmp_path, "trained")
    state = LoopState(**saved | {"ledger": loop.state.ledger})
    again = FakeStreams(3)
    resumed = overlapped(tmp_path, again, rows, state)
    resumed.train()
    assert sorted(events(tmp_path, "trained")) == sorted(f"{step}.{group}" for step in range(1, 7) for group in range(3))
    assert events(tmp_path, "trained")[: len(first)] == first
    assert again.issued[0] == "workflow/0/0"


def test_dynamic_sampling_plays_its_rounds_beside_the_stream(tmp_path: Path) -> None:
    class Equal(FakeStreams):
        def play(self, spec: EpisodeSpec) -> Trajectory:
            t = super().play(spec)
            t.reward = float(spec.member) if spec.group >= 3 else 0.0
            return t

    rows: list[dict[str, Any]] = []
    loop = overlapped(tmp_path, Equal(1), rows, algorithm={"name": "dapo"}, steps=2)
    loop.train()
    assert [r["dynamic_rounds"] for r in rows] == [1, 1]
    assert sorted(events(tmp_path, "dropped")) == sorted(f"{s}.{g}" for s in (1, 2) for g in range(3))


def test_a_stream_that_serves_an_older_policy_is_found_out(tmp_path: Path) -> None:
    class Stale(FakeStreams):
        def play(self, spec: EpisodeSpec) -> Trajectory:
            t = super().play(spec)
            t.versions = [-1, self.policy - 3]
            return t

    with pytest.raises(GateFailed, match=r"versions \[-2\], but 1 was synced last and run.staleness is 2"):
        overlapped(tmp_path, Stale(), []).train()


def test_groups_of_different_steps_are_numbered_anew_for_the_learner_alone() -> None:
    def group(step: int, number: int) -> list[Trajectory]:
        return [Trajectory(EpisodeSpec(TASKS[0], number, m, 0, step=step), [1]) for m in range(2)]

    same = Batch([*group(0, 0), *group(0, 1)], 2)
    assert numbered([same])[0] is same.trajectories
    mixed = Batch([*group(0, 1), *group(1, 1)], 2)
    assert [t.spec.group for t in numbered([mixed, Batch(group(1, 4), 2)])[0]] == [0, 0, 1, 1]
    assert [t.spec.group for t in mixed.trajectories] == [1, 1, 1, 1]


def test_groups_go_to_who_has_least_and_what_was_dropped_on_its_way_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        deadlines = None

        def __init__(self) -> None:
            self.has, self.dropped = list[str](), list[str]()

        def submit(self, method: str, argument: Any = None) -> Any:
            if method == "stream_put":
                self.has += [g.id for g in argument]
            elif method == "stream_drop":
                self.dropped += argument
            return method, id(self)

        def get(self, ref: tuple[str, int]) -> list[Played]:
            done = list(self.has) if ref[0] == "stream_take" else []
            self.has = self.has[len(done) :]
            return [Played(name, [], wasted=5) for name in done]

    monkeypatch.setattr(overlap_source.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    first, second = Actor(), Actor()
    streams = ActorStreams([first, second])  # type: ignore[list-item]
    streams.put([Group(name, "workflow", ()) for name in ("a", "b", "c")])
    assert (first.has, second.has) == (["a", "c"], ["b"])
    streams.drop(["a", "unknown"])  # too late: it has finished, and is on its way
    assert first.dropped == ["a"] and not second.dropped
    found = streams.poll(0.0)
    assert [(p.id, p.wasted) for p in found] == [("c", 10), ("b", 5)]
    streams.put([Group(name, "workflow", ()) for name in ("d", "e")])
    assert (first.has, second.has) == (["d"], ["e"])


def test_a_canary_never_becomes_the_policy_that_episodes_are_asked_of() -> None:
    calls: list[tuple[Any, ...]] = []

    class Engine:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda *arguments: calls.append((name, *arguments))

    side = SideBySide(Engine())  # type: ignore[arg-type]
    canary = 1_000_000_007
    side.sync("canary", canary)
    side.exchange([])
    side.sync("policy", 7)
    side.exchange([])
    assert calls == [
        ("sync", "canary", canary, False),
        ("exchange", [], "gate", canary),
        ("sync", "policy", 7, True),
        ("release", canary),
        ("exchange", [], "gate", None),
    ]


def test_groups_are_issued_in_the_order_in_which_steps_want_them(tmp_path: Path) -> None:
    """Sampler and environments take them in turn: a step's general groups must not stand behind later steps' of the workflow."""
    streams = FakeStreams()
    loop = overlapped(tmp_path, streams, [], rehearsal=True, staleness=1)
    loop.source.workflow(0)
    step = ["workflow/{}/0", "workflow/{}/0", "workflow/{}/0", "general/{}/0"]
    numbers = [0, 1, 2, 0, 3, 4, 5, 1]
    assert streams.issued == [name.format(n) for name, n in zip(step * 2, numbers, strict=True)]
