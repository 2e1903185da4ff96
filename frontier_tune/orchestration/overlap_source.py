"""Batches from groups that are played all the time, while the learner learns: see overlap.py and docs/overlap.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray

from frontier_tune.contracts import Completion, EpisodeSpec, Request
from frontier_tune.episodes.stream import Group, Played
from frontier_tune.orchestration.batch import Batch
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.handle import Beat, Handle
from frontier_tune.orchestration.ledger import Ledger
from frontier_tune.orchestration.overlap import Ticket, Window
from frontier_tune.orchestration.parity import CANARY_VERSIONS
from frontier_tune.recipe import Recipe

WORKFLOW, GENERAL = "workflow", "general"
_KINDS = {WORKFLOW: "workflow", GENERAL: "rehearsal"}  # as the ledger calls them
_LOOK_UP = 0.5  # seconds after which the driver looks up from waiting
_LONG_POLL = 2.0  # seconds that an actor waits for a finished group before it says that there is none


class Streams(Protocol):
    """The actors that play episodes, as one. Each group that is ``put`` comes back from ``poll`` once, unless it is dropped."""

    def put(self, groups: Sequence[Group]) -> None: ...

    def poll(self, seconds: float) -> list[Played]: ...

    def drop(self, ids: Sequence[str]) -> None: ...


class ActorStreams:
    """Episode actors behind ``Streams``. A group goes to the one with the fewest under way, the first of them on a tie."""

    def __init__(self, actors: Sequence[Handle]) -> None:
        self._actors = list(actors)
        self._at: dict[str, int] = {}
        self._load = [0] * len(self._actors)
        self._polls: dict[int, Any] = {}
        self._beats: dict[int, Beat] = {}
        self._polled = 0.0
        self._lost = 0  # tokens of groups that were dropped while they were on their way

    def put(self, groups: Sequence[Group]) -> None:
        shares: dict[int, list[Group]] = {}
        for group in groups:
            n = self._load.index(min(self._load))
            self._load[n] += 1
            self._at[group.id] = n
            shares.setdefault(n, []).append(group)
        for handle, ref in [(self._actors[n], self._actors[n].submit("stream_put", share)) for n, share in shares.items()]:
            handle.get(ref)

    def poll(self, seconds: float) -> list[Played]:
        """As in ``Streams``. Raises ActorDied, and Wedged where an actor that has groups gets no further, see handle.Beat."""
        now = time.monotonic()
        away, self._polled = now - self._polled, now
        for beat in self._beats.values():  # of all, also while others finish one group after the other
            if away > seconds + _LONG_POLL:  # the driver was at something else, and has asked for no heartbeat
                beat.pause(away)
            beat.check()
        for n, load in enumerate(self._load):
            if load and n not in self._polls:
                self._polls[n] = self._actors[n].submit("stream_take", _LONG_POLL)
            if load and n not in self._beats and self._actors[n].deadlines:
                self._beats[n] = Beat(self._actors[n])
        owner = {ref: n for n, ref in self._polls.items()}
        if not owner:
            return []
        refs = list(owner)
        ray.wait(refs, num_returns=1, timeout=seconds)
        self._polled = time.monotonic()
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        found: list[Played] = []
        for ref in done:
            n = owner[ref]
            del self._polls[n]
            for played in self._actors[n].get(ref):
                if self._at.pop(played.id, None) is None:
                    self._lost += played.tokens
                    continue
                self._load[n] -= 1
                found.append(replace(played, wasted=played.wasted + self._lost))
                self._lost = 0
            if not self._load[n]:
                self._beats.pop(n, None)
        return found

    def drop(self, ids: Sequence[str]) -> None:
        shares: dict[int, list[str]] = {}
        for name in ids:
            n = self._at.pop(name, None)
            if n is not None:
                self._load[n] -= 1
                shares.setdefault(n, []).append(name)
        for handle, ref in [(self._actors[n], self._actors[n].submit("stream_drop", share)) for n, share in shares.items()]:
            handle.get(ref)

    def close(self) -> None:
        for handle, ref in [(a, a.submit("stream_close")) for a in self._actors]:
            handle.get(ref)


@dataclass
class _Lane:
    """One kind of tasks: its plan, and what of it is under way."""

    name: str
    plan: GroupPlan
    window: Window
    _steps: dict[int, list[EpisodeSpec]] = field(default_factory=dict)

    def specs(self, position: int) -> tuple[EpisodeSpec, ...]:
        """The episodes of one group of the plan."""
        step, number = divmod(position, self.plan.groups_per_step)
        if step not in self._steps:
            self._steps = {s: specs for s, specs in self._steps.items() if (s + 1) * self.plan.groups_per_step > self.window.low}
            self._steps[step] = self.plan.step(step)
        size = self.plan.group_size
        return tuple(self._steps[step][number * size : (number + 1) * size])

    def batch(self, tickets: Sequence[Ticket]) -> Batch:
        found = [t.played for t in tickets if t.played]
        return Batch([t for p in found for t in p.trajectories], self.plan.group_size, sum(p.retried for p in found))


class Overlapped:
    """A ``Source`` whose groups are played while the learner learns, within ``run.staleness``.

    At staleness 0 a step's groups are issued when it asks for them, as the synchronous source plays them. ``every`` is called
    while waiting, and may raise. What is under way when the run stops is played again after a resume, from the same seeds.
    """

    def __init__(
        self,
        recipe: Recipe,
        streams: Streams,
        plan: GroupPlan,
        general: GroupPlan | None,
        state: LoopState,
        every: Callable[[], None],
        ledger: Ledger,
    ) -> None:
        self._staleness, self._streams, self._every, self._ledger = recipe.run.staleness, streams, every, ledger
        self._version = state.version
        self._lanes: dict[str, _Lane] = {}
        for name, lane_plan in ((WORKFLOW, plan), (GENERAL, general)):
            if lane_plan is not None:
                window = Window(
                    lane_plan.groups_per_step,
                    recipe.run.staleness,
                    recipe.run.steps,
                    state.step,
                    state.ahead.get(name, ()),
                    recipe.overlap.overdue == "drop",
                )
                self._lanes[name] = _Lane(name, lane_plan, window)
        self._extra: dict[str, Played | None] = {}
        self._extras = 0
        self._row: dict[str, Any] = {}
        self._wasted = self._dropped = 0

    # ---- what the loop asks for

    def workflow(self, step: int) -> Batch:
        if self._staleness:
            self._issue(*self._lanes)
        return self._next(self._lanes[WORKFLOW])

    def rehearsal(self, step: int) -> list[Batch]:
        return [self._next(self._lanes[GENERAL])] if GENERAL in self._lanes else []

    def more(self, specs: Sequence[EpisodeSpec]) -> Batch:
        size = 1 + max(s.member for s in specs)
        names = [f"more/{self._extras + n}/0" for n in range(len(specs) // size)]
        self._extras += len(names)
        self._extra |= dict.fromkeys(names)
        self._ledger.issue(specs, "dynamic")
        self._streams.put([Group(n, WORKFLOW, tuple(specs[i * size : (i + 1) * size])) for i, n in enumerate(names)])
        self._wait(lambda: all(self._extra[n] for n in names))
        found = [p for n in names if (p := self._extra.pop(n))]
        self._ledger.finish([t for p in found for t in p.trajectories])
        return Batch([t for p in found for t in p.trajectories], size, sum(p.retried for p in found))

    def learned(self, state: LoopState) -> dict[str, Any]:
        self._version = state.version
        for lane in self._lanes.values():
            self._drop(lane, lane.window.trained(state.version))
            state.ahead[lane.name] = sorted(lane.window.ahead)
        if self._staleness:
            self._issue(*self._lanes)
        state.tokens_sampled += self._wasted
        row = self._row | {"dropped": self._dropped, "wasted_tokens": self._wasted}
        self._row, self._wasted, self._dropped = {}, 0, 0
        return {"overlap": row}

    # ---- how

    def _next(self, lane: _Lane) -> Batch:
        self._issue(lane.name)
        self._wait(lambda: lane.window.ready(self._version))
        tickets = lane.window.take(self._version)
        for ticket in tickets:
            if ticket.played:
                members = ticket.played.trajectories
                self._ledger.finish(members, {members[0].spec.group: ticket.attempt})
        if lane.name == WORKFLOW:
            self._describe(lane.window, tickets)
        return lane.batch(tickets)

    def _issue(self, *names: str) -> None:
        """What there is room for, in the order in which steps will want it: all kinds of one step before any of the next."""
        lanes = [self._lanes[n] for n in names]
        tickets = [(lane, t) for lane in lanes for t in lane.window.issue(self._version)]
        self._put(sorted(tickets, key=lambda lt: lt[1].position // lt[0].plan.groups_per_step))

    def _put(self, tickets: Sequence[tuple[_Lane, Ticket]]) -> None:
        groups = []
        for lane, ticket in tickets:
            group = Group(f"{lane.name}/{ticket.position}/{ticket.attempt}", lane.name, lane.specs(ticket.position))
            self._ledger.issue(group.specs, _KINDS[lane.name], ticket.attempt)
            groups.append(group)
        if groups:
            self._streams.put(groups)

    def _drop(self, lane: _Lane, overdue: Sequence[Ticket]) -> None:
        """Groups that are overdue: given up, and under way anew."""
        self._streams.drop([f"{lane.name}/{t.position}/{t.attempt}" for t in overdue if t.played is None])
        self._dropped += len(overdue)
        self._wasted += sum(t.sampled_tokens for o in overdue if o.played for t in o.played.trajectories)
        self._put([(lane, lane.window.open[t.position]) for t in overdue])

    def _wait(self, done: Callable[[], bool]) -> None:
        self._every()
        while not done():
            if all(lane.window.queued == len(lane.window.open) for lane in self._lanes.values()) and all(self._extra.values()):
                raise RuntimeError("nothing is being played, and what was played is no step")  # a fault in overlap.Window
            for played in self._streams.poll(_LOOK_UP):
                self._finish(played)
            self._every()

    def _finish(self, played: Played) -> None:
        name, number, attempt = played.id.split("/")
        self._wasted += played.wasted
        if name == "more":
            if self._extra.get(played.id, played) is None:
                self._extra[played.id] = played
            return
        self._lanes[name].window.finish(int(number), int(attempt), played)

    def _describe(self, window: Window, tickets: Sequence[Ticket]) -> None:
        """What the step's row says: ages in policy versions, and what waits and runs behind it."""
        ages = [
            self._version - v
            for ticket in tickets
            if ticket.played
            for t in ticket.played.trajectories
            for v, m in zip(t.versions, t.mask, strict=True)
            if m
        ]
        first = min((t.position for t in window.open.values()), default=window.total)
        self._row = {
            "staleness_mean": sum(ages) / max(1, len(ages)),
            "staleness_max": max(ages, default=0),
            "overtook": sum(t.position > first for t in tickets),
            "queued": window.queued,
            "running": len(window.open) - window.queued,
            "restarted": sum(t.played.restarted for t in tickets if t.played),
        }


class SideBySide:
    """The sampler as loop and parity gate see it while episodes run: a canary never becomes the policy that those are asked of.

    It is loaded beside the policy, the gate's probes are pinned to it, and it is let go of when the policy's next version comes.
    """

    def __init__(self, sampler: Handle) -> None:
        self._sampler = sampler
        self._canary: int | None = None

    def sync(self, adapter_dir: str, version: int) -> None:
        canary = version >= CANARY_VERSIONS
        self._sampler.sync(adapter_dir, version, not canary)
        if self._canary is not None:
            self._sampler.release(self._canary)
        self._canary = version if canary else None

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        found: list[Completion] = self._sampler.exchange(requests, "gate", self._canary)
        return found

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        found: list[list[float]] = self._sampler.score(sequences, version)
        return found

    def resident(self, version: int) -> Mapping[str, str]:
        found: Mapping[str, str] = self._sampler.resident(version)
        return found


def overlaps(recipe: Recipe) -> bool:
    """Whether a run of ``recipe`` plays its groups as a stream."""
    return recipe.run.staleness > 0 or recipe.overlap.stream
