"""``frontier-tune eval``: base and adapter on held-out tasks again, for a run or for an adapter from elsewhere."""

from __future__ import annotations

import json
import time
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
from frontier_tune.recipe import full


def evaluate(
    target: str, recipe_file: str | None, overrides: Sequence[str], out: str | None, note: runs.Note
) -> tuple[dict[str, Any], Path]:
    """Evaluate base and tuned on the same held-out tasks; returns the content of evaluation.json and where it was written.

    ``target``: a run, or an adapter directory with ``recipe_file`` (or that of a model that a run trained whole). A finished run
    keeps the evaluation that its record covers: a new one, by whatever settings, goes beside it under ``evaluations/``, or where
    ``out`` says.
    Raises BadInput where there is no adapter, it belongs to another base, or ``out`` holds an evaluation already.
    """
    source, adapter, file = _locate(target, recipe_file)
    ready = preflight.check(recipes.load(file, overrides), file, "evaluate")
    check_result(adapter, ready)
    run = RunDir(Path(out)) if out else _beside(source, adapter)
    if run.evaluation.exists() or run.record.exists():
        raise BadInput(f"--out {run.root}: holds a run or an evaluation already; name another directory")
    with run.lock(), StopRequest() as stop, runs.crew_of(ready, run, note, learn=False, stop=stop) as crew:
        scores = Measure(ready, run, crew, stop.check, note)
        note(f"evaluating the base: {len(ready.heldout)} held-out tasks, {len(ready.general)} general ones")
        base = scores.side("base")
        canaries = scores.canaries()
        scores.tell(canaries)
        note(f"evaluating {adapter}")
        crew.sampler.sync(str(adapter), 1)
        tuned = scores.side("tuned")
    train = json.loads(source.evaluation.read_text()).get("train") if source is not None and source.evaluation.is_file() else None
    run.recipe_file.write_text(recipes.dump(ready.recipe))
    return measure.write(run, base, tuned, canaries, train), run.root


def _beside(source: RunDir | None, adapter: Path) -> RunDir:
    """A directory of its own for a new evaluation."""
    parent = source.root / "evaluations" if source is not None else Path("runs")
    name = time.strftime("%Y-%m-%d") if source is not None else f"eval-{adapter.name}"
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return RunDir(parent / f"{name}-{number}")


def _locate(target: str, recipe_file: str | None) -> tuple[RunDir | None, Path, Path]:
    """The run (None: an adapter from elsewhere), its adapter, and the recipe to go by."""
    path = Path(target)
    if (path / "adapter_config.json").is_file() or is_model(path):
        run = RunDir(path.parent)
        if path in (run.adapter, run.model) and run.recipe_file.is_file() and recipe_file is None:
            return run, path, run.recipe_file
        if recipe_file is None:
            raise BadInput(f"{target}: an adapter outside of a run; name the recipe that it is to be evaluated by with --recipe")
        return None, path, Path(recipe_file)
    run = run_dir.find(Path.cwd(), target)
    found = run.model if is_model(run.model) else run.adapter
    if found == run.adapter and not (run.adapter / "adapter_config.json").is_file():
        raise BadInput(f"{run.root}: no adapter there yet; finish the run with: frontier-tune tune --resume {run.root}")
    return run, found, Path(recipe_file) if recipe_file else run.recipe_file


def is_model(directory: Path) -> bool:
    """Whether ``directory`` has what a run ends with that trained all weights."""
    from frontier_tune.experts import whole

    return (directory / whole.DIGESTS).is_file()


def check_result(result: Path, ready: preflight.Ready) -> None:
    """Raises BadInput where ``result``, an adapter or a model, was made on another base than the recipe's, does not fit it, or is
    not what the recipe would have trained."""
    whole = full.whole(ready.recipe)
    if is_model(result) == whole:
        check_adapter(result, ready)
        return
    kind, wanted = ("an adapter", "adapter") if whole else ("a model all of whose weights were trained", "all")
    raise BadInput(f"{result}: is {kind}; evaluate it with learner.trainable={wanted}")


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
    if full.whole(ready.recipe):
        return
    try:
        canonical.load(adapter, ready.config)
    except GateFailed as e:
        raise BadInput(f"{adapter}: does not fit base '{ready.recipe.base}': {e}") from None
