"""``frontier-tune eval``: base and adapter on held-out tasks again, for a run or for an adapter from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.orchestration import measure, preflight, run_dir
from frontier_tune.orchestration import tune as runs
from frontier_tune.orchestration.measure import Measure
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.stop import StopRequest


def evaluate(
    target: str, recipe_file: str | None, overrides: Sequence[str], out: str | None, note: runs.Note
) -> tuple[dict[str, Any], Path]:
    """Evaluate base and tuned on the same held-out tasks; returns the content of evaluation.json and where it was written.

    ``target``: a run (evaluation.json and the report are written anew there), or an adapter directory with ``recipe_file``.
    Raises BadInput where there is no adapter, or it belongs to another base.
    """
    run, adapter, file = _locate(target, recipe_file, out)
    ready = preflight.check(recipes.load(file, overrides), file)
    check_adapter(adapter, ready)
    with run.lock(), StopRequest() as stop, runs.crew_of(ready, run, note, learn=False) as crew:
        stop.install()
        scores = Measure(ready, run, crew, stop.check, note)
        note(f"evaluating the base: {len(ready.heldout)} held-out tasks, {len(ready.general)} general ones")
        base = scores.side("base")
        canaries = scores.canaries()
        note(f"evaluating {adapter}")
        crew.sampler.sync(str(adapter), 1)
        tuned = scores.side("tuned")
    train = json.loads(run.evaluation.read_text()).get("train") if run.evaluation.is_file() else None
    content = measure.write(run, base, tuned, canaries, train)
    if run.recipe_file.is_file():
        from frontier_tune.reporting import report

        report.write(run.root)
    return content, run.root


def _locate(target: str, recipe_file: str | None, out: str | None) -> tuple[RunDir, Path, Path]:
    path = Path(target)
    if (path / "adapter_config.json").is_file():
        run = RunDir(path.parent)
        if path.name == "adapter" and run.recipe_file.is_file() and recipe_file is None:
            return run, path, run.recipe_file
        if recipe_file is None:
            raise BadInput(f"{target}: an adapter outside of a run; name the recipe that it is to be evaluated by with --recipe")
        return RunDir(Path(out) if out else Path("runs") / f"eval-{path.name}"), path, Path(recipe_file)
    run = run_dir.find(Path.cwd(), target)
    if not (run.adapter / "adapter_config.json").is_file():
        raise BadInput(f"{run.root}: no adapter there yet; finish the run with: frontier-tune tune --resume {run.root}")
    return run, run.adapter, Path(recipe_file) if recipe_file else run.recipe_file


def check_adapter(adapter: Path, ready: preflight.Ready) -> None:
    """Raises BadInput where ``adapter`` was made on another base than the recipe's, or does not fit it."""
    from frontier_tune.contracts import GateFailed
    from frontier_tune.experts import canonical

    source = adapter / runs.PROVENANCE
    if source.is_file():
        theirs, ours = json.loads(source.read_text()), runs.provenance(ready)
        if theirs["base_sha256"] != ours["base_sha256"]:
            raise BadInput(
                f"{adapter}: was trained on base '{theirs['base']}' (SHA-256 {theirs['base_sha256'][:12]}), the recipe's base "
                f"'{ours['base']}' is another (SHA-256 {ours['base_sha256'][:12]}); name the right one with base=..."
            )
    try:
        canonical.load(adapter, ready.config)
    except GateFailed as e:
        raise BadInput(f"{adapter}: does not fit base '{ready.recipe.base}': {e}") from None
