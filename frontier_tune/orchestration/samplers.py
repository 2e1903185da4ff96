"""Several samplers as one: requests go to whichever has the least to do, a policy goes to all, and one that dies is replaced.

The crew sees one actor, as of several learners (learners.py). It lives on the command's node and hires the others: one engine
each, on the nodes that have the fewest. What a dead one was at is sampled by another, from the same seeds; its successor is given
the policy of now before it serves (it may come up in the middle of a step, or of an evaluation).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from frontier_tune.contracts import Completion, FrontierTuneError, GateFailed, LimitReached, Request
from frontier_tune.orchestration import actors
from frontier_tune.orchestration.events import Events
from frontier_tune.orchestration.handle import ActorDied, first_line
from frontier_tune.orchestration.retry import backoff
from frontier_tune.orchestration.travel import Files, packed, unpacked
from frontier_tune.recipe import Recipe
from frontier_tune.sampling.environment import engine_environment

GATE = ("", "gate")  # clients whose requests are the parity gate's
_POLL_S = 1.0  # seconds that a member waits for a finished turn before it says that there is none
_TICK_S = 0.2  # seconds between two looks at who died and who came up
_STATE_S = 60.0  # seconds that loading an adapter, or digests of it, may take beyond what the call deadline says


class FleetLost(ActorDied):
    """One of the first samplers did not start."""

    role = "sampler"


class Member(actors.SamplerActor):
    """One sampler of several. An adapter reaches it as bytes, by one broadcast through Ray's object store."""

    def load_policy(self, files: Files, version: int, activate: bool) -> None:
        with unpacked(files) as directory:
            self.sync(directory, version, activate)


@dataclass(eq=False)
class Slot:
    """A place in the fleet. ``actor`` serves once it is ``up``; ``born`` is what its start returns, begun at ``since``."""

    number: int
    actor: Any = None
    born: Any = None
    up: bool = False
    host: str = ""
    node: str = ""
    load: int = 0
    passes: int = 0
    deaths: int = 0
    since: float = 0.0
    not_before: float = 0.0


@dataclass
class _Lane:
    """What one client has in flight: request -> (itself, version, slot, actor); calls -> (slot, actor, since, it polls)."""

    due: list[tuple[Request, int | None]] = field(default_factory=list)
    flight: dict[str, tuple[Request, int | None, Slot, Any]] = field(default_factory=dict)
    calls: dict[Any, tuple[Slot, Any, float, bool]] = field(default_factory=dict)


def emptiest(alive: Sequence[str], taken: Mapping[str, int], here: str, died: Mapping[str, int]) -> str:
    """The node of ``alive`` with the fewest actors of the run; on a tie not ``here``, where the learner is.

    Before all that, one on which the fewest have ``died``: Ray counts a node as alive for some seconds after its end.
    """
    return min(alive, key=lambda node: (died.get(node, 0), taken.get(node, 0), node == here, node))


