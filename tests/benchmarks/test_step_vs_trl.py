import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_both_sides_run_and_the_breakdown_adds_up(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(root / "benchmarks" / "step_vs_trl.py"), "--quick", "--json", str(out)]
    run = subprocess.run(
        command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    document = json.loads(out.read_text())
    rows = {r["case"]: r for r in document["rows"]}
    for case in ("6 generated tokens", "mean of 8 generated tokens"):
        parts = [rows[f"{case}: {phase}"] for phase in ("sampling", "learning")]
        assert sum(p["baseline"] for p in parts) == pytest.approx(rows[case]["baseline"])
        assert 0 < sum(p["ours"] for p in parts) <= rows[case]["ours"]
    assert document["settings"]["omp_wait_policy"] == "PASSIVE" and "warm-up" in run.stdout
