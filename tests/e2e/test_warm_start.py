"""Traces to a tuned adapter through the command: demonstrations, preference pairs, then reinforcement learning from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontier_tune.cli import main
from tests import tiny
from tests.e2e.conftest import run
from tests.orchestration.test_warm_start import STAGES, WORK

pytestmark = pytest.mark.slow


def test_from_traces_to_a_tuned_adapter(tmp_path: Path, taught_base: Path) -> None:
    """The parity gate holds the sampler to the warm-started adapter before the first step."""
    tiny.write_workspace(tmp_path, taught_base, {"run": {"steps": 1}})
    (tmp_path / "work.jsonl").write_text(json.dumps(WORK) + "\n")
    recipe = str(tmp_path / "recipes" / "echo.yaml")
    assert main.main(["traces", "from-golden", "--recipe", recipe, "--n", "12"]) == 0
    assert main.main(["traces", "import", str(tmp_path / "work.jsonl"), "--recipe", recipe]) == 0
    settings = ["warm_start.sft.learning_rate=0.01", "warm_start.sft.epochs=6", "warm_start.evaluate=true"]
    said = run(tmp_path, "tune", "recipes/echo.yaml", *STAGES, *settings)
    assert "parity: learner and sampler differ" in said and "Traceback" not in said
    home = (tmp_path / "runs" / "latest").resolve()
    sft, dpo = json.loads((home / "warm_start.json").read_text())["stages"]
    assert sft["loss"][1] < sft["loss"][0] and (sft["examples"], dpo["examples"]) == (13, 1)
    assert sft["evaluation"]["success"] >= 0.9 > 0.5 > json.loads((home / "evaluation.json").read_text())["base"]["success"]
    stages = [json.loads(line).get("stage") for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert stages[0] == "sft" and stages[-2:] == ["dpo", None]
    record = json.loads((home / "record.json").read_text())
    sources = {d["name"]: d for d in record["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {o["name"] for o in sources["warm start sft"]["annotations"]["origins"]} == {
        "big-model-5",
        "golden program of echo 1",
        "jane",
    }
    assert "Warm start" in (home / "report.html").read_text()
    assert run(tmp_path, "verify", "latest").endswith("is as recorded\n")
