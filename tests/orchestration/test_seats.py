"""Samplers and learners see the GPUs that the plan gives them alone. No GPU is needed: what CUDA would be shown is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.orchestration import actors, crew
from frontier_tune.orchestration.cluster import local_ray
from frontier_tune.orchestration.crew import Crew
from frontier_tune.orchestration.plan import machine, plans
from frontier_tune.orchestration.plan.placement import Seat, Seats, of_a_run
from tests import tiny

GPU = machine.GPU("H100", 80 * 2**30)


def recipe_of(**placement: Any) -> recipes.Recipe:
    return recipes.parse({"placement": placement})


@pytest.mark.parametrize(
    ("placement", "learners", "samplers"),
    [
        ({}, [()], [()]),  # a single one of each finds its GPU itself, as ever
        ({"samplers": 2}, [(0,)], [(0,), (1,)]),
        ({"layout": "disaggregated"}, [(0,)], [(1,)]),
        ({"layout": "disaggregated", "learners": 2, "samplers": 2}, [(0,), (1,)], [(2,), (3,)]),
        (
            {"learners": 4, "samplers": 4, "gpus_per_node": 4, "gpu_memory_gib": 80},
            [(0,), (1,), (2,), (3,)],
            [(0,), (1,), (2,), (3,)],
        ),
    ],
)
def test_each_is_hired_with_its_seat(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    placement: Mapping[str, Any],
    learners: list[tuple[int, ...]],
    samplers: list[tuple[int, ...]],
) -> None:
    hired: dict[str, list[Any]] = {}

    class Hired:
        def __init__(self, cls: type, gpus: Sequence[int]) -> None:
            self.name, self.gpus = cls.__name__, tuple(gpus)

        def remote(self, *arguments: Any) -> None:
            last = arguments[-1] if self.name in ("Fleet", "LearnerGroup") else None
            seats = arguments[5] if self.name == "Fleet" else last
            hired[self.name] = [self.gpus] if last is None else [gpus for _, gpus in seats or ()]

    monkeypatch.setattr(actors, "remote", lambda cls, env, concurrency, where=None, gpus=(), cpus=1: Hired(cls, gpus))
    monkeypatch.setattr(machine, "gpus", lambda: [GPU] * 4)
    monkeypatch.setattr(Crew, "start_all", lambda self, roles, supervisor: None)
    monkeypatch.setattr(crew.ray, "get_runtime_context", lambda: type("Here", (), {"get_node_id": lambda self: "here"})())
    started = Crew.start(tmp_path, recipe_of(**placement), tmp_path, {}, tmp_path / "engine.log")
    for role in ("sampler", "learner"):
        started.hire[role]()
    assert hired["Fleet" if len(samplers) > 1 else "SamplerActor"] == samplers
    assert hired["LearnerGroup" if len(learners) > 1 else "LearnerActor"] == learners


def test_too_few_gpus_for_several_are_refused() -> None:
    with pytest.raises(BadInput, match="take 3 GPUs; 1 nodes of 2 have 2"):
        of_a_run(recipe_of(layout="disaggregated", samplers=2).placement, 2)
    assert of_a_run(recipe_of(samplers=2).placement, 0).samplers == [Seat(0), Seat(0)]


def test_learners_on_cpus_take_no_gpu() -> None:
    """Of two GPUs both samplers have one, beside two learners that have none; and a plan says the same."""
    apart = recipe_of(layout="disaggregated", samplers=2, learners=2).placement
    with pytest.raises(BadInput, match="take 4 GPUs"):
        of_a_run(apart, 2)
    assert of_a_run(apart, 2, "cpu") == Seats([Seat(0), Seat(0)], [Seat(0, (0,)), Seat(0, (1,))])
    assert of_a_run(recipe_of(learners=3).placement, 2, "cpu") == Seats([Seat(0)] * 3, [Seat(0)])  # which finds its GPU itself
    stated = {"samplers": 2, "learners": 2, "layout": "disaggregated", "gpus_per_node": 2, "gpu_memory_gib": 80}
    recipe = recipes.parse({"placement": stated, "learner": {"device": "cpu"}})
    placed = plans.make(recipe, tiny.config("qwen3_moe"), Path(), "").placed
    assert [(one.gpus, bool(one.actor.device)) for one in placed[:4]] == [((), False)] * 2 + [((0,), True), ((1,), True)]


@pytest.mark.parametrize(
    ("shown", "mine", "seen"), [(None, "2", "2"), ("", "0,1", "0,1"), ("4,6,7", "1,2", "6,7"), ("GPU-a,GPU-b", "1", "GPU-b")]
)
def test_numbers_count_the_gpus_that_a_node_shows(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, mine: str, seen: str
) -> None:
    monkeypatch.setenv(actors.GPUS, mine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    actors.see_own_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_gpu_that_a_node_does_not_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(actors.GPUS, "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(BadInput, match="GPU 3 of .* is 0,1"):
        actors.see_own_gpus()


class Seeing:
    def seen(self) -> tuple[str | None, list[Any]]:
        return os.environ.get("CUDA_VISIBLE_DEVICES"), ray.get_gpu_ids()


@pytest.mark.slow
def test_processes_see_their_seats_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real actors: GPUs by the plan, none where nobody has a seat, and nothing of Ray's choice."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    found = of_a_run(recipe_of(layout="disaggregated", samplers=2).placement, 3)
    with local_ray():
        every = [actors.remote(Seeing, {}, 1, None, seat.gpus).remote() for seat in (*found.learners, *found.samplers)]
        assert ray.get([a.seen.remote() for a in every]) == [("3", []), ("5", []), ("6", [])]
