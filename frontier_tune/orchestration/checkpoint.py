"""Checkpoints that are whole or not there: written aside, fsynced, listed in a manifest with digests, then renamed.

A checkpoint is a directory ``step-000010`` with ``learner/`` (weights and optimizer, by the learner), ``loop.json`` (step,
version, counters), ``recipe.json`` and ``manifest.json`` (SHA-256 of every other file). The newest that verifies is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import Recipe

if TYPE_CHECKING:
    from frontier_tune.orchestration.batch import Batch

KEPT = 2
# What may differ between the run that wrote a checkpoint and the one that resumes it: how long to go on, where, and how
# cautiously (what a diverged run is told to change).
MAY_DIFFER = (
    "run.steps",
    "run.max_tokens",
    "run.max_hours",
    "run.max_failure_share",
    "run.directory",
    "run.stop_at_success",
    "learner.learning_rate",
    "learner.max_grad_norm",
)


@dataclass
class LoopState:
    """Where the loop stands. ``step`` counts finished steps; the plan of groups follows from it and the recipe's seed."""

    step: int = 0
    version: int = 0
    syncs: int = 0
    tokens_sampled: int = 0
    episodes: int = 0
    retried: int = 0
    masked: int = 0
    seconds: float = 0.0
    tolerance: float | None = None
    recent_success: list[float] = field(default_factory=list)

    def add(self, step: int, batches: Sequence[Batch], seconds: float, window: int) -> None:
        """Count a finished step: the workflow's batch first, then what was rehearsed."""
        self.step = step
        for batch in batches:
            self.tokens_sampled += batch.tokens_sampled
            self.episodes += len(batch.trajectories)
            self.retried += batch.retried
            self.masked += batch.masked
        self.seconds += seconds
        self.recent_success = [*self.recent_success, batches[0].success][-window:]


def flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ, without those that may."""
    a, b = dict(flatten(old)), dict(flatten(new))
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k) and k not in MAY_DIFFER)


def same_recipe(written: Recipe, recipe: Recipe, where: Path) -> None:
    """Raises BadInput, naming the keys, where ``recipe`` differs from ``written`` in more than how long to go on."""
    differ = differing_keys(written.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if differ:
        raise BadInput(
            f"{where}: was written by another recipe; these keys differ: {', '.join(differ)}. Resume with the run's own "
            f"recipe.yaml (only {', '.join(MAY_DIFFER)} may change), or start a new run"
        )


def save(directory: Path, state: LoopState, recipe: Recipe, save_learner: Callable[[str], object]) -> Path:
    """Write ``step-<n>`` under ``directory`` and keep the newest two. ``save_learner`` writes into the path it is given."""
    directory.mkdir(parents=True, exist_ok=True)
    final, work = directory / f"step-{state.step:06d}", directory / f".writing-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    (work / "learner").mkdir(parents=True)
    try:
        save_learner(str(work / "learner"))
        (work / "loop.json").write_text(json.dumps(asdict(state), indent=1))
        (work / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json"), indent=1))
        files = {str(p.relative_to(work)): _digest(p) for p in sorted(work.rglob("*")) if p.is_file()}
        (work / "manifest.json").write_text(json.dumps({"step": state.step, "files": files}, indent=1))
        for path in [*work.rglob("*"), work]:
            _fsync(path)
        if final.exists():  # the same step again, after a resume: the old one goes only now
            shutil.rmtree(final)
        os.replace(work, final)
        _fsync(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in sorted(directory.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None where its manifest verifies."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        return f"manifest.json can't be read ({e})"
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _digest(path / name) != digest:
            return f"{name} does not have the digest of the manifest"
    return None


def newest(directory: Path, recipe: Recipe, warn: Callable[[str], None]) -> tuple[Path, LoopState]:
    """The newest checkpoint that verifies. Damaged ones are told to ``warn`` and passed over.

    Raises BadInput where none verifies, or where the recipe differs in more than how long to run (naming the keys).
    """
    for path in sorted(directory.glob("step-*"), reverse=True):
        wrong = problem(path)
        if wrong:
            warn(f"{path}: damaged checkpoint passed over: {wrong}")
            continue
        same_recipe(Recipe.model_validate_json((path / "recipe.json").read_text()), recipe, path)
        return path, LoopState(**json.loads((path / "loop.json").read_text()))
    raise BadInput(
        f"{directory}: no checkpoint that verifies, so there is nothing to resume; start the run again without --resume"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
