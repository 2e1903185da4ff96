"""Two learners on two nodes, each with a node address of its own (of loopback's): one adapter, that of a single learner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from frontier_tune import recipe as recipes
from frontier_tune.orchestration import cluster
from frontier_tune.orchestration.actors import remote
from frontier_tune.orchestration.handle import Handle
from frontier_tune.orchestration.learners import LearnerGroup, LearnerLost
from tests import tiny
from tests.faults.conftest import FULL
from tests.orchestration.test_learners import batch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="make test-faults")]
ADDRESSES = ("127.0.0.1", "127.0.0.2")


class Group(LearnerGroup):
    """Tells where its learners are, and loses one when asked."""

    def processes(self) -> list[int]:
        return [pid for _, pid in ray.get([other.started.remote() for other in self._others])]

    def lose(self) -> None:
        ray.kill(self._others[0])


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Ray's ids of two nodes, one an address."""
    from ray.cluster_utils import Cluster

    cluster.require_in_time()
    made = Cluster()
    try:
        for address in ADDRESSES:
            made.add_node(num_cpus=4, node_ip_address=address, include_dashboard=False, object_store_memory=80 * 2**20)
        ray.init(address=made.address, log_to_driver=False, configure_logging=False)
        found = {n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes()}
        yield [found[address] for address in ADDRESSES]
    finally:
        ray.shutdown()
        made.shutdown()


def raylet(pid: int) -> str:
    parent = psutil.Process(pid).parent()
    return " ".join(parent.cmdline()) if parent else ""


def test_learners_of_two_nodes_are_one(tmp_path: Path, nodes: list[str]) -> None:
    from frontier_tune.learning.learner import Learner

    base = tiny.build_base(tmp_path / "base")
    content = {"adapter": {"rank": 4, "alpha": 8}, "learner": {"threads": 1, "device": "cpu", "warmup_steps": 0}}
    recipe = recipes.parse(content)
    alone = Learner(base, recipe)
    here: Any = NodeAffinitySchedulingStrategy(nodes[0], soft=False)
    places = [(node, ()) for node in nodes]
    group = Handle(remote(Group, {"OMP_NUM_THREADS": "1"}, 1, here).remote(str(base), recipe, None, 2, places), "engine.log")
    _, first = group.started()
    (second,) = group.processes()
    assert f"={ADDRESSES[0]}" in raylet(first) and f"={ADDRESSES[1]}" in raylet(second)
    for seed in range(2):
        want, got = alone.learn([batch(seed)]), group.learn([batch(seed)])
        assert got["rows"] == want["rows"] and got["loss"] == pytest.approx(want["loss"], abs=1e-5)
    group.save(str(tmp_path / "state"))  # only where both hold the same
    group.learn([batch(2)])
    group.load(str(tmp_path / "state"))
    group.save_adapter(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "state" / "adapter_model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "state" / "learner.json").read_text())["steps"]
    group.lose()
    with pytest.raises(LearnerLost):
        group.learn([batch(3)])
