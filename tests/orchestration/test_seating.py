"""Who sits where once nodes have died: nobody on a GPU that the plan gives to another, and nobody moved without need."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import ray

from frontier_tune.contracts import BadInput, LimitReached
from frontier_tune.orchestration import samplers, seating
from frontier_tune.orchestration.plan.placement import Seat, Seats
from frontier_tune.orchestration.samplers import Fleet
from frontier_tune.orchestration.seating import Place, Seating, emptiest, living, matched, seat_for
from tests.orchestration.test_seats import recipe_of

APART = Seats([Seat(0, (0,)), Seat(1, (0,))], [Seat(2, (0,)), Seat(2, (1,))])
TOGETHER = Seats([Seat(0, (0,)), Seat(1, (0,))], [Seat(0, (0,)), Seat(1, (0,))])


class Nodes:
    """What Ray says of its nodes. The command runs on ``own``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **gpus: float) -> None:
        self.gpus, self.ports = dict(gpus), dict[str, int]()
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Here", (), {"get_node_id": lambda self: "own"})())

    def nodes(self) -> list[dict[str, Any]]:
        address = {"NodeManagerAddress": "127.0.0.1", "Alive": True}
        return [
            {"NodeID": name, "Resources": {"GPU": n}, "NodeManagerPort": self.ports.get(name, 1)} | address
            for name, n in self.gpus.items()
        ]


class Standing:
    """A fleet that stands, as Crew's handle to it. ``moves``: what it does by itself at each call before it answers."""

    met = True

    def __init__(self, sat: Sequence[Place], *moves: tuple[int, Place]) -> None:
        self.sat, self.moves, self.told = list(sat), list(moves), list[Place]()

    def reseat(self, learners: Sequence[Place], homes: Sequence[Place]) -> list[Place]:
        if self.moves:
            number, place = self.moves.pop(0)
            self.sat[number] = place
        self.told = list(learners)
        return list(self.sat)


def started(monkeypatch: pytest.MonkeyPatch, seats: Seats, **gpus: float) -> tuple[Seating, Nodes, Any]:
    nodes = Nodes(monkeypatch, **gpus)
    found = Seating(seats, cluster=True)
    sat, learners = found.of_a_fleet()
    starting: Any = Standing(sat)
    starting.met = False
    assert found.of_learners(starting) == learners
    starting.met = True
    return found, nodes, starting


def test_the_plan_s_nodes_are_those_that_have_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = started(monkeypatch, Seats([Seat(0, (0,))], [Seat(1, (3,))]), a=0, b=4, own=4)
    assert found.of_a_fleet()[0] == [("b", (3,))]
    for seat, words in [(Seat(1, (7,)), "node 1 .* 8 GPUs, .* no further node"), (Seat(0, (4,)), "node 0 .* 5 GPUs, .* 4 on")]:
        with pytest.raises(BadInput, match=words):
            Seating(Seats([Seat(0, (0,))], [seat]), cluster=True).of_a_fleet()


def test_a_small_actor_does_not_take_the_only_large_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their ids the large node comes first, and so does the small actor by its number."""
    seats = Seats([Seat(0, (0,)), Seat(1, (0,))], [Seat(2, (0, 1, 2, 3))])
    _, _, fleet = started(monkeypatch, seats, a=4, b=1, own=1)
    assert fleet.sat == [("a", (0, 1, 2, 3))]


def test_as_many_find_a_node_as_can() -> None:
    """Against all that there is to choose from."""
    for first, second, third in itertools.product(
        itertools.chain.from_iterable(itertools.combinations("abc", n) for n in range(4)), repeat=3
    ):
        found = matched({0: first, 1: second, 2: third})
        every = itertools.product([*first, None], [*second, None], [*third, None])
        best = max(len(nodes) for choice in every if len(nodes := [n for n in choice if n]) == len(set(nodes)))
        assert len(found) == best and len(set(found.values())) == best
        assert all(node in (first, second, third)[n] for n, node in found.items())
    assert matched({n: "abc" for n in range(3)}) == {0: "a", 1: "b", 2: "c"}


def test_a_dead_node_leaves_all_others_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted anew node 1 of the plan would be that of node 2, or the other way round."""
    found, nodes, fleet = started(monkeypatch, APART, own=2, a=2, b=2, spare=2)
    assert fleet.sat == [("a", (0,)), ("a", (1,))]
    del nodes.gpus["b"]
    assert found.of_learners(fleet) == [("own", (0,)), ("spare", (0,))] == fleet.told


