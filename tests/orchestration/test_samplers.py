"""Several samplers as one: whoever dies, every request is answered once, as one sampler alone would answer it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Completion, GateFailed, LimitReached, Request, SamplingParams
from frontier_tune.orchestration.actors import SamplerActor
from frontier_tune.orchestration.cluster import local_ray
from frontier_tune.orchestration.samplers import GATE, Fleet, Member
from frontier_tune.orchestration.seating import living
from tests.faults import standin

RECIPE = recipes.parse({"reliability": {"restarts": 2, "backoff_s": 0}, "sampler": {"threads": 1}})


class StandIn(Member):
    def __init__(self, base_dir: str, recipe: recipes.Recipe, log: str | None) -> None:
        self._sampler = standin.Sampler(0.15)  # type: ignore[assignment]

    def progress(self) -> int:
        return self._sampler.passes  # type: ignore[attr-defined]


class Fleets(Fleet):
    member = StandIn


def test_whatever_a_sampler_does_a_fleet_does() -> None:
    assert {name for name in vars(SamplerActor) if not name.startswith("_")} <= set(vars(Fleet))


def requests(n: int) -> list[Request]:
    return [Request(f"r{i}", tuple(range(5, 9 + i)), SamplingParams(24, seed=i)) for i in range(n)]


def all_of(fleet: Fleet, asked: list[Request], client: str = "play") -> dict[str, Completion]:
    done = {c.request_id: c for c in fleet.exchange(asked, client)}
    while len(done) < len(asked):
        more = fleet.exchange([], client)
        assert more and not done.keys() & {c.request_id for c in more}
        done |= {c.request_id: c for c in more}
    return done


@pytest.fixture(scope="module")
def ray_is_up() -> Iterator[None]:
    with local_ray():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_is_up")
def test_a_death_is_not_noticed_and_who_comes_late_catches_up(tmp_path: Path) -> None:
    fleet = Fleets("", RECIPE, None, 2, str(tmp_path / "events.jsonl"))
    alone = standin.Sampler()
    for version, adapter in [(1, "first"), (2, "second")]:
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / standin.ADAPTER).write_text(adapter)
        fleet.sync(str(tmp_path / str(version)), version)
        alone.sync(str(tmp_path / str(version)), version)
    asked = requests(12)
    expected = {c.request_id: c for c in alone.exchange(asked)}
    assert all_of(fleet, asked) == expected
    passes = fleet.progress()
    assert passes > 0 and [m["load"] for m in fleet.members()] == [0, 0]

    gone = [Request(f"gone-{r.id}", r.tokens, r.params) for r in asked[:5]]
    assert not fleet.exchange(gone, "an episode actor that dies now", wait=0.0)
    assert sum(m["load"] for m in fleet.members()) == 5
    fleet.forget([*GATE, "play"])
    assert [m["load"] for m in fleet.members()] == [0, 0] and set(fleet._lanes) == {"play"}
    assert fleet.exchange(gone, "an episode actor that dies now") == []  # a call of its that was still on the way

    node = fleet._slots[0].node
    assert set(living({node: 1}, "elsewhere")) == {node}  # which answers for itself

    victim = fleet._slots[1].actor
    threading.Timer(0.1, lambda: ray.kill(victim)).start()
    again = [Request(f"again-{r.id}", r.tokens, r.params) for r in asked]
    found = all_of(fleet, again)
    assert [found[f"again-{name}"].tokens for name in expected] == [c.tokens for c in expected.values()]
    end = time.monotonic() + 60
    while not all(m["up"] for m in fleet.members()) and time.monotonic() < end:
        fleet.exchange([], "play", wait=0.1)
    assert [(m["deaths"], m["load"]) for m in fleet.members()] == [(0, 0), (1, 0)]
    assert fleet.resident(2) == {"adapter": "second"}  # of both: the late one was given the policy before it served
    assert fleet.progress() >= passes
    assert fleet.version() == 2
    happened = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert happened == ["joined", "joined", "died", "joined"]

    for slot, adapter in zip(fleet._slots, ("other", "second"), strict=True):
        files = {standin.ADAPTER: np.frombuffer(adapter.encode(), np.uint8)}
        ray.get(slot.actor.load_policy.remote(files, 3, True))
    with pytest.raises(GateFailed, match="sampler 0 .* and sampler 1 .* different tensors as version 3: adapter"):
        fleet.resident(3)

    ray.kill(fleet._slots[0].actor)
    all_of(fleet, [Request(f"second-{r.id}", r.tokens, r.params) for r in asked])
    ray.kill(next(s for s in fleet._slots if s.up).actor)
    with pytest.raises(LimitReached, match="restarts allows no more"):
        all_of(fleet, [Request(f"third-{r.id}", r.tokens, r.params) for r in asked])
    fleet.close()
