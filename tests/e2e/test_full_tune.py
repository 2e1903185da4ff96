"""All weights trained through the command: the chain of test_tune, with a model at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontier_tune.governance.record import verify
from tests import tiny
from tests.e2e.conftest import run

pytestmark = pytest.mark.slow


def test_a_run_that_trains_all_weights_learns_and_its_model_is_taken(tmp_path: Path, taught_base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sections = {
        "run": {"steps": 12, "checkpoint_every": 6},
        "algorithm": {"groups_per_step": 6, "group_size": 6},
        "adapter": {"rank": 8, "alpha": 16},  # the defaults: an adapter's settings would have no effect
        "learner": {"trainable": "all", "learning_rate": 0.001},
        "parity": {"canary_every": 5},
    }
    tiny.write_workspace(tmp_path, taught_base, sections)
    run(tmp_path, "tune", "recipes/echo.yaml")
    home = (tmp_path / "runs" / "latest").resolve()
    found = json.loads((home / "evaluation.json").read_text())
    assert found["tuned"]["success"] >= found["base"]["success"] + 0.5  # the company's word was learned from reward
    rows = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert max(r["kl_sampler"] for r in rows if "kl_sampler" in r) < 1e-6  # as small as with an adapter: float32 on both sides
    assert sum("canary_effect" in r.get("parity", {}) for r in rows) >= 1 and not any("kl_base" in r for r in rows)
    assert not (home / "adapter").exists() and not (home / "sync").exists()
    AutoModelForCausalLM.from_pretrained(home / "model")
    AutoTokenizer.from_pretrained(home / "model")
    record = json.loads((home / "record.json").read_text())
    assert {"model/model.safetensors", "model/tokenizer.json"} <= {s["name"] for s in record["subject"]}
    assert not verify(home)

    run(tmp_path, "eval", "runs/latest")
    (beside,) = (home / "evaluations").iterdir()
    again = json.loads((beside / "evaluation.json").read_text())
    assert again["tuned"]["success"] == found["tuned"]["success"] and again["base"]["success"] == found["base"]["success"]
