"""A Ray cluster that others started: joined with its token alone, given the workspace by content, left as it was.

The command runs on one of its nodes, with the learner and the run's directory; samplers and episodes may live on others. Those
get the workspace as a package whose name is its content's hash (Ray keeps it on each node for as long as somebody uses it), and
adapters through the object store (samplers.py). The base has to lie at the same path on every node.
"""

from __future__ import annotations

import os
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.orchestration import cluster
from frontier_tune.recipe import Recipe

LEFT_OUT = {"runs", "wandb", "build", "dist", "node_modules", "__pycache__"}  # and whatever has a hidden name
LARGEST = 200 * 2**20  # bytes that travel at most: Ray holds the package in the head's memory
_REACH_S = 10.0  # seconds that the head has to answer
_GONE = 5  # looks in a row at which the head did not answer, before it counts as dead


@contextmanager
def ray_of(recipe: Recipe, root: Path, lost: Callable[[str], None] | None = None) -> Iterator[None]:
    """The Ray that a run of ``recipe`` lives in: the cluster at ``placement.address``, or one of its own on this machine.

    ``lost`` is told, from a thread, what ended it under the run; then the process ends (exit code 4).
    """
    p = recipe.placement
    if p.address is None:
        with cluster.local_ray(6 + p.samplers + p.episode_actors, lost):
            yield
    else:
        with _joined(p.address, p.nodes, root, lost):
            yield


@contextmanager
def _joined(address: str, nodes: int, root: Path, lost: Callable[[str], None] | None) -> Iterator[None]:
    require_token()
    require_head(address)
    import ray

    from frontier_tune.orchestration.handle import first_line  # which imports Ray, too

    cluster.require_in_time()
    require_let_in(address)
    with tempfile.TemporaryDirectory(prefix="ft-workspace-") as scratch:
        package = pack(root, Path(scratch))
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": str(package)},
                namespace="frontier-tune",
                log_to_driver=False,
                configure_logging=False,
            )
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as e:
            ray.shutdown()
            raise BadInput(
                f"placement.address: Ray at {address} took no job from here: {first_line(e)}. The command must run on a node of "
                "that cluster (ray start --address), with the cluster's token (RAY_AUTH_TOKEN_PATH) and the same Ray and Python"
            ) from None
        try:
            alive = sum(bool(n["Alive"]) for n in ray.nodes())
            if alive < nodes:
                raise BadInput(
                    f"placement.nodes: {nodes}, but the cluster at {address} has {alive}; start the others, or lower it"
                )
            head = ray.get_runtime_context().gcs_address
            with cluster.watched(_absent(head), lost):
                yield
        finally:
            ray.shutdown()


def require_token() -> None:
    """Raises BadInput where this process has no token of a cluster's: an explicit address never makes one."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise BadInput(
            "placement.address: RAY_AUTH_MODE must be token; without it whoever reaches a node's ports runs code there"
        )
    if path is not None and not (Path(path).is_file() and Path(path).read_text().strip()):
        raise BadInput(f"placement.address: RAY_AUTH_TOKEN_PATH is {path}, and no token is there")
    if path is None and cluster.OWN_TOKEN:
        raise BadInput(
            "placement.address: a cluster is joined with its token alone; set RAY_AUTH_TOKEN_PATH to the file that its nodes "
            "were started with (ray get-auth-token --generate makes one), or RAY_AUTH_TOKEN"
        )


def require_head(address: str) -> None:
    """Raises BadInput where nobody listens at ``address`` (host:port; 'auto' is Ray's to find)."""
    if wrong := _unreachable(address):
        raise BadInput(f"placement.address: {wrong}; start the cluster's head there (ray start --head), or mend the address")


def require_let_in(address: str) -> None:
    """Raises BadInput where the head does not take this process's token. Asked here once: ``ray.init`` would ask for minutes."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves it out
    from ray.exceptions import AuthenticationError

    if not address.rpartition(":")[0]:
        return
    try:
        GcsClient(address=address)
    except AuthenticationError:
        raise BadInput(
            f"placement.address: the cluster at {address} refuses the token of RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN: it is not "
            "the one that its nodes were started with"
        ) from None


def _unreachable(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), _REACH_S).close()
    except OSError as e:
        return f"no Ray head answers at {address} ({e.strerror or e})"
    return None


def _absent(address: str) -> Callable[[], str | None]:
    """For ``cluster.watched``: patient with a head that misses a beat."""
    misses = 0

    def look() -> str | None:
        nonlocal misses
        wrong = _unreachable(address)
        misses = misses + 1 if wrong else 0
        return wrong if misses >= _GONE else None

    return look


def pack(root: Path, directory: Path) -> Path:
    """The workspace at ``root`` as one zip in ``directory``: the same bytes for the same content. Raises BadInput if it is huge.

    Left out: hidden names, runs, what was built.
    """
    files: list[Path] = []
    for here, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not (f.startswith(".") or f in LEFT_OUT or f.endswith(".egg-info")))
        files += [Path(here, name) for name in sorted(names) if not name.startswith(".")]
    files = [f for f in files if f.is_file()]
    total = sum(f.stat().st_size for f in files)
    if total > LARGEST:
        largest = sorted(files, key=lambda f: -f.stat().st_size)[:3]
        raise BadInput(
            f"{root}: the workspace has {total / 2**20:.0f} MiB to send to the nodes, {LARGEST / 2**20:.0f} is the most; its "
            f"largest files: {', '.join(str(f.relative_to(root)) for f in largest)}. Move data to a path that all nodes have"
        )
    package = directory / "workspace.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as z:
        for f in files:
            entry = zipfile.ZipInfo(f.relative_to(root).as_posix())  # of 1980, whenever it was written: by content alone
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(entry, f.read_bytes())
    return package


def here() -> Any:
    """Scheduling on the node of this very process: who writes to the run's directory."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def elsewhere(number: int = 0) -> Any:
    """Scheduling on the ``number``-th of the other nodes (from 0), then this one, and around; elsewhere where that is full."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    alive = sorted((n["NodeID"] for n in ray.nodes() if n["Alive"]), key=lambda node: (node == own, node))
    return NodeAffinitySchedulingStrategy(alive[number % len(alive)], soft=True)