class Fleet:
    """``size`` samplers behind the methods of one (``actors.SamplerActor``). Calls come from several threads."""

    member: type = Member

    def __init__(
        self,
        base_dir: str,
        recipe: Recipe,
        log: str | None,
        size: int,
        events: str | None = None,
        seats: Sequence[tuple[str, tuple[int, ...]]] = (),
        learners: Sequence[tuple[str, tuple[int, ...]]] = (),
    ) -> None:
        """``seats``: node and GPUs of each, where they have GPUs; else they go to whichever node is the emptiest. ``learners``:
        where those sit."""
        actors._open_log(log)
        self._arguments, self._recipe = (base_dir, recipe, log), recipe
        self._environment = engine_environment(recipe.sampler.threads)
        self._limits, self._events = recipe.reliability, Events(Path(events)) if events else None
        self._here = ray.get_runtime_context().get_node_id()
        self._lock, self._policy_lock = threading.RLock(), threading.RLock()
        self._lanes: dict[str, _Lane] = {}
        self._policies: dict[int, tuple[Any, bool]] = {}  # what a late one is given: the current policy, and canaries beside it
        self._current = self._turn = self._deaths = self._passes = 0
        self._died_on = Counter[str]()
        self._failure: FrontierTuneError | None = None
        self._seats, self._learners = list(seats), list(learners)
        self._slots = [Slot(n) for n in range(size)]
        for slot in self._slots:
            self._hire(slot)
        self._meet_all()

    # ---- what a sampler does

    def exchange(
        self, requests: Sequence[Request], client: str = "", version: int | None = None, wait: float | None = None
    ) -> list[Completion]:
        """As of one engine. Raises LimitReached where more samplers died than the recipe allows."""
        with self._lock:
            lane = self._lanes.setdefault(client, _Lane())
        lane.due += [(request, version) for request in requests]
        end = None if wait is None else time.monotonic() + wait
        while True:
            self._mend()
            self._reclaim(lane)
            self._send(lane, client)
            left = _TICK_S if end is None else max(0.0, min(_TICK_S, end - time.monotonic()))
            done = self._collect(lane, client, left)
            over = end is not None and time.monotonic() >= end
            if done or over or not (lane.flight or lane.due):
                return done

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        found: list[list[float]] = self._ask_one("score", sequences, version)
        return found

    def sync(self, adapter_dir: str, version: int, activate: bool = True) -> None:
        """To all, by one broadcast. Who dies meanwhile is not waited for: the next one catches up."""
        shared = ray.put(packed(adapter_dir))
        with self._policy_lock:  # nobody joins meanwhile: who serves now is told, who comes later is given it then
            self._mend()
            if activate:
                self._policies = {v: kept for v, kept in self._policies.items() if not kept[1]}
                self._current = version
            self._policies[version] = (shared, activate)
            self._turn += 1
            self._ask_all("load_policy", shared, version, activate)

    def release(self, version: int) -> None:
        with self._policy_lock:
            self._mend()
            self._policies.pop(version, None)
            self._ask_all("release", version)

    def resident(self, version: int) -> Mapping[str, str]:
        """Digests of the tensors of ``version``. Raises GateFailed where two samplers hold different ones."""
        while not (found := self._ask_all("resident", version)):
            self._mend()
            time.sleep(_TICK_S)
        (first, digests), *others = found.items()
        for number, theirs in others:
            if theirs != digests:
                names = sorted(n for n in digests.keys() | theirs.keys() if digests.get(n) != theirs.get(n))
                hosts = f"sampler {first} ({self._slots[first].host}) and sampler {number} ({self._slots[number].host})"
                raise GateFailed(f"samplers: {hosts} hold different tensors as version {version}: {', '.join(names[:4])}")
        return digests

    def version(self) -> int:
        return self._current

    def progress(self) -> int:
        """Forward passes of all so far, as far as they answer at once."""
        asked = {actor.progress.remote(): (slot, actor) for slot, actor in self._serving()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TICK_S) if asked else ([], [])
        for ref in ready:
            slot, actor = asked[ref]
            with suppress(ray.exceptions.RayError):
                passes = ray.get(ref)
                slot.passes = passes if slot.actor is actor else slot.passes
        return self._passes + sum(slot.passes for slot in self._slots)

    def members(self) -> list[dict[str, Any]]:
        """Who there is: ``host``, ``node``, whether it is ``up``, turns under way (``load``), ``deaths`` so far."""
        keys = ("number", "host", "node", "up", "load", "deaths")
        return [{key: getattr(slot, key) for key in keys} for slot in self._slots]

    def close(self) -> None:
        asked = [actor.close.remote() for _, actor in self._serving()]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=5.0)
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)

    # ---- who is there

    def _hire(self, slot: Slot) -> None:
        """Start an actor for ``slot``, without waiting for it: in its seat, or on the emptiest node."""
        found = [n for n in ray.nodes() if n["Alive"]]
        alive = [n["NodeID"] for n in found]
        if self._seats:
            self._seat(slot, {n["NodeID"]: n["Resources"].get("GPU", 0) for n in found})
            return
        taken = {self._here: 1} | Counter(node for node, _ in self._learners)
        for other in self._slots:
            if other is not slot and other.actor is not None:
                taken[other.node] = taken.get(other.node, 0) + 1
        slot.node = emptiest(alive, taken, self._here, self._died_on)
        where = NodeAffinitySchedulingStrategy(slot.node, soft=True)
        self._start(slot, where)

    def _seat(self, slot: Slot, has: Mapping[str, float]) -> None:
        """Start an actor on the GPUs of ``slot``'s seat, or on another node's where nobody sits and fewer have died: Ray counts a
        node as alive for some seconds after its end.

        ``has``: GPUs by living node. Without such a node the others serve alone, and it is looked for again later.
        """
        node, gpus = self._seats[slot.number]
        taken = {(there, gpu) for there, numbers in (*self._seats, *self._learners) for gpu in numbers}
        spare = [n for n in sorted(has) if n != self._here and has[n] > max(gpus) and not taken & {(n, gpu) for gpu in gpus}]
        alive = [n for n in (node, *spare) if n in has]
        if not alive:
            slot.not_before = time.monotonic() + self._limits.max_backoff_s
            return
        slot.node = min(alive, key=lambda n: self._died_on[n])  # the seat's own on a tie
        self._seats[slot.number] = (slot.node, gpus)
        self._start(slot, NodeAffinitySchedulingStrategy(slot.node, soft=False), gpus)

    def _start(self, slot: Slot, where: Any, gpus: Sequence[int] = ()) -> None:
        slot.actor = actors.remote(self.member, self._environment, 8, where, gpus).remote(*self._arguments)
        slot.born, slot.up, slot.load, slot.since = slot.actor.started.remote(), False, 0, time.monotonic()

    def _meet_all(self) -> None:
        """Wait until the first ones stand. Raises their typed errors."""
        for slot in self._slots:
            if slot.born is None:
                raise FleetLost(f"sampler {slot.number} found no node to start on")
            try:
                self._welcome(slot, ray.get(slot.born, timeout=self._limits.call_timeout_s))
            except ray.exceptions.RayTaskError as e:
                raise (e.cause if isinstance(e.cause, FrontierTuneError) else e) from None
            except ray.exceptions.RayError as e:
                raise FleetLost(f"sampler {slot.number} did not start: {first_line(e)}") from None

    def _welcome(self, slot: Slot, who: tuple[str, int]) -> None:
        """The new one is given all that it has missed, and serves from now on."""
        with self._policy_lock:
            for version, (shared, activate) in sorted(self._policies.items(), key=lambda kept: kept[1][1]):
                ray.get(slot.actor.load_policy.remote(shared, version, activate), timeout=_STATE_S)
            with self._lock:
                slot.up, slot.host = True, who[0]
        self._log("joined", slot)

    def _mend(self) -> None:
        """Look at those that are starting; hire where a place is empty. Raises what ended the fleet."""
        with self._lock:
            if self._failure:
                raise self._failure
            for slot in self._slots:
                if slot.actor is None and time.monotonic() >= slot.not_before:
                    self._hire(slot)
            starting = [(slot, slot.actor, slot.born) for slot in self._slots if slot.born is not None and not slot.up]
        for slot, actor, born in starting:
            with self._policy_lock:
                if slot.actor is not actor or slot.up:
                    continue
                if not ray.wait([born], timeout=0)[0]:
                    if time.monotonic() - slot.since > self._limits.call_timeout_s:
                        self._lost(slot, actor, f"not up after {self._limits.call_timeout_s:g} s (reliability.call_timeout_s)")
                    continue
                try:
                    self._welcome(slot, ray.get(born))
                except ray.exceptions.RayError as e:
                    self._lost(slot, actor, e)

    def _lost(self, slot: Slot, actor: Any, error: BaseException | str) -> None:
        """``actor`` is no more: its place is free, what it was at goes to others. Up to ``reliability.restarts`` times."""
        why = error if isinstance(error, str) else first_line(getattr(error, "cause", None) or error)
        with self._lock:
            if slot.actor is not actor:  # somebody else saw it, too
                return
            ray.kill(actor)
            self._passes += slot.passes
            slot.actor, slot.born, slot.up, slot.load, slot.passes = None, None, False, 0, 0
            slot.deaths += 1
            self._deaths += 1
            self._died_on[slot.node] += 1
            pause = backoff(slot.deaths, self._limits.backoff_s, self._limits.max_backoff_s)
            slot.not_before = time.monotonic() + pause
            self._log("died", slot, kind="Sampler", message=why)
            if self._deaths > self._limits.restarts:
                self._failure = LimitReached(
                    f"sampler {slot.number} on {slot.host or slot.node} died ({why}); {self._deaths - 1} were replaced before, "
                    "reliability.restarts allows no more. engine.log on that node tells more"
                )
                raise self._failure

    def _serving(self) -> list[tuple[Slot, Any]]:
        """Those that serve now, with their actors: another thread may see them dead any moment, and clear their places."""
        with self._lock:
            return [(slot, slot.actor) for slot in self._slots if slot.up]

    def _log(self, event: str, slot: Slot, **what: Any) -> None:
        if self._events:
            self._events.log(event, role="sampler", number=slot.number, host=slot.host, node=slot.node, **what)

    # ---- requests

    def _reclaim(self, lane: _Lane) -> None:
        """What was with those that died, and with those that keep silent for too long, is due again."""
        now = time.monotonic()
        for slot, actor, since, _ in list(lane.calls.values()):
            if slot.actor is actor and now - since > self._limits.stall_timeout_s:
                self._lost(slot, actor, f"no answer for {now - since:.0f} s (reliability.stall_timeout_s)")
        lane.calls = {ref: call for ref, call in lane.calls.items() if call[0].actor is call[1]}
        gone = [name for name, (_, _, slot, actor) in lane.flight.items() if slot.actor is not actor]
        lane.due = [lane.flight.pop(name)[:2] for name in gone] + lane.due

    def _send(self, lane: _Lane, client: str) -> None:
        """Hand out what is due: the gate's probes to one sampler, another one at each sync; all else by load."""
        with self._lock:
            up = [slot for slot in self._slots if slot.up]
            if not up or not lane.due:
                return
            shares: dict[tuple[int, int | None], list[Request]] = {}
            for request, version in lane.due:
                slot = self._slots[self._turn % len(self._slots)] if client in GATE else min(up, key=lambda s: s.load)
                slot = slot if slot.up else up[0]
                slot.load += 1
                lane.flight[request.id] = (request, version, slot, slot.actor)
                shares.setdefault((slot.number, version), []).append(request)
            lane.due = []
            for (number, version), share in shares.items():
                slot = self._slots[number]
                ref = slot.actor.exchange.remote(share, client, version, 0.0)
                lane.calls[ref] = (slot, slot.actor, time.monotonic(), False)

    def _collect(self, lane: _Lane, client: str, seconds: float) -> list[Completion]:
        polled = {slot.number for slot, _, _, polls in lane.calls.values() if polls}
        for slot, actor in {id(a): (s, a) for _, _, s, a in lane.flight.values()}.values():
            if slot.number not in polled and slot.actor is actor:
                ref = actor.exchange.remote([], client, None, _POLL_S)
                lane.calls[ref] = (slot, actor, time.monotonic(), True)
        if not lane.calls:
            time.sleep(seconds)
            return []
        refs = list(lane.calls)
        ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        done: list[Completion] = []
        for ref in ready:
            slot, actor, _, _ = lane.calls.pop(ref)
            try:
                finished = ray.get(ref)
            except ray.exceptions.RayError as e:  # its process died, or the engine inside it
                self._lost(slot, actor, e)
                continue
            for completion in finished:
                if lane.flight.pop(completion.request_id, None) is not None:
                    slot.load -= slot.actor is actor  # else it has died since: its successor's load is its own
                    done.append(completion)
        return done

    # ---- calls beside requests

    def _ask_one(self, method: str, *arguments: Any) -> Any:
        """Of the sampler whose turn it is; of another one where that is gone."""
        while True:
            self._mend()
            for slot, actor in sorted(self._serving(), key=lambda one: (one[0].number - self._turn) % len(self._slots)):
                there, answer = self._answer(slot, actor, getattr(actor, method).remote(*arguments))
                if there:
                    return answer
            time.sleep(_TICK_S)

    def _ask_all(self, method: str, *arguments: Any) -> dict[int, Any]:
        """Answers of all that serve now, by number."""
        asked = [(slot, actor, getattr(actor, method).remote(*arguments)) for slot, actor in self._serving()]
        answers = {slot.number: self._answer(slot, actor, ref) for slot, actor, ref in asked}
        return {number: answer for number, (there, answer) in answers.items() if there}

    def _answer(self, slot: Slot, actor: Any, ref: Any) -> tuple[bool, Any]:
        """(True, the answer), or (False, None) where the actor is gone. Raises its typed errors."""
        try:
            return True, ray.get(ref, timeout=self._limits.call_timeout_s)
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, FrontierTuneError) and getattr(e.cause, "blame", None) is None:
                raise e.cause from None
            self._lost(slot, actor, e)
        except ray.exceptions.RayError as e:
            self._lost(slot, actor, e)
        return False, None
