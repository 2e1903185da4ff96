"""A run over three machines: two samplers on nodes of their own, one of which dies in the middle of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.orchestration.audit import audit, planned_groups
from tests import tiny
from tests.cluster.nodes import HEAD, Cluster, possible
from tests.faults.conftest import FULL
from tests.faults.processes import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FULL, reason="make test-faults"),
    pytest.mark.skipif(not possible(), reason="needs root, for namespaces"),
]
STEPS = 120  # enough for the one that takes a dead one's place to come up, on a quick machine, too
RAYS = {"raylet", "gcs_server"}  # servers that check the token of each call


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recipe for two samplers; its base lies outside, where every node sees it."""
    home = tmp_path_factory.mktemp("cluster")
    sections = {
        "run": {"steps": STEPS, "checkpoint_every": 2, "eval_tasks": 2},
        "environment": {"heldout_tasks": 8},
        "reliability": {"restarts": 4, "stall_timeout_s": 60, "heartbeat_s": 1, "max_backoff_s": 5},
        "placement": {"samplers": 2, "nodes": 3},
    }
    (home / "workspace").mkdir()
    tiny.write_workspace(home / "workspace", tiny.build_base(home / "base", lessons=60), sections)
    return home / "workspace"


@pytest.fixture(scope="module")
def cluster(workspace: Path) -> Iterator[Cluster]:
    made = Cluster(private=[workspace])
    yield made
    made.close()


def tune(cluster: Cluster, *settings: str) -> list[str]:
    tune = [sys.executable, "-m", "frontier_tune.cli.main", "tune", "recipes/echo.yaml", f"placement.address={cluster.address}"]
    return cluster.command(*tune, *settings)


def test_who_lacks_the_token_is_refused(cluster: Cluster, workspace: Path) -> None:
    """By the command before it starts anything, and by the cluster itself, whoever asks."""
    bare = cluster.environment(token=False)
    done = subprocess.run(tune(cluster), cwd=workspace, env=bare, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "joined with its token alone" in done.stderr, done.stderr
    wrong = bare | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(tune(cluster), cwd=workspace, env=wrong, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "refuses the token" in done.stderr and "Traceback" not in done.stderr, done.stderr
    code = f"import ray; ray.init('{cluster.address}'); print('let in', ray.cluster_resources())"
    for env in (wrong, bare | {"RAY_AUTH_MODE": "disabled"}):
        env |= {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # how often Ray asks again
        done = subprocess.run(cluster.command(sys.executable, "-c", code), env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0 and "let in" not in done.stdout, done.stdout


def test_nobody_listens_beyond_the_cluster_s_own_addresses(cluster: Cluster) -> None:
    """Ray's own servers take calls on every interface of a node, all with the token; here there are no other interfaces."""
    for name, node in cluster.nodes.items():
        assert cluster.addresses(name) == {"127.0.0.1", node.address}
        found = cluster.listeners(name)
        inside = ("127.", "[::1]", f"{node.address}:", f"[::ffff:{node.address}]", "[::ffff:127.")
        everywhere = {who for address, who in found if not address.startswith(inside)}
        assert {"raylet"} <= everywhere <= RAYS | {who for who in everywhere if who.startswith("ray::")}, sorted(found)


def test_a_node_dies_in_the_middle_of_a_run(cluster: Cluster, workspace: Path) -> None:
    home = workspace / "runs" / "two"
    run = Run(workspace, home, command=tune(cluster, f"run.directory={home}"), env=cluster.environment())
    run.said_that(f"step 2/{STEPS}")
    events = home / "events.jsonl"
    joined = {e["number"]: e["host"] for e in map(json.loads, events.read_text().splitlines()) if e["event"] == "joined"}
    assert sorted(joined.values()) == ["one", "two"], joined
    cluster.kill("two")
    assert run.wait(900) == 0, run.said[-3000:]
    found = [json.loads(line) for line in events.read_text().splitlines()]
    died = [e for e in found if e["event"] == "died" and e["role"] == "sampler"]
    assert died and died[0]["host"] == "two", found
    after = [e["host"] for e in found[found.index(died[0]) :] if e["event"] == "joined"]
    assert after and "two" not in after, found  # the one that took its place, and caught up with the policy
    recipe = recipes.load(home / "recipe.yaml")
    whole = audit(home / "ledger.jsonl", planned_groups(recipe, STEPS))
    assert whole.complete and whole.trained, str(whole)
    assert (home / "evaluation.json").is_file() and (home / "record.json").is_file()
    assert not [p for p in cluster.pids(HEAD) if "ray::Fleet" in Path(f"/proc/{p}/cmdline").read_text()]
