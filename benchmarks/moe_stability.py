"""Training stability of a mixture of experts: sampler in bfloat16, learner in float32, learning rate raised, three seeds.

In slices: each run of the command (a variant and a seed) is one; finished ones are read and not run again, an interrupted one is
resumed. All runs lie under one directory; stop whenever you like and start again. A run that diverged counts as finished. The
result names the commit of each. With ``--with PATH``, the runs that an earlier result tells of count as made, so that a table may
be filled on several machines.

    make bench-stability                                              # all slices that are missing, then the table
    python benchmarks/moe_stability.py --slices 1                     # one more run
    python benchmarks/moe_stability.py --only r3 --seeds 0            # this one
    python benchmarks/moe_stability.py --slices 0 --json PATH         # the table of what is there
    make bench-stability KEEP=1 SLICES=1                              # one more than benchmarks/results has

All variants take the ratio against the learner at the start of the step and differ in one thing: ``none`` ignores the mismatch
of sampler and learner, ``tis`` weighs tokens by it, truncated at 2, ``r2`` and ``r3`` replay the learner's own old or the
sampler's routes; ``r3_head``, where --only names it, is ``r3`` with the sampler's head in float32. Each step logs the
*mismatch* before its first update (k3 a token, sampler to learner), split by whether a token's route flipped, and the *drift*
(``kl_old``: k3, sampler to the policy as it is trained, over all updates of the step). Runs part after the first update, so
tokens differ between variants; benchmarks/moe_mismatch.py compares on the same ones.

Rows: ``none`` divided by a variant, seed by seed, then the median; replay's are gates (at least 2). R2 takes the learner's own
routes, so it can't change the mismatch before a step's first update: its gate is on the drift. A run has collapsed where its
running success (5 steps) falls to half of the best before, where it diverged, or where an update was rolled back.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402
from benchmarks.tune_runs import read  # noqa: E402

MOST = 3.0  # times the recipe's learning rate
DIVERGED = 4  # the command's exit code then; no slice has a budget that could use it up
WINDOW = 5  # steps of the running success
BAR = 2.0
UNIT = "1e-6 nats"
COMMON = [
    *("sampler.dtype=bfloat16", "sampler.routes=true", "learner.dtype=float32", "algorithm.proximal=learner"),
    *("algorithm.minibatches=2", "run.stop_at_success=null", "environment.general_tasks=0", "tracking.wandb=off"),
]
VARIANTS: dict[str, list[str]] = {
    "none": [],
    "tis": ["algorithm.correction=truncate", "algorithm.correction_high=2"],
    "r2": ["algorithm.replay=learner"],
    "r3": ["algorithm.replay=sampler"],
    "r3_head": ["algorithm.replay=sampler", "sampler.head_dtype=float32"],  # only where it is named
}
ASKED = ("none", "tis", "r2", "r3")
# Metrics of a step that are followed; the first four before its first update.
FOLLOWED = (
    "kl_sampler",
    "kl_sampler_flipped",
    "kl_sampler_kept",
    "route_flips",
    "logprob_gap",
    "kl_old",
    "clip_share",
    "entropy",
)
GATES = {"r2": "kl_old", "r3": "kl_sampler", "r3_head": "kl_sampler"}


def overrides(variant: str, seed: int, multiple: float, recipe: Path) -> list[str]:
    """Of the recipe, for one slice. Raises SystemExit beyond MOST times the recipe's learning rate."""
    from frontier_tune import recipe as recipes

    if not 0 < multiple <= MOST:
        raise SystemExit(f"--multiple {multiple:g}: above 0, at most {MOST:g}")
    rate = recipes.load(recipe).learner.learning_rate * multiple
    return [f"seed={seed}", f"learner.learning_rate={rate:g}", *COMMON, *VARIANTS[variant]]


def done(run: Path) -> bool:
    return (run / "evaluation.json").is_file() or (run / "diverged").is_file()


def run_slice(recipe: Path, directory: Path, changes: Sequence[str]) -> int:
    """Start or resume one run. Returns the command's exit code, 0 for one that diverged: that is what was to be seen."""
    command = [sys.executable, "-m", "frontier_tune.cli.main", "tune"]
    begun = (directory / "recipe.yaml").is_file()
    start = ["--resume", str(directory)] if begun else [str(recipe), *changes, f"run.directory={directory}"]
    code = subprocess.run([*command, *start], cwd=harness.ROOT).returncode
    if code == DIVERGED:
        (directory / "diverged").write_text("")
    return 0 if code == DIVERGED else code


def steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def followed(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Mean over the steps that have a metric (one that taught nothing has none), and over the first and last quarter of them.

    Beside it the median: of the mismatch, a few steps with a token that the two sides see quite differently make up the mean.
    """
    values = [float(r[name]) for r in rows if name in r]
    if not values:
        return None
    quarter = max(1, len(values) // 4)
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "first_quarter": statistics.fmean(values[:quarter]),
        "last_quarter": statistics.fmean(values[-quarter:]),
        "most": max(values),
    }


def collapsed(rows: Sequence[dict[str, Any]], diverged: bool) -> str | None:
    """Why a run counts as collapsed; None where it doesn't."""
    if diverged:
        return "diverged"
    if rows and (back := rows[-1].get("rollbacks", 0)):
        return f"{back} rollbacks"
    success = [float(r["success"]) for r in rows]
    if not all(map(math.isfinite, success)):
        return "success is not a number"
    best = 0.0
    for end in range(WINDOW, len(success) + 1):
        running = statistics.fmean(success[end - WINDOW : end])
        best = max(best, running)
        if best > 0 and running <= best / 2:
            return f"running success {running:.2f} at step {end}, after {best:.2f}"
    return None


def describe(run: Path) -> dict[str, Any]:
    """One slice as its files tell it."""
    rows, diverged = steps(run), (run / "diverged").is_file()
    found: dict[str, Any] = {
        "collapsed": collapsed(rows, diverged),
        "bad_updates": max((r.get("bad_updates", 0) for r in rows), default=0),
        "rollbacks": max((r.get("rollbacks", 0) for r in rows), default=0),
        "success_by_step": [round(float(r["success"]), 4) for r in rows],
        "learning_rate": max((r.get("learning_rate", 0.0) for r in rows), default=0.0),
        **{name: followed(rows, name) for name in FOLLOWED},
    }
    if diverged:
        return found | {"held_out": None, "commit": None}
    evaluation, origin = read(run)
    tuned = evaluation["tuned"]
    return found | {"held_out": {k: tuned[k] for k in ("success", "ci95", "n")}, "commit": origin["commit"]}


def gathered(directory: Path, elsewhere: dict[str, dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Finished runs by variant and seed, here and ``elsewhere`` (of a run in both, ours)."""
    found = dict[str, dict[int, dict[str, Any]]]()
    for variant in VARIANTS:
        runs = {int(seed): run for seed, run in elsewhere.get(variant, {}).items()}
        runs |= {int(p.name.rpartition("-")[2]): describe(p) for p in directory.glob(f"{variant}-*") if done(p)}
        if runs:
            found[variant] = dict(sorted(runs.items()))
    return found


def compared(found: dict[str, dict[int, dict[str, Any]]]) -> list[harness.Row]:
    """Rows: none against each variant, on seeds that both have."""
    rows = []
    for variant in [v for v in VARIANTS if v != "none" and v in found]:
        seeds = sorted(found.get("none", {}).keys() & found[variant].keys())
        for metric, what, over in (
            ("kl_sampler", "mismatch", "mean"),
            ("kl_sampler", "mismatch", "median"),
            ("kl_old", "drift", "mean"),
        ):
            pairs = [(found[variant][s][metric], found["none"][s][metric]) for s in seeds]
            both = [(a[over], b[over]) for a, b in pairs if a and b and a[over] > 0]
            if both:
                ours, theirs = ([p[i] for p in both] for i in (0, 1))
                bar = BAR if (GATES.get(variant), over) == (metric, "mean") else None
                ratio = statistics.median(b / a for a, b in both)
                case = f"{variant}: {what}, {over} over steps"
                middle = (1e6 * statistics.median(ours), 1e6 * statistics.median(theirs))
                rows.append(harness.Row(case, *middle, "none", UNIT, ratio, len(both), bar is not None, bar))
        scores = [(found[variant][s]["held_out"], found["none"][s]["held_out"]) for s in seeds]
        held_out = [(a["success"], b["success"]) for a, b in scores if a and b]
        if held_out:
            case, (a, b) = f"{variant}: held-out success", zip(*held_out, strict=True)
            rows.append(harness.compare(case, a, b, "none", "share", None, True))
    return rows


def show(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    for variant, runs in found.items():
        for seed, r in sorted(runs.items()):
            kl, old, flips = (r[name]["mean"] if r[name] else math.nan for name in ("kl_sampler", "kl_old", "route_flips"))
            success = f"{100 * r['held_out']['success']:.1f} %" if r["held_out"] else "none"
            print(
                f"{variant:5} seed {seed}: mismatch {kl:.2e}, drift {old:.2e}, tokens with a flip {100 * flips:.1f} %, "
                f"held-out {success}, {r['collapsed'] or 'no collapse'}"
            )


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--only", nargs="*", default=list(ASKED), choices=list(VARIANTS), help="variants to run")
    options.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options.add_argument("--multiple", type=float, default=MOST, help=f"of the recipe's learning rate, at most {MOST:g}")
    options.add_argument("--steps", type=int, help="of a run; default: the recipe's")
    options.add_argument("--slices", type=int, help="runs to make at most; 0: only the table (default: all that are missing)")
    options.add_argument("--directory", type=Path, default=harness.ROOT / "runs" / "bench-stability")
    options.add_argument("--with", dest="earlier", type=Path, metavar="PATH", help="a result whose runs count as made")
    args = options.parse_args()
    recipe = harness.ROOT / "recipes" / ("smoke.yaml" if args.quick else "month_end_close.yaml")
    length = [f"run.steps={args.steps}"] if args.steps else []
    settings = {"common": COMMON, "variants": VARIANTS, "multiple": args.multiple, "steps": args.steps}
    earlier = harness.elsewhere("moe_stability", settings, args.earlier)
    made = {f"{v}-{s}" for v, runs in earlier.items() for s in runs} | {p.name for p in args.directory.glob("*-*") if done(p)}
    missing = [(v, s) for s in args.seeds for v in args.only if f"{v}-{s}" not in made]
    for variant, seed in missing[: args.slices]:
        print(f"== {variant}, seed {seed}", flush=True)
        changes = [*overrides(variant, seed, args.multiple, recipe), *length]
        code = run_slice(recipe, args.directory.absolute() / f"{variant}-{seed}", changes)
        if code:
            raise SystemExit(code)
    found = gathered(args.directory, earlier)
    if not found:
        raise SystemExit("no finished run yet; take --slices 1 or more")
    show(found)
    fallen = [f"{v}-{s}: {r['collapsed']}" for v, runs in found.items() for s, r in runs.items() if r["collapsed"]]
    print("collapsed: " + ("; ".join(fallen) or f"none of {sum(map(len, found.values()))} runs"))
    settings |= {"collapsed": fallen, "runs": found}
    table = compared(found)
    if not table:
        print("nothing to compare yet: none and another variant must have finished with one seed")
    elif not harness.report("moe_stability", table, harness.machine(), settings, args.json) and not args.quick:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
