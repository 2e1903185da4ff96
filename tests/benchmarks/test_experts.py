"""The experts' benchmarks run to the end; what they measure at tiny sizes means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Three engines take a while to start: of one dtype here.
PIECES = {"adapter_tax": ["layer, float32", "layer, bfloat16", "engine, bfloat16"], "expert_lora_block": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECES)
def test_it_runs_and_writes_its_rows(root: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "result.json"
    pieces = [option for piece in PIECES[name] for option in ("--piece", piece)]
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), "--quick", "--threads", "1", "--json", str(out), *pieces]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr[-2000:]
    document = json.loads(out.read_text())
    assert document["name"] == name and all(row["ours"] > 0 and row["baseline"] > 0 for row in document["rows"])
