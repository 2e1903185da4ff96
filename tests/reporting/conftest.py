"""A whole run directory, made up: what a finished run leaves behind, without training one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from frontier_tune import recipe
from frontier_tune.contracts import EpisodeSpec, Message, Task, Trajectory
from frontier_tune.evaluation import summary
from frontier_tune.evaluation.evaluate import Scores, evaluate, write_episodes
from frontier_tune.reporting import report

KINDS = ["ageing buckets", "budget variance", "broken formula", "cross-sheet look-up", "net revenue", "totals by account"]


def metric_rows(n: int = 80, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for step in range(1, n + 1):
        p = min(1.0, max(0.0, 0.13 + 0.77 / (1 + math.exp(-(step - 30) / 7)) + draw.gauss(0, 0.025)))
        reward = min(1.0, 0.25 + 0.72 * p + draw.gauss(0, 0.01))
        phases = {"sampling": 5 + draw.random() - step * 0.02, "learning": 3.5 + draw.random() * 0.3, "sync": 0.4, "parity": 0.3}
        rows.append(
            {
                "step": step,
                "time": 1.7e9 + 9 * step,
                "seconds": sum(phases.values()),
                "success": p,
                "success_ci95": [max(0.0, p - 0.07), min(1.0, p + 0.07)],
                "reward": reward,
                "reward_ci95": [reward - 0.05, min(1.0, reward + 0.05)],
                "episodes": 192,
                "failures": {
                    "environment": 0,
                    "infrastructure": int(draw.random() < 0.05),
                    "agent": draw.randrange(max(1, 6 - step // 10)),
                },
                "groups_used": max(0.1, 0.9 - 0.6 * p),
                "tokens_sampled": 12000,
                "tokens_per_second": 1500 + draw.gauss(0, 80),
                "length_mean": 60 - 0.2 * step,
                "length_max": 120 + 20 * draw.random(),
                "truncated": 0.02,
                "turns": 3.1,
                "loss": 0.01,
                "grad_norm": 0.5,
                "learning_rate": 1e-3,
                "entropy": 0.9 * math.exp(-step / 40) + 0.1,
                "kl_sampler": 4e-5 * (1 + draw.random()),
                "kl_base": 0.002 * step,
                "clip_share": 0.002 + 0.01 * draw.random(),
                "phases": phases,
            }
        )
    return rows


def tasks(n: int, kinds: list[str] = KINDS) -> list[Task]:
    return [Task(kinds[i % len(kinds)], "heldout", {"i": i}, family=f"layout-{i % 5}") for i in range(n)]


class Player:
    """Plays episodes whose outcome is drawn: right with probability ``skill``, by task."""

    def __init__(self, skill: float, salt: int = 0) -> None:
        self.skill, self.salt = skill, salt

    def __call__(self, specs: list[EpisodeSpec]) -> list[Trajectory]:
        return [self.play(s) for s in specs]

    def play(self, spec: EpisodeSpec) -> Trajectory:
        right = random.Random(f"{spec.task.hash}{self.salt}").random() < self.skill
        formula = '=SUMIFS(Ledger[Amount],Ledger[Type],"sale")' + (
            '-SUMIFS(Ledger[Amount],Ledger[Type],"rebate")' if right else ""
        )
        i = spec.task.data["i"]
        messages = [
            Message(
                "user", f"Close the month: {spec.task.kind} <b>for account {i}</b>.\nWrite the result to Summary!C{4 + i % 9}."
            ),
            Message("assistant", "read Ledger!A1:D3"),
            Message("tool", "Date | Type | Amount | Note\n2026-07-01 | sale | 1,204.50 |\n2026-07-02 | rebate | 35.00 | Q1"),
            Message("assistant", f"write Summary!C4 | {formula}"),
            Message("tool", "Summary!C4 = 1169.5" if right else "Summary!C4 = 1204.5"),
            Message("assistant", "submit"),
        ]
        return Trajectory(
            spec,
            tokens=[1] * 60,
            mask=[False] * 40 + [True] * 20,
            messages=messages,
            reward=1.0 if right else 0.3,
            success=right,
            components={"values": float(right), "untouched": 1.0},
            terminated=True,
            turns=3,
        )


def scores(skill: float, n: int = 320, salt: int = 0, kinds: list[str] = KINDS, sampled: bool = False) -> Scores:
    return evaluate(tasks(n, kinds), Player(skill, salt), seed=1, sampled=sampled)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared and finished: tests that change a run copy it first."""
    run = tmp_path_factory.mktemp("runs") / "workbook-2026-11-21-1"
    build_run(run)
    return run


@pytest.fixture(scope="session")
def finished_page(finished: Path) -> str:
    """The report of ``finished``, for the tests that only read it."""
    return report.write(finished).read_text()


def build_run(run: Path) -> None:
    (run / "evaluation").mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe.dump(recipe.Recipe()))
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metric_rows()))
    base, tuned = scores(0.13, salt=1), scores(0.9, salt=2)
    write_episodes(run / "evaluation/base-greedy.jsonl", base)
    write_episodes(run / "evaluation/tuned-greedy.jsonl", tuned)
    general = ["copy an address", "pick a column", "sum a range"]
    summary.write(
        run,
        summary.summarize(
            base,
            tuned,
            base_sampled=scores(0.12, salt=3),
            tuned_sampled=scores(0.88, salt=4),
            general_before=scores(0.82, 200, salt=5, kinds=general),
            general_after=scores(0.81, 200, salt=6, kinds=general),
            canaries={
                "no_op": 0.0,
                "early_submitter": 0.0,
                "constant_filler": 0.0,
                "input_overwriter": 0.0,
                "golden_hunter": 0.0,
                "best_blind_script": 0.11,
            },
            train={"seconds": 731.0, "steps": 80, "tokens_sampled": 960000},
        ),
    )
    (run / "adapter").mkdir()
    (run / "adapter/adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 8,
                "lora_alpha": 16,
                "base_model_name_or_path": "nano",
                "target_modules": ["q_proj", "v_proj"],
                "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            }
        )
    )
    save_file({"a": np.zeros((8, 96), np.float32), "b": np.zeros((64, 8), np.float32)}, run / "adapter/adapter_model.safetensors")
    (run / "rollouts").mkdir()
    (run / "rollouts/step-00001.jsonl").write_text(json.dumps(base.episodes[0].to_json()) + "\n")
