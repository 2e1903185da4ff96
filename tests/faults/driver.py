"""A whole run with the stand-in crew, as a process that may be killed: ``python -m tests.faults.driver ROOT RUN [slow JSON]``.

Goes on where the run was, if there is one. Only the record and the report at the end are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import FrontierTuneError
from frontier_tune.orchestration import tune
from frontier_tune.orchestration.cluster import local_ray
from frontier_tune.orchestration.preflight import Ready
from frontier_tune.orchestration.run_dir import RunDir
from tests.faults import standin


def ready_of(root: Path, recipe: recipes.Recipe) -> Ready:
    from frontier_tune.contracts import Task

    def tasks(split: Any, first: int, n: int) -> list[Task]:
        return [Task("word", split, {"number": first + i, "side": split}) for i in range(n)]

    env = recipe.environment
    openings = [list(range(1, 60))]
    train, heldout = tasks("train", 0, env.train_tasks), tasks("heldout", 5000, env.heldout_tasks)
    config: Any = SimpleNamespace(model_type="stand-in")
    plan: Any = SimpleNamespace(checkpoint_bytes=0)
    (root / "base").mkdir(exist_ok=True)
    return Ready(recipe, "faults", root, root / "base", config, env.options, plan, train, heldout, [], [], openings)


def main(root: Path, home: Path, slow: dict[str, float]) -> int:
    recipe = recipes.parse(json.loads((root / "recipe.json").read_text()))
    run = RunDir(home)

    @contextmanager
    def crew_of(ready: Ready, run: RunDir, note: tune.Note, supervisor: Any, stop: Any) -> Iterator[Any]:
        with local_ray(lost=lambda why: tune._lost(why, run)):
            stop.install()
            crew = standin.hire_all(recipe, root, run.engine_log, slow, supervisor)
            print("pids", json.dumps({h.role: h.pid for h in crew.handles}), flush=True)
            try:
                yield crew
            finally:
                crew.close()

    tune.crew_of = crew_of
    tune.finish = lambda *_: None
    try:
        with run.lock():
            tune.tune(ready_of(root, recipe), run, lambda text: print(text, flush=True), resume=run.recipe_file.exists())
    except FrontierTuneError as e:
        print(tune.describe_failure(e, run), file=sys.stderr, flush=True)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}))
