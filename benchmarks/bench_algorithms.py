"""Every algorithm on the workbook workflow from the nano base, with the main job's budget of sampled tokens, three seeds each.

In slices: each run (an algorithm and a seed) is one, finished ones are read and not run again, an interrupted one is resumed. All
runs lie under one directory; stop whenever you like and start again. The result names the commit of each. With ``--with PATH``,
the runs that an earlier result tells of count as made, so that a table may be filled on several machines.

    make bench-algorithms                                       # all slices that are missing, then the table
    python benchmarks/bench_algorithms.py --slices 2            # two more runs
    python benchmarks/bench_algorithms.py --only ppo --seeds 0  # this one
    python benchmarks/bench_algorithms.py --slices 0 --json PATH   # the table of what is there
    make bench-algorithms KEEP=1 SLICES=2                       # two more than benchmarks/results has

Rows: held-out success (greedy) in the mean over the seeds against the bar of 87 %; for ppo also against grpo less five points.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402
from benchmarks.tune_runs import read  # noqa: E402

GOAL = 0.87
LIMIT = 4  # the command's exit code where a budget is used up
TOKENS = 900_000  # what the main job samples, at most
UNSCALED = ["algorithm.scale_by_std=null"]  # the recipe has it, and these have no such setting
# What differs from recipes/month_end_close.yaml. Everything else, the learning rate too unless it is here, is the same for all.
ALGORITHMS: dict[str, list[str]] = {
    "grpo": [],
    "dr_grpo": [],
    "dapo": [],
    "gspo": [],
    "cispo": [],
    "rloo": UNSCALED,
    "reinforce_pp": UNSCALED,
    "ppo": [*UNSCALED, "algorithm.epochs=1"],
}
COMMON = [f"run.max_tokens={TOKENS}", "run.eval_every=5", "run.eval_tasks=64", "tracking.wandb=off"]


def overrides(name: str, seed: int) -> list[str]:
    """Of the recipe, for one algorithm and seed."""
    return [f"algorithm.name={name}", f"seed={seed}", *ALGORITHMS[name]]


def run_slice(recipe: Path, directory: Path, changes: list[str]) -> int:
    """Start or resume one run. Returns the command's exit code. One whose tokens are used up is evaluated as it stands then."""
    command = [sys.executable, "-m", "frontier_tune.cli.main", "tune"]
    begun = (directory / "recipe.yaml").is_file()
    start = ["--resume", str(directory)] if begun else [str(recipe), *changes, f"run.directory={directory}"]
    code = subprocess.run([*command, *start], cwd=harness.ROOT).returncode
    if code == LIMIT and (last := last_row(directory)) and last["tokens"] >= TOKENS:
        ended = ["--resume", str(directory), f"run.steps={last['step']}", "run.max_tokens=null"]
        code = subprocess.run([*command, *ended], cwd=harness.ROOT).returncode
    return code


