import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a fresh interpreter with more environment variables; its standard output."""

    def run(code: str, **environment: str) -> str:
        root = Path(__file__).resolve().parents[3]
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
