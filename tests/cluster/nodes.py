"""A Ray cluster of several machines on one: each node in a network namespace of its own, and blind to the others' files.

A bridge in one more namespace joins them; the host's network is not touched. All but the head have a hostname and a mount
namespace of their own, in which directories that are ``private`` (the workspace, the run, Ray's session) are empty. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETWORK, PORT = "10.77.0", 6379
HEAD = "head"
CLOSED = "http://127.0.0.1:9"  # Ray's helpers ask cloud providers' addresses which cloud this is: not from here
QUICK = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}  # a dead node is seen in 5 s
QUICK |= {"RAY_worker_niceness": "0"}  # Ray's 15 would let every other program of this machine go before the nodes' actors


def possible() -> bool:
    """Whether this user may make network and mount namespaces."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    tried = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False)
    return tried.returncode == 0


@dataclass
class Node:
    name: str
    address: str
    process: subprocess.Popen[bytes]


class Cluster:
    """The head and ``others``, up and joined. ``close`` ends them and removes all that was made."""

    def __init__(self, others: Sequence[str] = ("one", "two"), private: Sequence[Path] = (), cpus: int = 8) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ftc-", dir="/tmp"))  # short: socket paths are limited to 107 bytes
        self.private = [*private, self.home / "ray"]
        self.token = self.home / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self._prefix = f"ft{os.getpid()}"
        self.nodes: dict[str, Node] = {}
        self._cpus = cpus
        self.address = f"{NETWORK}.1:{PORT}"
        (self.home / "ray").mkdir()
        known = [f"{NETWORK}.{n} {name}\n" for n, name in enumerate([HEAD, *others], 1)]
        (self.home / "resolv.conf").touch()
        (self.home / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n" + "".join(known))
        try:
            self._network([HEAD, *others])
            for number, name in enumerate([HEAD, *others], 1):
                self._start(name, f"{NETWORK}.{number}")
            self._until(lambda: self.alive() == 1 + len(others), "not all nodes joined")
        except BaseException:
            self.close()
            raise

    def namespace(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def environment(self, token: bool = True) -> dict[str, str]:
        """Of a process that belongs to the cluster, or of one that lacks its token."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0", **QUICK}
        env |= {k: CLOSED for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        env |= {
            k: f"localhost,127.0.0.1,::1,{','.join(n.address for n in self.nodes.values())}" for k in ("no_proxy", "NO_PROXY")
        }
        return env | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)} if token else {})

    def command(self, *arguments: str, name: str = HEAD) -> list[str]:
        """``arguments`` as a command on a node (the head: the others' mounts are theirs)."""
        return ["ip", "netns", "exec", self.namespace(name), *arguments]

    def alive(self) -> int:
        """Nodes that the head counts."""
        code = f"import ray; ray.init('{self.address}', log_to_driver=False, logging_level='error'); "
        code += "print('alive', sum(n['Alive'] for n in ray.nodes()))"
        done = subprocess.run(
            self.command(sys.executable, "-c", code), env=self.environment(), capture_output=True, text=True, timeout=300
        )
        return int(done.stdout.rsplit("alive", 1)[1]) if "alive" in done.stdout else 0

    def pids(self, name: str) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.namespace(name)], capture_output=True, text=True)
        return [int(p) for p in done.stdout.split()]

    def kill(self, name: str) -> None:
        """SIGKILL to all processes of a node, as a power cut would."""
        while found := self.pids(name):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.nodes[name].process.poll()
            time.sleep(0.05)
        self.nodes.pop(name).process.wait()

    def listeners(self, name: str) -> set[tuple[str, str]]:
        """(address, command) of every TCP socket of a node that takes connections."""
        done = subprocess.run(self.command("ss", "-Htlnp", name=name), capture_output=True, text=True, check=True)
        return {
            (line.split()[3], line.split('(("')[1].split('"')[0] if "((" in line else "?") for line in done.stdout.splitlines()
        }

    def addresses(self, name: str) -> set[str]:
        """Of all interfaces of a node, IPv4."""
        done = subprocess.run(self.command("ip", "-4", "-o", "addr", name=name), capture_output=True, text=True, check=True)
        return {line.split()[3].partition("/")[0] for line in done.stdout.splitlines()}

    def close(self) -> None:
        for name in list(self.nodes):
            self.kill(name)
        for name in [*self._made, "switch"]:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)

    # ---- how

    def _network(self, names: Sequence[str]) -> None:
        self._made = list(names)
        _run("ip", "netns", "add", self.namespace("switch"))
        _run("ip", "-n", self.namespace("switch"), "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self.namespace("switch"), "link", "set", "br0", "up")
        for number, name in enumerate(names, 1):
            space, port = self.namespace(name), f"port{number}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", port, "netns", self.namespace("switch"), "type", "veth", "peer", "eth0", "netns", space)
            _run("ip", "-n", self.namespace("switch"), "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", space, "link", "set", device, "up")
            _run("ip", "-n", space, "route", "add", "default", "dev", "eth0")  # Ray asks for the way out to learn its address

    def _start(self, name: str, address: str) -> None:
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={address}"]
        ray += [
            f"--num-cpus={self._cpus}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            "--include-log-monitor=false",
        ]
        if name == HEAD:
            # The monitor (of autoscaling) would show its metrics to everybody, on all interfaces, without a token.
            ray += ["--head", f"--port={PORT}", "--include-dashboard=false", "--no-monitor", f"--temp-dir={self.home / 'ray'}"]
            command = self.command(*ray)
        else:
            hide = "".join(f"mkdir -p {p} && mount -t tmpfs none {p} && " for p in self.private)
            for name_service in ("hosts", "resolv.conf"):  # a machine knows its own name, and here there is nobody to ask
                hide += f"mount --bind {self.home / name_service} /etc/{name_service} && "
            start = f"hostname {name} && {hide}exec {' '.join(ray)} --address={self.address}"
            command = self.command("unshare", "--mount", "--uts", "bash", "-c", start, name=name)
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log, start_new_session=True)
        self.nodes[name] = Node(name, address, process)
        if name == HEAD:
            probe = self.command("bash", "-c", f"exec 3<>/dev/tcp/{NETWORK}.1/{PORT}")
            self._until(lambda: subprocess.run(probe, capture_output=True).returncode == 0, "the head does not listen")

    def _until(self, done: object, what: str, seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while not done():  # type: ignore[operator]
            logs = "".join(p.read_text()[-2000:] for p in self.home.glob("*.log"))
            assert time.monotonic() < end and not any(n.process.poll() for n in self.nodes.values()), f"{what}: {logs}"
            time.sleep(0.5)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
