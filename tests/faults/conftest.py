"""``FRONTIER_TUNE_FAULTS=full`` (``make test-faults``) takes the counts that are claimed, else those that CI has time for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

FULL = os.environ.get("FRONTIER_TUNE_FAULTS") == "full"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A directory with the toy workflow."""
    shutil.copytree(ROOT / "tests" / "toy_env" / "envs", tmp_path / "envs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path
