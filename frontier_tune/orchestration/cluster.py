"""Ray on this machine: started for one run, quiet, private, on loopback alone, and gone afterwards.

One that is there already, on several machines: joined.py.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration.stop import kill_descendants

_SCRATCH = "ft-ray-"
_LOOK_S = 1.0  # seconds between two looks at whether Ray lives
_STARTS = 3
_TOO_SLOW = "timed out during startup"
OBJECT_STORE_BYTES = 256 * 2**20

# Ray reads these once, when it is imported; every process that it starts inherits them.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",  # its head would keep a history of 100,000 calls: 150 MiB in an hour
    "RAY_gcs_server_port_wait_time_s": "120",  # on a busy machine its 20 s are too short to start in
    "RAY_worker_niceness": "0",  # Ray's 15 would let every other process of the machine go first
    # Ray takes 127.0.0.1 for this node instead of asking for the route to a public name server.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # No other user of the machine may hand this run's Ray code to execute: a token made for this process.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of one actor cost the others 5 to 20 times in wall clock
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# Whether the token is this process's own; somebody who is to join a cluster brings that one's.
OWN_TOKEN = not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
if not OWN_TOKEN:
    del SETTINGS["RAY_AUTH_TOKEN"]
# Ray that was imported before has read none of it: its processes would refuse each other's calls, after long waits.
_TOO_LATE = "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != SETTINGS["RAY_AUTH_MODE"]
for _key, _value in SETTINGS.items():
    os.environ.setdefault(_key, _value)

# Even with usage statistics off Ray's dashboard process asks the cloud providers' metadata addresses which cloud this is. A
# proxy on a closed loopback port ends such requests on this machine. Only processes that Ray starts see it.
_DEAD_END = "http://127.0.0.1:9"
PROXIES = {k: _DEAD_END for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
PROXIES |= {k: "localhost,127.0.0.1,::1" for k in ("no_proxy", "NO_PROXY")}


def require_in_time() -> None:
    """Raises RuntimeError where Ray was imported too early to have read SETTINGS."""
    if _TOO_LATE:
        raise RuntimeError("ray was imported before frontier_tune.orchestration, which settles its environment; import it after")


@contextmanager
def local_ray(actors: int = 8, lost: Callable[[str], None] | None = None) -> Iterator[None]:
    """A Ray instance of our own for the body's duration: no dashboard page, no usage statistics, nothing on the terminal.

    ``lost``: see ``watched``; without it nobody looks whether Ray's own processes live.

    Its files live in a temporary directory that is removed afterwards. Its processes are in sessions of their own, for which Ray
    has no setting: a signal to the command's whole process group (Ctrl-C in a terminal, ``timeout``, a scheduler) asks the run
    alone to save and stop, and doesn't end under its hands those that it needs for that.
    """
    import ray
    from ray._private import services, worker

    require_in_time()
    clear_leftovers()
    scratch = tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir="/tmp")  # short: socket paths are limited to 107 bytes
    tempfile.gettempdir()  # settled here and now, before TMPDIR changes for the others
    apart = {"ConsolePopen": partial(services.ConsolePopen, start_new_session=True)}
    mute = {"print_to_stdstream": lambda data, ignore_prefix: None}  # of the raylet about each death; ours say it better
    try:
        # TMPDIR: so that a killed actor's temporary files go with the rest.
        settings: dict[str, Any] = {
            "address": "local",
            "num_cpus": actors,  # a count of actors: threads are shared out by the recipe
            "include_dashboard": False,
            "log_to_driver": False,
            "configure_logging": False,
            "namespace": "frontier-tune",
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": scratch,
        }
        with _changed(services, apart), _environment(PROXIES | {"TMPDIR": scratch}):
            _start(lambda: ray.init(**settings))
        with _changed(worker, mute):
            try:
                with watched(_ended(worker._global_node), lost, scratch):
                    yield
            finally:
                ray.shutdown()  # until here it speaks of the actors that were just ended
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _start(init: Callable[[], object]) -> None:
    """``init`` Ray; once more where it was too slow: it gives its raylet 30 s to show up, which no setting changes.

    Raises LimitReached where that is never enough.
    """
    import psutil
    import ray

    for tries in range(1, _STARTS + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            init()
            return
        except Exception as e:  # Ray has no type of its own for it
            if _TOO_SLOW not in str(e):
                raise
            ray.shutdown()
            for process in set(psutil.Process().children(recursive=True)) - before:  # Ray has lost sight of them
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if tries == _STARTS:
                raise LimitReached(
                    f"Ray did not start, {_STARTS} times: this machine is too busy ({e}). Start again when there is less to do"
                ) from e


@contextmanager
def watched(ill: Callable[[], str | None], lost: Callable[[str], None] | None, scratch: str | None = None) -> Iterator[None]:
    """Ask ``ill`` each second, in a thread, whether Ray is gone; if so tell ``lost`` why, and end the process and all it started.

    Without Ray's head no process can be replaced or even ended in the usual way, and Ray aborts its clients a minute later.
    """
    if lost is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            if why := ill():
                lost(why)
                kill_descendants()
                if scratch:
                    shutil.rmtree(scratch, ignore_errors=True)
                os._exit(LimitReached.exit_code)

    threading.Thread(target=look, name="ray-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _ended(node: Any) -> Callable[[], str | None]:
    """For ``watched``: which of Ray's own two processes of this node, its head and its raylet, has ended."""
    chosen = {name: node.all_processes[name][0].process for name in ("gcs_server", "raylet")}

    def look() -> str | None:
        gone = [f"{name}, process {p.pid}" for name, p in chosen.items() if p.poll() is not None]
        return f"Ray itself died ({gone[0]})" if gone else None

    return look


def clear_leftovers() -> None:
    """Remove the scratch directories of this user's runs that were killed before they could."""
    for path in Path("/tmp").glob(f"{_SCRATCH}*"):
        pid = path.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and path.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _changed(module: ModuleType, values: Mapping[str, Any]) -> Iterator[None]:
    """Other values for names of a module, for the body's duration."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
