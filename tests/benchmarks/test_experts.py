"""The experts' benchmarks run to the end; what they measure at tiny sizes means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_tax", "expert_lora_block"])
def test_it_runs_and_writes_its_rows(root: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), "--quick", "--threads", "1", "--json", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    document = json.loads(out.read_text())
    assert document["name"] == name and all(row["ours"] > 0 and row["baseline"] > 0 for row in document["rows"])
