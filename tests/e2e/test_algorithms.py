"""Algorithms that need more than rewards take the whole path: a critic, the base's log-probabilities, more groups, own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.e2e.conftest import run

pytestmark = pytest.mark.slow

OWN = '''
from dataclasses import dataclass

from frontier_tune.algorithms.rloo import RLOO


@dataclass(frozen=True, kw_only=True)
class Mine(RLOO):
    """As RLOO, louder."""

    factor: float = 1.0

    def advantages(self, rollout):
        return self.factor * super().advantages(rollout)
'''


def trained(workspace: Path, base: Path, algorithm: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    sections = {"run": {"steps": 2}, "algorithm": algorithm, **more}
    tiny.write_workspace(workspace, base, sections)
    run(workspace, "tune", "recipes/echo.yaml")
    home = workspace / "runs" / "latest"
    return [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]


def test_ppo_with_its_kl_in_the_reward_by_two_learners_that_share_the_base(tmp_path: Path, taught_base: Path) -> None:
    settings = {"name": "ppo", "kl_coefficient": 0.01, "kl_target": 0.01, "epochs": 2}
    rows = trained(tmp_path, taught_base, settings, placement={"learners": 2, "shard_base": True})
    assert all(r["updates"] == 2 and r["value_loss"] >= 0 and "kl_reward" in r and r["kl_coefficient"] > 0 for r in rows)
    took = json.loads((tmp_path / "runs/latest/evaluation.json").read_text())["train"]
    assert (took["steps"], took["updates"]) == (2, 4)  # of the optimizer, not policies
    assert rows[1]["kl_old"] >= 0 and len(list((tmp_path / "runs/latest/checkpoints").glob("*/learner/critic.safetensors"))) > 0
    moved = ("run.steps=3", "placement.learners=1", "placement.shard_base=false", "environment.workers=1")
    said = run(tmp_path, "tune", "--resume", "runs/latest", *moved)  # critic and all, by a single learner that holds the base
    assert "placement.learners 2 -> 1" in said
    rows = [json.loads(line) for line in (tmp_path / "runs/latest/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3] and rows[2]["updates"] == 2
    (change,) = json.loads((tmp_path / "runs/latest/inputs.json").read_text())["changes"]
    assert change["recipe"]["placement.shard_base"] == [True, False]
    run(tmp_path, "verify", "runs/latest")


def test_an_own_algorithm_of_the_workspace_with_a_mask_for_mismatch_replayed_routes_and_routers_that_learn(
    tmp_path: Path, taught_base: Path
) -> None:
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "mine.py").write_text(OWN)
    settings = {
        "proximal": "learner",
        "correction": "mask",
        "correction_low": 0.5,
        "options": {"factor": 2.0},
        "replay": "sampler",
    }
    rows = trained(tmp_path, taught_base, {"name": "algorithms.mine:Mine", **settings}, adapter={"router": True})
    changes = [r["router_change"] for r in rows if r.get("updates")]
    assert changes and 0 < changes[0] <= changes[-1] < 0.5  # trained, handed over and, by the gate's word, sampled from
    assert "Trained whole" in (tmp_path / "runs/latest/report.html").read_text()
    assert all(0 <= r["route_flips"] < 0.1 for r in rows if r.get("updates"))  # routes of other tokens would be others
    assert any(0.9 < r["weight"] <= 1.1 for r in rows if "weight" in r)  # sampler and learner are as good as one
    spoilt = (tmp_path / "recipes" / "echo.yaml").read_text().replace("factor", "fctor")
    (tmp_path / "recipes" / "echo.yaml").write_text(spoilt)
    assert "did you mean 'factor'" in run(tmp_path, "tune", "recipes/echo.yaml", expect=2)


def test_dapo_plays_more_where_groups_teach_nothing_beside_groups_that_overlap(tmp_path: Path, taught_base: Path) -> None:
    settings = {"proximal": "learner", "correction": "truncate", "groups_per_step": 6, "group_size": 2, "dynamic_sampling": 2}
    overlap = {"run": {"steps": 3, "staleness": 1}, "overlap": {"on_update": "restart"}}
    rows = trained(tmp_path, taught_base, {"name": "dapo", **settings}, **overlap)
    assert any(r.get("dynamic_rounds", 0) > 0 and r["dynamic_tokens"] > 0 for r in rows)
    assert [r["overlap"]["staleness_max"] <= 1 for r in rows] == [True] * 3
    ledger = [json.loads(line) for line in (tmp_path / "runs/latest/ledger.jsonl").read_text().splitlines()]
    planned = [f"{step}.{group}" for step in (1, 2, 3) for group in range(6)]
    ends = [r["group"] for r in ledger if r["event"] in ("trained", "dropped") and r["group"] in planned]
    assert sorted(ends) == planned, "each planned group once"
