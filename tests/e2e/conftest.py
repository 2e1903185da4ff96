"""A toy base that knows the grammar, built once a session, and the command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def taught_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_base(tmp_path_factory.mktemp("base") / "taught", lessons=60)


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda family: tiny.build_base(tmp_path_factory.mktemp("base") / family, family)


def start(workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "frontier_tune.cli.main", *arguments],
        cwd=workspace,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(workspace: Path, *arguments: str, expect: int = 0) -> str:
    """Run the command to its end; returns what it printed, errors behind."""
    process = start(workspace, *arguments)
    out, err = process.communicate(timeout=900)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out + err
