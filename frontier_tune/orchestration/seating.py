"""Who sits where, for a whole run: a node of the plan is one of Ray's until that is gone, whoever is hired or dies elsewhere.

Learners are moved here, samplers by their fleet (samplers.py). Who moves one asks first where the others sit, and tells them, so
that no GPU gets two that the plan keeps apart. Who moves keeps the numbers of his GPUs.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from frontier_tune.contracts import BadInput, LimitReached
from frontier_tune.orchestration.handle import Handle
from frontier_tune.orchestration.plan.placement import Seat, Seats

Place = tuple[str, tuple[int, ...]]  # a node of Ray's, and GPUs of it by number

_ANSWER_S = 1.0  # seconds that a node has to answer


class Seating:
    """Which of Ray's nodes each node of the plan is; node 0 is the one where the command runs."""

    def __init__(self, seats: Seats, cluster: bool) -> None:
        self.learners = seats.learners
        self.samplers = seats.samplers if seats.samplers[0].gpus else []  # without GPUs they go wherever there is least to do
        self._cluster = cluster
        self._nodes: dict[int, str] = {}
        self._homeless: set[int] = set()

    def of_a_fleet(self) -> tuple[list[Place], list[Place]]:
        """Of samplers that have GPUs, and of learners, for a fleet that starts. Once the run has started a sampler's node may be
        gone: the fleet looks for another. Raises BadInput where nodes or their GPUs are too few from the first."""
        if not self._nodes:
            self._look([*self.learners, *self.samplers])
        else:
            self._homeless = self._look(self.learners)
            self._look(self.samplers)
        return self._places(self.samplers), self._places(self.learners)

    def of_learners(self, fleet: Handle) -> list[Place]:
        """Of learners that start. ``fleet``: the samplers; if it starts beside them it has just been told.

        Raises LimitReached where a learner's node is gone and no other has its GPUs free, else as ``of_a_fleet``.
        """
        if self._cluster and fleet.met:
            self._agree(fleet)
        elif not self._nodes:
            self._look([*self.learners, *self.samplers])
        for seat in self.learners:
            if seat.node in self._homeless:
                raise LimitReached(
                    f"node {seat.node} of the plan is gone, with a learner, and no other node of the cluster has GPU "
                    f"{', '.join(map(str, seat.gpus))} with nobody on it; start one (ray start --address, --num-gpus), and resume"
                )
        return self._places(self.learners)

    def _agree(self, fleet: Handle) -> None:
        """Other nodes for learners whose nodes are gone: none where the fleet has put a sampler, even just now."""
        before = dict(self._nodes)
        sat: list[Place] | None = None
        now: list[Place] = fleet.reseat(self._places(self.learners), self._places(self.samplers))
        while now != sat:
            sat, self._nodes = now, dict(before)
            self._homeless = self._look(self.learners, sat)
            now = fleet.reseat(self._places(self.learners), self._places(self.samplers))

    def _places(self, seats: Sequence[Seat]) -> list[Place]:
        return [(self._nodes[seat.node], seat.gpus) for seat in seats]

    def _look(self, chosen: Sequence[Seat], sat: Sequence[Place] = ()) -> set[int]:
        """Find Ray's nodes for those of ``chosen`` that have none, or whose node is gone; all others stay what they are.

        ``sat``: where samplers sit now. Who needs most comes first, and each gets the smallest node that will do. Returns the
        numbers for which there is none.
        """
        own = ray.get_runtime_context().get_node_id()
        if not self._cluster:
            self._nodes = {0: own}
            return set()
        has = {n["NodeID"]: n["Resources"].get("GPU", 0) for n in ray.nodes() if n["Alive"]}
        need, whole = _needs(chosen), _needs([*self.learners, *self.samplers])
        kept = {number: node for number, node in self._nodes.items() if node in has} | {0: own}
        free = has.keys() - set(kept.values())
        eligible = {}
        for n in sorted(need.keys() - kept.keys(), key=lambda n: (-need[n], n)):
            gpus = {gpu for seat in chosen if seat.node == n for gpu in seat.gpus}
            others = {there for (there, its), seat in zip(sat, self.samplers, strict=False) if seat.node != n and gpus & {*its}}
            fit = [(has[node] < whole[n], has[node], node) for node in free - others if has[node] >= need[n]]
            eligible[n] = [node for *_, node in sorted(fit)]
        found = {n: own for n in eligible if not need[n]} | matched(eligible)  # who needs no GPU can be here, too
        homeless = ([0] if has[own] < need.get(0, 0) else []) + [n for n in eligible if n not in found]
        if homeless and not self._nodes:
            n = homeless[0]
            raise BadInput(
                f"placement: node {n} of the plan needs {need[n]} GPUs, and Ray knows of "
                + (f"{has[own]:g} on this machine" if n == 0 else "no further node that has them")
                + "; start the nodes with their GPUs (ray start --num-gpus), or lower placement.gpus_per_node or nodes"
            )
        self._nodes |= {0: own} | found
        return set(homeless)


