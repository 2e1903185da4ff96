"""Sinks: what survives a crash, and what leaves the machine (nothing)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.contracts import BadInput
from frontier_tune.reporting import metrics


def test_rows_come_back_in_order_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "run/metrics.jsonl"
    for part in (
        [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}, {"step": 3, "reward": 0.3}],
        [{"step": 2, "reward": 0.25}],
    ):
        sink = metrics.JsonlSink(path)
        for row in part:
            sink.log(row)
        sink.close()
    assert [(r["step"], r["reward"]) for r in metrics.read(path)] == [(1, 0.1), (2, 0.25), (3, 0.3)]


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_file_cut_anywhere_reads_up_to_its_last_whole_row(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    sink = metrics.JsonlSink(path)
    for step in range(5):
        sink.log({"step": step, "phases": {"sampling": 1.5}})
    sink.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    expected = whole[:cut].count(b"\n")
    # A row that lacks only its newline was written whole.
    assert len(metrics.read(path)) in (expected, expected + 1)
    sink = metrics.JsonlSink(path)
    sink.log({"step": 9})
    sink.close()
    rows = metrics.read(path)
    assert len(rows) == expected + 1 and rows[-1] == {"step": 9}


def test_damage_before_the_end_is_loud(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:2"):
        metrics.read(path)
    path.write_text('{"reward": 1}\n{"step": 3}\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:1"):
        metrics.read(path)


def test_numbers_that_are_not_finite_are_told_and_stay_json() -> None:
    row = metrics.finite(
        {
            "step": 1,
            "loss": math.nan,
            "phases": {"sync": math.inf},
            "success_ci95": [0.1, np.float32("nan")],
            "kl": np.float64(0.5),
        }
    )
    assert row == {
        "step": 1,
        "loss": None,
        "phases": {"sync": None},
        "success_ci95": [0.1, None],
        "kl": 0.5,
        "nonfinite": ["loss", "phases.sync", "success_ci95.1"],
    }
    json.dumps(row, allow_nan=False)


def test_trackers_get_flat_numbers() -> None:
    row = {"step": 2, "phases": {"sampling": 1.0}, "success_ci95": [0.2, 0.4], "note": "x", "loss": None}
    assert dict(metrics.flatten(row)) == {"step": 2.0, "phases/sampling": 1.0, "success_ci95/low": 0.2, "success_ci95/high": 0.4}


RUN = """
import sys; from pathlib import Path; from frontier_tune.reporting.metrics import Sinks
sinks = Sinks.open(Path(sys.argv[1]), wandb="offline", config={"seed": 3})
for step in (1, 2): sinks.log({"step": step, "reward": 0.5, "phases": {"sync": 0.1}})
sinks.close()
"""


@pytest.mark.slow
def test_wandb_offline_stays_in_the_run_directory_and_is_silent(tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "HOME": str(home),
        "PYTHONPATH": str(Path.cwd()),
    }
    done = subprocess.run([sys.executable, "-c", RUN, str(run)], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = list((run / "wandb").rglob("*.wandb"))
    assert len(written) == 1 and written[0].stat().st_size > 0
    assert list(home.rglob("*")) == [], "nothing outside the run directory"
    assert len(metrics.read(run / "metrics.jsonl")) == 2


@pytest.mark.slow
@pytest.mark.network_namespace
def test_wandb_offline_needs_no_network_at_all(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel allows no network namespace to us")
    command = ["unshare", "-rn", sys.executable, "-c", RUN, str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
