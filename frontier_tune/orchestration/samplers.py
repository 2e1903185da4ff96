"""Several samplers as one: requests go to whichever has the least to do, a policy goes to all, and one that dies is replaced.

The crew sees one actor, as of several learners (learners.py). It lives on the command's node and hires the others: one engine
each, on the nodes that have the fewest. What a dead one was at is sampled by another, from the same seeds; its successor is given
the policy of now before it serves (it may come up in the middle of a step, or of an evaluation). It sits where the dead one sat
while that node lives; after the second death there (chance no more) on another one, if there is room.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from frontier_tune.contracts import Completion, FrontierTuneError, GateFailed, LimitReached, Request
from frontier_tune.orchestration import actors, seating
from frontier_tune.orchestration.events import Events
from frontier_tune.orchestration.handle import ActorDied, first_line
from frontier_tune.orchestration.lanes import Lane, Slot
from frontier_tune.orchestration.retry import backoff
from frontier_tune.orchestration.seating import Place
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
        seats: Sequence[Place] = (),
        learners: Sequence[Place] = (),
    ) -> None:
        """``seats``: node and GPUs of each, where they have GPUs; else they go to whichever node is the emptiest. ``learners``:
        where those sit."""
        actors._open_log(log)
        self._arguments, self._recipe = (base_dir, recipe, log), recipe
        self._environment = engine_environment(recipe.sampler.threads)
        self._limits, self._events = recipe.reliability, Events(Path(events)) if events else None
        self._here = ray.get_runtime_context().get_node_id()
        self._lock, self._policy_lock = threading.RLock(), threading.RLock()
        self._lanes: dict[str, Lane] = {}
        self._gone = set[str]()  # clients
        self._policies: dict[int, tuple[Any, bool]] = {}  # what a late one is given: the current policy, and canaries beside it
        self._current = self._turn = self._deaths = self._passes = 0
        self._died_on = Counter[str]()
        self._failure: FrontierTuneError | None = None
        self._seats, self._homes, self._learners = list(seats), list(seats), list(learners)
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
            if client in self._gone:
                return []
            lane = self._lanes.setdefault(client, Lane())
        lane.due += [(request, version) for request in requests]
        end = None if wait is None else time.monotonic() + wait
        while True:
            self._mend()
            self._reclaim(lane)
            self._send(lane, client)
            left = _TICK_S if end is None else max(0.0, min(_TICK_S, end - time.monotonic()))
            done = self._collect(lane, client, left)
            over = end is not None and time.monotonic() >= end
            if done or over or lane.over or not (lane.flight or lane.due):
                return done

    def forget(self, kept: Collection[str] = ()) -> None:
        """As of one engine: who asks no more, all clients but ``kept``, loads no sampler and is kept nothing."""
        with self._lock:
            gone = self._lanes.keys() - set(kept)
            self._gone |= gone
            for client in gone:
                self._lanes.pop(client).end()
        self._ask_all("forget", kept)

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

    def reseat(self, learners: Sequence[Place], homes: Sequence[Place]) -> list[Place]:
        """Learners sit at ``learners`` from now on, the plan's seats are ``homes``: see seating.py. Returns where samplers do."""
        with self._lock:
            self._learners, self._homes = list(learners), list(homes)
            return list(self._seats)

    def _hire(self, slot: Slot) -> None:
        """Start an actor for ``slot``, without waiting for it: in its seat, or on the emptiest node."""
        has = seating.living(self._died_on, self._here)
        shunned = {node: deaths // 2 for node, deaths in self._died_on.items()}
        if self._seats:
            self._seat(slot, has, shunned)
            return
        taken = {self._here: 1} | Counter(node for node, _ in self._learners)
        for other in self._slots:
            if other is not slot and other.actor is not None:
                taken[other.node] = taken.get(other.node, 0) + 1
        slot.node = seating.emptiest(list(has), taken, self._here, shunned)
        where = NodeAffinitySchedulingStrategy(slot.node, soft=True)
        self._start(slot, where)

    def _seat(self, slot: Slot, has: Mapping[str, float], shunned: Mapping[str, int]) -> None:
        """Start an actor on the GPUs of ``slot``'s seat, or on another node's. Where there is none the others serve alone, and it
        is looked for again later."""
        node = seating.seat_for(slot.number, self._seats, self._homes, self._learners, has, self._here, shunned)
        if node is None:
            slot.not_before = time.monotonic() + self._limits.max_backoff_s
            self._log("homeless", slot, message="no living node has its GPUs free")
            return
        gpus = self._seats[slot.number][1]
        slot.node, self._seats[slot.number] = node, (node, gpus)
        self._start(slot, NodeAffinitySchedulingStrategy(node, soft=False), gpus)

    def _start(self, slot: Slot, where: Any, gpus: Sequence[int] = ()) -> None:
        slot.actor = actors.remote(self.member, self._environment, 8, where, gpus).remote(*self._arguments)
        slot.born, slot.up, slot.load, slot.since = slot.actor.started.remote(), False, 0, time.monotonic()

    def _meet_all(self) -> None:
        """Wait until the first ones stand. Raises their typed errors."""
        hired = [slot for slot in self._slots if slot.born is not None]
        if not hired:
            raise FleetLost("no sampler found a node to start on")
        for slot in hired:
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

    def _reclaim(self, lane: Lane) -> None:
        """What was with those that died, and with those that keep silent for too long, is due again."""
        now = time.monotonic()
        for slot, actor, since, _ in list(lane.calls.values()):
            if slot.actor is actor and now - since > self._limits.stall_timeout_s:
                self._lost(slot, actor, f"no answer for {now - since:.0f} s (reliability.stall_timeout_s)")
        with self._lock:
            lane.reclaim()

    def _send(self, lane: Lane, client: str) -> None:
        """Hand out what is due: the gate's probes to one sampler, another one at each sync; all else by load."""
        with self._lock:
            up = [slot for slot in self._slots if slot.up]
            if not up or not lane.due or lane.over:
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

    def _collect(self, lane: Lane, client: str, seconds: float) -> list[Completion]:
        calls = lane.calls
        polled = {slot.number for slot, _, _, polls in calls.values() if polls}
        for slot, actor in {id(a): (s, a) for _, _, s, a in lane.flight.values()}.values():
            if slot.number not in polled and slot.actor is actor:
                ref = actor.exchange.remote([], client, None, _POLL_S)
                calls[ref] = (slot, actor, time.monotonic(), True)
        if not calls:
            time.sleep(seconds)
            return []
        refs = list(calls)
        ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        done: list[Completion] = []
        for ref in ready:
            slot, actor, _, _ = calls.pop(ref)
            try:
                finished = ray.get(ref)
            except ray.exceptions.RayError as e:  # its process died, or the engine inside it
                self._lost(slot, actor, e)
                continue
            with self._lock:
                done += [completion for completion in finished if lane.take(completion.request_id)]
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