def test_who_is_hired_needs_his_own_nodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the samplers' node nothing is asked when learners are hired; without a learner's the run pauses, to be resumed."""
    found, nodes, fleet = started(monkeypatch, APART, own=2, a=2, b=2)
    del nodes.gpus["a"]
    assert found.of_learners(fleet) == [("own", (0,)), ("b", (0,))]
    assert found.of_a_fleet()[0] == [("a", (0,)), ("a", (1,))]  # the fleet finds that they are gone
    del nodes.gpus["b"]
    with pytest.raises(LimitReached, match=r"node 1 of the plan is gone, with a learner, .* and resume"):
        found.of_learners(fleet)
    nodes.gpus["late"] = 1  # too little for the samplers, enough for the learner
    assert found.of_learners(fleet) == [("own", (0,)), ("late", (0,))]


def test_no_learner_goes_where_the_fleet_has_put_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    found, nodes, fleet = started(monkeypatch, APART, own=2, a=2, b=2, c=2, d=2)
    del nodes.gpus["a"], nodes.gpus["b"]
    fleet.sat[0] = ("c", (0,))
    assert found.of_learners(fleet)[1] == ("d", (0,))
    found, nodes, _ = started(monkeypatch, APART, own=2, a=2, b=2, c=2, d=2)
    del nodes.gpus["a"], nodes.gpus["b"]
    racing: Any = Standing([("a", (0,)), ("a", (1,))], (1, ("a", (1,))), (0, ("c", (0,))))  # in the very moment
    assert found.of_learners(racing)[1] == ("d", (0,)) == racing.told[1]


def test_who_shares_a_gpu_by_the_plan_may_share_it_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    found, nodes, fleet = started(monkeypatch, TOGETHER, own=1, a=1, b=1)
    del nodes.gpus["a"]
    fleet.sat[1] = ("b", (0,))  # it was quicker
    assert found.of_learners(fleet)[1] == ("b", (0,))
    shared: list[Place] = [("own", (0,)), ("b", (0,))]
    has = {"own": 1.0, "b": 1.0}
    sat: list[Place] = [("own", (0,)), ("a", (0,))]
    assert seat_for(1, sat, shared, shared, has, "own", {}) == "b"  # the learner was
    assert seat_for(1, sat, sat, shared, has, "own", {}) is None


def test_a_spare_node_takes_a_dead_one_s_place() -> None:
    seats: list[Place] = [("own", (1,)), ("b", (0,)), ("b", (1,))]
    learners: list[Place] = [("e", (0, 1))]

    def chosen(number: int, **has: float) -> str | None:
        return seat_for(number, seats, seats, learners, has, "own", {})

    assert chosen(1, own=2, b=2, c=2) == "b"
    assert chosen(1, own=2, d=1, e=2) == "d"
    assert chosen(2, own=2, d=1) is None  # one GPU is too few for it
    seats[1] = ("d", (0,))
    assert chosen(2, own=2, d=2) == "d" and chosen(2, own=2, d=1) is None


def fleet_of(monkeypatch: pytest.MonkeyPatch, size: int, seats: Sequence[Place] = ()) -> tuple[Fleet, list[str]]:
    """A fleet whose samplers are names: it starts none, and tells where they would."""
    hired: list[str] = []
    fleet = Fleet.__new__(Fleet)
    fleet._seats, fleet._homes, fleet._learners = list(seats), list(seats), []
    fleet._here, fleet._limits, fleet._events = "own", recipe_of().reliability, None
    fleet._slots = [samplers.Slot(n) for n in range(size)]
    fleet._died_on = samplers.Counter()
    monkeypatch.setattr(samplers, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
    monkeypatch.setattr(fleet, "_start", lambda slot, where, gpus=(): hired.append(where))
    return fleet, hired


@pytest.mark.parametrize("seats", [(), (("a", (0,)),)])
def test_a_crash_leaves_a_sampler_where_it_is_and_the_second_moves_it(
    monkeypatch: pytest.MonkeyPatch, seats: Sequence[Place]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        nodes = Nodes(monkeypatch, own=0, a=1, b=1)
        nodes.ports["a"] = raylet.getsockname()[1]
        fleet, hired = fleet_of(monkeypatch, 1, seats)
        for _ in range(3):
            fleet._hire(fleet._slots[0])
            fleet._died_on[fleet._slots[0].node] += 1
    assert hired == ["a", "a", "b"]


@pytest.mark.parametrize("seats", [(), (("a", (0,)),)])
def test_a_node_that_is_gone_is_left_at_once_though_ray_counts_it(
    monkeypatch: pytest.MonkeyPatch, seats: Sequence[Place]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    nodes = Nodes(monkeypatch, own=0, a=1, b=1)
    nodes.ports["a"] = port
    fleet, hired = fleet_of(monkeypatch, 1, seats)
    fleet._hire(fleet._slots[0])
    fleet._died_on["a"] += 1
    fleet._hire(fleet._slots[0])
    assert hired == ["a", "b"] and set(living({"a": 1}, "own")) == {"own", "b"} and set(living({}, "own")) == {"own", "a", "b"}


def test_the_emptiest_node_and_on_a_tie_not_the_learner_s() -> None:
    assert emptiest(["a", "b", "c"], {"a": 1}, "a", {}) == "b"
    assert emptiest(["a", "b"], {"a": 1, "b": 1}, "a", {}) == "b"
    assert emptiest(["a", "b"], {"a": 1, "b": 2}, "a", {}) == "a"
    assert emptiest(["a"], {"a": 5}, "a", {"a": 1}) == "a"
    assert emptiest(["a", "b", "c"], {"a": 1, "c": 3}, "a", {"b": 1}) == "a"


def test_on_one_machine_all_sit_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Nodes(monkeypatch, own=4)
    found = Seating(Seats([Seat(0, (0,))], [Seat(0, (1,))]), cluster=False)
    assert found.of_a_fleet() == ([("own", (1,))], [("own", (0,))])
    standing: Any = Standing([])
    assert found.of_learners(standing) == [("own", (0,))] and not standing.told
    assert seating.Seating(Seats([Seat(0)], [Seat(0)]), cluster=False).of_a_fleet() == ([], [("own", ())])
