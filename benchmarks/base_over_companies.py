"""How a base does before it is tuned, over many companies: the same greedy episodes, graded by each company's conventions.

The base's greedy actions don't depend on the company (no prompt states its conventions), so one run's base evaluation is replayed
in the environment of every company seed. Each row: a company's success against the mean over the alternatives' chance.

    python benchmarks/base_over_companies.py RUN --companies 20 --json benchmarks/results/base_over_companies.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import ROOT, Row, machine, parser, report  # noqa: E402

from frontier_tune import recipe as recipes  # noqa: E402
from frontier_tune.orchestration.groups import derive_seed  # noqa: E402
from frontier_tune.sdk.registry import load_environment  # noqa: E402


def replay(run: Path, company: int) -> float:
    """Share of the run's base episodes that succeed at ``company``."""
    recipe = recipes.load(run / "recipe.yaml").environment
    env = load_environment(recipe.path, ROOT, **{**recipe.options, "company_seed": company})
    tasks = env.tasks("heldout", recipe.heldout_tasks, derive_seed("heldout"))
    rows = [json.loads(line) for line in (run / "evaluation" / "base-greedy.jsonl").read_text().split("\n") if line]
    said = {row["group"]: [m["content"] for m in row["messages"] if m["role"] == "assistant"] for row in rows}
    if len(said) != len(tasks):
        raise SystemExit(f"{run}: {len(said)} base episodes for {len(tasks)} held-out tasks; was it made by another version?")
    done = 0
    for i, task in enumerate(tasks):
        env.reset(options={"task": task, "max_turns": recipe.turns})
        info: dict[str, bool] = {}
        for action in said[i]:
            *_, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        done += bool(info.get("success"))
    return done / len(tasks)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "latest")
    options.add_argument("--companies", type=int, default=20)
    arguments = options.parse_args()
    rows = []
    for company in range(arguments.companies):
        success = replay(arguments.run, company)
        print(f"company {company:3d}  base, greedy: {100 * success:5.1f} %", flush=True)
        rows.append(Row(f"company.seed {company}", success, 0.2, "bar (at most)", "success", 0.2 / max(success, 0.001), 1))
    found = [r.ours for r in rows]
    print(
        f"mean {100 * statistics.mean(found):.1f} %, median {100 * statistics.median(found):.1f} %, most {100 * max(found):.1f} %"
    )
    report("base_over_companies", rows, machine(), {"run": str(arguments.run), "companies": arguments.companies}, arguments.json)


if __name__ == "__main__":
    main()
