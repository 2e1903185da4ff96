"""Nothing leaves the machine: a whole run succeeds without a network and does not even try to reach one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import QUIET
from tests.security import isolation

pytestmark = [
    pytest.mark.network_namespace,
    pytest.mark.skipif(bool(isolation.refused_here()), reason=isolation.refused_here() or ""),
]


def plain_environment() -> dict[str, str]:
    """The user's environment without the switches that would hide a fault: the software itself has to stay silent."""
    switches = {*QUIET, "CI", "GITHUB_ACTIONS", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_DISABLED"} - {
        "OMP_WAIT_POLICY"
    }
    return {
        k: v for k, v in os.environ.items() if k not in switches and not k.startswith("COV_CORE") and "proxy" not in k.lower()
    }


@pytest.mark.slow
def test_a_smoke_run_needs_no_network_and_tries_none(tmp_path: Path, root: Path) -> None:
    scratch, run_dir = tmp_path / "sealed", tmp_path / "run"
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "frontier_tune.cli.main",
        "tune",
        str(root / "recipes" / "smoke.yaml"),
        f"run.directory={run_dir}",
    ]
    code, output, attempts = isolation.run(command, scratch, plain_environment(), timeout_s=900)
    assert code == 0, output[-4000:]
    assert not attempts, f"{len(attempts)} attempts to reach the network:\n" + "\n".join(attempts[:10])
    assert (run_dir / "evaluation.json").is_file()


TCP = "import socket; socket.socket().connect_ex(('192.0.2.1', 443))"


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 80))",
        TCP,
        "import socket; socket.socket(socket.AF_INET6).connect_ex(('2001:db8::1', 443))",
        "import socket; socket.getaddrinfo('frontier-tune.invalid', 443)",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TCP!r}])",
    ],
)
def test_an_attempt_is_seen(code: str, tmp_path: Path) -> None:
    """The trace itself: each way to reach outside, injected, is found, also in a child process."""
    _, _, attempts = isolation.run([sys.executable, "-c", code], tmp_path, plain_environment(), timeout_s=60)
    assert attempts


def test_loopback_is_no_attempt(tmp_path: Path) -> None:
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname());"
        "socket.getaddrinfo('localhost', 80); print('reached')"
    )
    code_out, output, attempts = isolation.run([sys.executable, "-c", code], tmp_path, plain_environment(), timeout_s=60)
    assert (code_out, output.strip(), attempts) == (0, "reached", [])


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: calls from compiled code go unseen here")
def test_compiled_code_is_seen(tmp_path: Path) -> None:
    """A connection that no Python code makes: only strace sees it."""
    code = "exec 3<>/dev/tcp/192.0.2.1/80"
    _, _, attempts = isolation.run(["bash", "-c", code], tmp_path, plain_environment(), timeout_s=60)
    assert attempts and "192.0.2.1" in attempts[0]
