"""Without a GPU the benchmark says that it was not run; under Triton's interpreter all of it runs, at tiny sizes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_experts


def test_without_a_gpu_it_says_so_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    path = tmp_path / "deep" / "result.json"
    gpu_experts.main(["--json", str(path)])
    document = json.loads(path.read_text())
    assert document["not run"] == "no NVIDIA GPU" and document["rows"] == []
    assert {"name", "machine", "commit", "date", "settings"} < set(document)
    assert "not run: no NVIDIA GPU" in capsys.readouterr().out
    gpu_experts.main(["--quick", "--json", str(path)])
    assert json.loads(path.read_text())["not run"].startswith("no NVIDIA GPU, and ")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_all_of_it_runs(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(root / "benchmarks" / "gpu_experts.py"), "--quick", "--json", str(out)]
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    document = json.loads(out.read_text())
    cases = " ".join(row["case"] for row in document["rows"])
    assert "not run" not in document and all(row["ours"] > 0 and row["baseline"] > 0 for row in document["rows"])
    assert all(part in cases for part in ("routing, T 1 ", "experts, forward, T 1 ", "experts, forward + backward, T 3 "))
    assert {row["baseline_name"] for row in document["rows"]} >= {"eager torch", "ours frozen", "PEFT with LoRA (grouped_mm)"}