def _needs(seats: Sequence[Seat]) -> dict[int, int]:
    """GPUs that a node has to have, by its number in the plan."""
    out: dict[int, int] = {}
    for seat in seats:
        out[seat.node] = max(1 + max(seat.gpus, default=-1), out.get(seat.node, 0))
    return out


def matched(eligible: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """A node of its own for as many numbers as can be, the first that is free where there is one.

    By augmenting paths (Kuhn, Naval Research Logistics Quarterly 2, 1955): who comes later never takes the last one of an
    earlier number, but may push it on to another.
    """
    holder: dict[str, int] = {}

    def place(number: int, seen: set[str]) -> bool:
        free = next((node for node in eligible[number] if node not in holder), None)
        if free is not None:
            holder[free] = number
            return True
        for node in eligible[number]:
            if node not in seen:
                seen.add(node)
                if place(holder[node], seen):
                    holder[node] = number
                    return True
        return False

    for number in eligible:
        place(number, set())
    return {number: node for node, number in holder.items()}


def emptiest(alive: Sequence[str], taken: Mapping[str, int], here: str, shunned: Mapping[str, int]) -> str:
    """The node of ``alive`` with the fewest actors of the run; on a tie not ``here``, where the learner is.

    Before all that, the one that is ``shunned`` least.
    """
    return min(alive, key=lambda node: (shunned.get(node, 0), taken.get(node, 0), node == here, node))


def seat_for(
    number: int,
    seats: Sequence[Place],
    homes: Sequence[Place],
    learners: Sequence[Place],
    has: Mapping[str, float],
    here: str,
    shunned: Mapping[str, int],
) -> str | None:
    """The node for sampler ``number``: where it sits in ``seats``, or in the plan (``homes``), or another one where nobody has
    its GPUs; of those the one that is ``shunned`` least. None where there is none.

    ``has``: GPUs by living node. With learners it shares GPUs where the plan says so, with other samplers never.
    """
    node, gpus = seats[number]

    def free(there: str, others: Sequence[Place]) -> bool:
        taken = {gpu for at, numbers in others if at == there for gpu in numbers}
        return there in has and (there == here or has[there] > max(gpus)) and not taken & {*gpus}

    others = [place for n, place in enumerate(seats) if n != number]
    known = [there for there in dict.fromkeys((node, homes[number][0])) if free(there, others)]
    spare = [there for there in sorted(has) if there != here and free(there, [*others, seats[number], *learners])]
    return min([*known, *spare], key=lambda there: shunned.get(there, 0), default=None)


def living(died: Mapping[str, int], here: str) -> dict[str, float]:
    """GPUs of each living node. Ray counts a node as alive for some seconds after its end: where somebody has ``died``, the node
    itself is asked."""
    return {
        n["NodeID"]: n["Resources"].get("GPU", 0)
        for n in ray.nodes()
        if n["Alive"] and (n["NodeID"] == here or not died.get(n["NodeID"]) or _answers(n))
    }


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether Ray's own process of the node (its raylet) takes connections."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _ANSWER_S).close()
    except OSError:
        return False
    return True