def counted(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, with what was sampled and updated up to each."""
    rows, updates, tokens = [], 0, 0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        updates += row.get("updates", 0)
        tokens += row.get("tokens_sampled", 0) + row.get("rehearsal_tokens", 0) + row.get("dynamic_tokens", 0)
        rows.append(row | {"updates": updates, "tokens": tokens})
    return rows


def last_row(run: Path) -> dict[str, Any] | None:
    return counted(run)[-1] if (run / "metrics.jsonl").is_file() else None


def to_goal(run: Path) -> dict[str, int] | None:
    """Steps, optimizer updates and sampled tokens after which a probe on held-out tasks first reached the goal."""
    reached = next((r for r in counted(run) if r.get("probe", {}).get("success", 0.0) >= GOAL), None)
    return {name: reached[name if name != "steps" else "step"] for name in ("steps", "updates", "tokens")} if reached else None


def describe(run: Path) -> dict[str, Any]:
    """What one finished run says: success with its interval, cost to the goal, seconds by phase."""
    evaluation, origin = read(run)
    phases: dict[str, float] = {}
    for row in counted(run):
        for name, value in row.get("phases", {}).items():
            phases[name] = phases.get(name, 0.0) + value
    return {
        "success": evaluation["tuned"]["success"],
        "ci95": evaluation["tuned"]["ci95"],
        "least_kind": min(k["success"] for k in evaluation["tuned"]["by_kind"].values()),
        "train": evaluation["train"],
        "to_goal": to_goal(run),
        "seconds_by_phase": phases,
        "commit": origin["commit"],
    }


def table(directory: Path, elsewhere: dict[str, dict[str, Any]]) -> tuple[list[harness.Row], dict[str, Any]]:
    """One row for each algorithm of which any run is finished, here or ``elsewhere`` (of a run in both, ours is shown)."""
    rows, found = [], dict[str, Any]()
    for name in ALGORITHMS:
        here = {p.parent.name: describe(p.parent) for p in directory.glob(f"{name}-*/evaluation.json")}
        runs = elsewhere.get(name, {}) | here
        if not runs:
            continue
        found[name] = dict(sorted(runs.items()))
        shares = [r["success"] for r in found[name].values()]
        mean = statistics.mean(shares)
        spread = f", deviation over seeds {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
        costs = [r["to_goal"] for r in found[name].values()]
        tokens = [c["tokens"] for c in costs if c]
        reached = f"{len(tokens)} of {len(costs)} runs" + (f", median {statistics.median(tokens):,.0f} tokens" if tokens else "")
        print(f"{name:13} {100 * mean:5.1f} %{spread}; {100 * GOAL:.0f} % reached in {reached}")
        rows.append(harness.Row(f"{name}, {len(shares)} seeds", mean, GOAL, "bar", "success", mean / GOAL, len(shares)))
    means = {r.case.split(",")[0]: r for r in rows}
    if "ppo" in means and "grpo" in means:
        floor = means["grpo"].ours - 0.05
        ours, seeds = means["ppo"].ours, min(means["ppo"].samples, means["grpo"].samples)
        rows.append(harness.Row("ppo against grpo", ours, floor, "grpo less 5 points", "success", ours / floor, seeds, True, 1.0))
    if len(means) >= 3:
        third = sorted((r.ours for r in means.values()), reverse=True)[2]
        rows.append(harness.Row("third best algorithm", third, GOAL, "bar", "success", third / GOAL, len(means), True, 1.0))
    return rows, found


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--only", nargs="*", default=list(ALGORITHMS), choices=list(ALGORITHMS), help="algorithms to run")
    options.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options.add_argument("--slices", type=int, help="runs to make at most; 0: only the table (default: all that are missing)")
    options.add_argument("--directory", type=Path, default=harness.ROOT / "runs" / "bench-algorithms")
    options.add_argument("--with", dest="earlier", type=Path, metavar="PATH", help="a result whose runs count as made")
    args = options.parse_args()
    recipe, common = harness.ROOT / "recipes" / "month_end_close.yaml", COMMON
    if args.quick:
        recipe, common = harness.ROOT / "recipes" / "smoke.yaml", ["tracking.wandb=off"]
    settings = {"tokens": TOKENS, "common": common}
    earlier = harness.elsewhere("bench_algorithms", settings, args.earlier)
    made = {run for runs in earlier.values() for run in runs} | {p.parent.name for p in args.directory.glob("*/evaluation.json")}
    missing = [(name, seed) for seed in args.seeds for name in args.only if f"{name}-{seed}" not in made]
    for name, seed in missing[: args.slices]:
        print(f"== {name}, seed {seed}", flush=True)
        code = run_slice(recipe, args.directory.absolute() / f"{name}-{seed}", [*overrides(name, seed), *common])
        if code:
            raise SystemExit(code)
    rows, found = table(args.directory, earlier)
    if not rows:
        raise SystemExit("no finished run yet; take --slices 1 or more")
    if not harness.report("bench_algorithms", rows, harness.machine(), settings | {"runs": found}, args.json) and not args.quick:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
