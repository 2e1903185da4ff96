"""How few experts carry a tuned workflow: a run's adapter, narrowed to the experts that take a share of the routing weights.

For each share the adapter is narrowed (the other experts are the base's), held-out tasks are played greedily, and what is left of
the gain (success of the whole adapter less the base's) is compared with 95 %. Size is the exported file of chosen experts alone.
Rows: ``ours`` is the share of the gain that is left, the gate stands at the fewest experts that keep 95 %.

    python benchmarks/expert_selection.py RUN --json benchmarks/results/expert_selection.json
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
KEEP = 0.95


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("run", type=Path, nargs="?", default=harness.ROOT / "runs" / "latest")
    options.add_argument("--tasks", type=int, help="held-out tasks (default: the run's)")
    args = options.parse_args()

    from frontier_tune import recipe as recipes
    from frontier_tune.experts import canonical, selection
    from frontier_tune.experts.families import moe_shape
    from frontier_tune.orchestration import narrow, preflight, run_dir
    from frontier_tune.orchestration import tune as runs
    from frontier_tune.orchestration.measure import Measure
    from frontier_tune.orchestration.run_dir import RunDir
    from frontier_tune.serving.export import export

    run = run_dir.find(Path.cwd(), str(args.run))
    tasks = 8 if args.quick else args.tasks
    changed = [f"environment.heldout_tasks={tasks}"] if tasks else []
    ready = preflight.check(recipes.load(run.recipe_file, changed), run.recipe_file)
    mass, config = narrow.routing(run)
    layers, rank = moe_shape(config).layers, int(canonical.read_config(run.adapter)["r"])
    rows: list[harness.Row] = []
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        scratch = RunDir(Path(work) / "evaluations")
        scratch.root.mkdir()
        with runs.crew_of(ready, scratch, print, learn=False) as crew:
            measure = Measure(ready, scratch, crew, lambda: None, print)

            def success(name: str) -> float:
                scores = measure._scores(f"{name}-greedy", ready.heldout, "workflow", sampled=False, reuse=False)
                return scores.success

            base = success("base")
            crew.sampler.sync(str(run.adapter), 1)
            whole = success("whole")
            size = (run.adapter / canonical.WEIGHTS).stat().st_size
            for number, share in enumerate(SHARES[-2:] if args.quick else SHARES, start=2):
                chosen = selection.covering(mass, layers, share, rank)
                narrowed, small = Path(work) / f"narrowed-{number}", Path(work) / f"small-{number}"
                narrow.narrow(run, chosen, narrowed)
                export(narrowed, "compact", small)
                crew.sampler.sync(str(small), number)  # what would be handed over is what is measured
                kept = (success(f"share-{number}") - base) / max(whole - base, 1e-9)
                bytes_left = (small / canonical.WEIGHTS).stat().st_size
                name = f"{100 * chosen.share:.0f} % of the experts ({100 * share:.0f} % of the routing weights)"
                rows.append(harness.Row(name, kept, KEEP, "to keep", "of the gain", kept / KEEP, 1))
                found[name] = {"share_of_experts": chosen.share, "gain_kept": kept, "bytes": bytes_left, "bytes_of_all": size}
                print(f"{name}: {100 * kept:.1f} % of the gain, {bytes_left:,} of {size:,} bytes", flush=True)
    fewest = next((r for r in rows if r.ours >= KEEP), None)
    gated = [harness.Row(**{**vars(r), "gate": r is fewest, "min": 1.0 if r is fewest else None}) for r in rows]
    print(f"fewest experts that keep {100 * KEEP:.0f} % of the gain: {fewest.case if fewest else 'none of these'}")
    settings = {
        "base": base,
        "whole": whole,
        "tasks": len(ready.heldout),
        "shares": found,
        "seeds": {"seed": ready.recipe.seed, "company": ready.recipe.company.seed},
    }
    harness.report("expert_selection", gated, harness.machine(), settings, args.json)
    if fewest is None and not args.quick:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
