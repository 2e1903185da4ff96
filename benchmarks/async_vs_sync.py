"""Wall clock of training with overlap (run.staleness 4) against the synchronous loop, for the same number of trained groups.

Two cases. ``long-tail``: the toy workflow of the tests behind tools whose calls take a log-normal time (simulated: they sleep;
benchmarks/slow_tools). ``recipe``: a recipe of the repository as it is, such as recipes/month_end_close.yaml.

Each run is a run of the command with its own directory under --work, the two sides in turn, seed by seed. It is done in slices
that can be interrupted: a slice is stopped after --minutes and resumed by the next one, and a call without anything left to do
writes the result. The seconds compared are those of the loop's steps, as metrics.jsonl has them: start, evaluations and
checkpoints are in neither side, and groups that a stopped run plays again are in that of the run.

    python benchmarks/async_vs_sync.py --work /tmp/w1 --slices 99 --json benchmarks/results/async_vs_sync_long_tail.json
    python benchmarks/async_vs_sync.py --work /tmp/w2 --recipe recipes/month_end_close.yaml --steps 20 --seeds 1 --slices 99
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import harness  # noqa: E402

STALENESS = 4
CORRECTED = ("algorithm.proximal=learner", "algorithm.correction=truncate")
SIDES = {
    "synchronous": (),
    "overlapped": (*CORRECTED, f"run.staleness={STALENESS}"),
}
BARS = {"long-tail": 2.0, "recipe": 1.4}
# Median and sigma of a call's log-normal time: mean 0.82 s, one in a hundred takes 5.1 s. A workers' count that the synchronous
# side can't use more of: one for each episode of a step.
MEDIAN_S, SIGMA, WORKERS = 0.5, 1.0, 16


@dataclass(frozen=True)
class Run:
    """One run of one side. ``where`` is its directory; it is finished when evaluation.json is there."""

    side: str
    seed: int
    where: Path
    command: tuple[str, ...]
    workspace: Path

    @property
    def finished(self) -> bool:
        return (self.where / "evaluation.json").is_file()

    def slice(self, minutes: float) -> None:
        """Start or resume, and stop gracefully when the time is up. Raises RuntimeError where the run fails."""
        arguments = ("tune", "--resume", str(self.where)) if (self.where / "recipe.yaml").is_file() else ("tune", *self.command)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
        self.where.parent.mkdir(parents=True, exist_ok=True)
        with (self.where.parent / f"{self.where.name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "frontier_tune.cli.main", *arguments],
                cwd=self.workspace,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                code = process.wait(minutes * 60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # saves and ends
                code = process.wait(300)
            finally:
                if process.poll() is None:  # it has a session of its own: an interruption here doesn't reach it
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code not in (0, 128 + signal.SIGINT):
            raise RuntimeError(f"{self.where}: exit code {code}; see {log.name}")

    def seconds(self) -> float:
        return float(sum(row["seconds"] for row in self.rows()))

    def rows(self) -> list[dict[str, Any]]:
        by_step = {r["step"]: r for r in map(json.loads, (self.where / "metrics.jsonl").read_text().splitlines())}
        return [by_step[step] for step in sorted(by_step)]

    def success(self) -> dict[str, Any]:
        tuned: dict[str, Any] = json.loads((self.where / "evaluation.json").read_text())["tuned"]
        return {"success": tuned["success"], "ci95": tuned["ci95"], "n": tuned["n"]}


def long_tail_workspace(work: Path, steps: int) -> Path:
    """A workspace with the slow tools and a base that knows their grammar; returns its recipe."""
    from tests import tiny

    workspace = work / "workspace"
    recipe = workspace / "recipes" / "echo.yaml"
    if not recipe.is_file():
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        base = tiny.build_base(work / "base", lessons=60)
        tiny.write_workspace(
            workspace,
            base,
            {
                "environment": {
                    "path": "envs/slow_tools",
                    "workers": WORKERS,
                    "train_tasks": 400,
                    "heldout_tasks": 64,
                    "step_timeout_s": 120,
                    "options": {"median_s": MEDIAN_S, "sigma": SIGMA},
                },
                "learner": {"threads": 1, "learning_rate": 0.003, "tokens_per_microbatch": 2048},
                "run": {"steps": steps, "checkpoint_every": 10, "eval_tasks": 16},
                "parity": {"canary_every": 20},
            },
        )
        shutil.copytree(Path(__file__).parent / "slow_tools", workspace / "envs" / "slow_tools")
    return recipe


def planned(work: Path, recipe: Path, workspace: Path, steps: int, seeds: int, settings: list[str]) -> list[Run]:
    """All runs, the sides in turn."""
    runs = []
    for seed in range(seeds):
        for side, own in SIDES.items():
            where = work / "runs" / f"{side}-{seed}"
            common = (
                f"seed={seed}",
                f"run.steps={steps}",
                f"run.directory={where}",
                "run.stop_at_success=null",
                "tracking.wandb=off",
            )
            sets = (*common, *settings, *own)
            runs.append(Run(side, seed, where, (str(recipe), *sets), workspace))
    return runs


def result(case: str, runs: list[Run], steps: int, settings: dict[str, Any], path: Path | None) -> bool:
    sides = {side: [r for r in runs if r.side == side and r.finished] for side in SIDES}
    seeds = {r.seed for r in sides["synchronous"]} & {r.seed for r in sides["overlapped"]}
    rows = []
    totals = {side: [r.seconds() for r in found if r.seed in seeds] for side, found in sides.items()}
    rows.append(
        harness.compare(f"{case}, {steps} steps", totals["overlapped"], totals["synchronous"], "synchronous", "s", BARS[case])
    )
    scores = {f"{r.side}-{r.seed}": r.success() for found in sides.values() for r in found if r.seed in seeds}
    for seed in sorted(seeds):
        ours, theirs = (scores[f"{side}-{seed}"]["success"] for side in ("overlapped", "synchronous"))
        rows.append(harness.compare(f"held-out success, seed {seed}", [ours], [theirs], "synchronous", "share", None, True))
    describe = [r for r in sides["overlapped"] if r.seed in seeds]
    found = [row["overlap"] for r in describe for row in r.rows()]
    settings |= {
        "seconds": totals,
        "held_out": scores,
        "staleness_mean": sum(o["staleness_mean"] for o in found) / len(found),
        "staleness_max": max(o["staleness_max"] for o in found),
        "phases": {f"{r.side}-{r.seed}": _phases(r) for found in sides.values() for r in found if r.seed in seeds},
    }
    return harness.report(f"async_vs_sync {case}", rows, harness.machine(), settings, path)


def _phases(run: Run) -> dict[str, float]:
    """Seconds a step by phase, the mean."""
    rows = run.rows()
    names = dict.fromkeys(name for row in rows for name in row["phases"])
    return {name: round(sum(row["phases"].get(name, 0.0) for row in rows) / len(rows), 3) for name in names}


def main() -> None:
    options = harness.parser((__doc__ or "").splitlines()[0])
    options.add_argument("--work", type=Path, required=True, help="where the runs lie; slices go on there")
    options.add_argument("--recipe", type=Path, help="a recipe of this workspace, in place of the long-tailed one")
    options.add_argument("--steps", type=int, default=24)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--slices", type=int, default=1, help="slices to do in this call")
    options.add_argument("--minutes", type=float, default=3.0, help="of a slice")
    options.add_argument("--set", action="append", default=[], help="settings of both sides, KEY=VALUE")
    args = options.parse_args()
    steps, seeds = (2, 1) if args.quick else (args.steps, args.seeds)
    work = args.work.absolute()
    case = "recipe" if args.recipe else "long-tail"
    recipe = args.recipe.absolute() if args.recipe else long_tail_workspace(work, steps)
    runs = planned(work, recipe, ROOT if args.recipe else recipe.parent.parent, steps, seeds, args.set)
    for _ in range(args.slices):
        left = [r for r in runs if not r.finished]
        if not left:
            break
        print(f"{left[0].side}, seed {left[0].seed} ({len(left)} of {len(runs)} runs left)", flush=True)
        left[0].slice(args.minutes)
    done = [r for r in runs if r.finished]
    if {r.side for r in done} != set(SIDES):
        print(f"{len(done)} of {len(runs)} runs are finished; call again for the next slice")
        return
    settings = {"case": case, "staleness": STALENESS, "steps": steps, "seeds": len(done) // 2, "set": args.set}
    if case == "long-tail":
        made = yaml.safe_load(recipe.read_text()) | {"base": "tests/tiny.py, 60 lessons"}
        settings |= {"call": {"distribution": "log-normal", "median_s": MEDIAN_S, "sigma": SIGMA}, "recipe": made}
    if not result(case, runs, steps, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
