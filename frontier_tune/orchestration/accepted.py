"""Tasks that people accepted from traces of work (``environment.accepted_tasks``): they train beside the generator's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, Task
from frontier_tune.recipe import Recipe

if TYPE_CHECKING:
    from frontier_tune.orchestration.preflight import Ready
    from frontier_tune.traces.rows import Proposal


def tasks(recipe: Recipe, root: Path, options: Mapping[str, Any]) -> list[Task]:
    """The accepted ones of the recipe's directory of traces; ``options``: the environment's, the company's seed among them.

    Raises BadInput where there are none, or they are of another environment, or of other options.
    """
    from frontier_tune.traces.store import manifest_of

    directory = root / str(recipe.environment.accepted_tasks)
    found = [p.task for p in _proposals(directory) if p.task]
    if not found:
        raise BadInput(f"environment.accepted_tasks: {directory} has none; accept some with: frontier-tune traces accept")
    require_made_for(recipe, options, "environment.accepted_tasks", directory, manifest_of(directory))
    return found


def require_made_for(
    recipe: Recipe, options: Mapping[str, Any], key: str, source: Path, manifest: Mapping[str, Any] | None
) -> None:
    """Raises BadInput where what was imported is of another environment or company: it would teach that one's conventions."""
    if manifest is None:
        return
    ours = (recipe.environment.path, dict(options))
    theirs = (manifest["environment"], manifest["options"])
    if theirs != ours:
        raise BadInput(
            f"{key}: {source} was made with {theirs[0]} and options {theirs[1]}, the recipe has {ours[0]} and options {ours[1]}; "
            "import the traces again with --recipe"
        )


def sources(ready: Ready) -> list[dict[str, Any]]:
    """What the run's record says of them: the file's digest, and every origin with its licence and who accepted."""
    from frontier_tune.governance.digests import file_digest
    from frontier_tune.traces.store import TASKS

    named = ready.recipe.environment.accepted_tasks
    if named is None:
        return []
    chosen = [p for p in _proposals(ready.root / named) if p.task]
    origins: dict[tuple[str, str, str], dict[str, Any]] = {}
    for p in chosen:
        entry = origins.setdefault(
            (p.origin.kind, p.origin.name, p.license),
            {**p.origin.model_dump(mode="json"), "license": p.license, "tasks": 0, "accepted_by": []},
        )
        entry["tasks"] += 1
        entry["accepted_by"] = sorted({*entry["accepted_by"], p.by})
    notes = {"origins": [origins[key] for key in sorted(origins)]}
    digest = {"sha256": file_digest(ready.root / named / TASKS)}
    return [{"name": "accepted tasks", "uri": f"{named}/{TASKS}", "digest": digest, "annotations": notes}]


def _proposals(directory: Path) -> list[Proposal]:
    from frontier_tune.traces.store import Store

    return [p for p in Store.open(directory).proposals if p.status == "accepted"]
