"""Two samplers on another node, each node with an address of its own (of loopback's): one crashes, then the node is gone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import ray

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Request
from tests.cluster.test_learners_apart import nodes
from tests.faults.conftest import FULL
from tests.orchestration.test_samplers import Fleets, all_of, requests

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="make test-faults")]
RECIPE = recipes.parse({"reliability": {"restarts": 3, "backoff_s": 0}, "sampler": {"threads": 1}})
__all__ = ["nodes"]  # a fixture


def until_up(fleet: Fleets) -> list[str]:
    """Nodes of the samplers, once all serve."""
    end = time.monotonic() + 120
    while not all(m["up"] for m in fleet.members()) and time.monotonic() < end:
        fleet.exchange([], "play", wait=0.1)
    return [m["node"] for m in fleet.members() if m["up"]]


def test_a_crash_keeps_its_node_and_a_node_that_is_gone_is_left_before_ray_knows(tmp_path: Path, nodes: list[str]) -> None:
    here, there = nodes
    fleet = Fleets("", RECIPE, None, 2, str(tmp_path / "events.jsonl"))
    assert until_up(fleet) == [there, there]  # here is the command
    ray.kill(fleet._slots[0].actor)
    assert len(all_of(fleet, requests(6))) == 6
    assert until_up(fleet) == [there, there]
    (raylet,) = [n for n in ray.nodes() if n["NodeID"] == there]
    end_of(raylet["NodeManagerPort"])
    again = [Request(f"again-{r.id}", r.tokens, r.params) for r in requests(6)]
    assert len(all_of(fleet, again)) == 6
    assert until_up(fleet) == [here, here]
    died = [e for e in map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines()) if e["event"] == "died"]
    assert [e["node"] for e in died] == [there] * 3  # nobody was sent to his death there
    fleet.close()


def end_of(port: int) -> None:
    """SIGKILL to the raylet that listens on ``port``, and to its workers."""
    import psutil

    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet" and any(
            c.laddr.port == port for c in process.net_connections("tcp") if c.status == "LISTEN"
        ):
            family = [process, *process.children(recursive=True)]
            for one in family:
                one.kill()
            return
    raise AssertionError(f"no raylet listens on {port}")
