"""Checkpoints that are whole or not there: written aside, fsynced, listed in a manifest with digests, then renamed.

A checkpoint is a directory ``step-000010`` with ``learner/`` (weights and optimizer, by the learner), ``loop.json`` (step,
version, counters, the ledger's mark), ``recipe.json`` and ``manifest.json`` (SHA-256 of every other file). The newest that
verifies is loaded. At no moment, whenever the process is killed, is there none: a new one is there before an old one goes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, LimitReached
from frontier_tune.orchestration.ledger import Mark
from frontier_tune.recipe import Recipe

if TYPE_CHECKING:
    from frontier_tune.orchestration.batch import Batch

KEPT = 2
_REPLACED = ".replaced"
# What may differ between the run that wrote a checkpoint and the one that resumes it: how long to go on, where, and how
# cautiously (what a diverged run is told to change).
MAY_DIFFER = (
    "run.steps",
    "run.max_tokens",
    "run.max_hours",
    "run.max_cost",
    "run.rates",
    "run.max_failure_share",
    "run.directory",
    "run.stop_at_success",
    "learner.learning_rate",
    "learner.max_grad_norm",
    "parity.tolerance",
    "reliability",
)
# And by whom it is computed: the same but for roundings and who is quicker, so not where the very bytes were asked for.
MAY_MOVE = (
    "placement",
    "environment.workers",
    "learner.activation_checkpointing",
    "learner.threads",
    "learner.tokens_per_microbatch",
    "sampler.kv_cache_mb",
    "sampler.max_sequences",
    "sampler.threads",
)
MARGIN = 16 * 2**20  # bytes that a checkpoint leaves free: other files of the run grow, too
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class LoopState:
    """Where the loop stands. ``step`` counts finished steps; the plan of groups follows from it and the recipe's seed.

    ``ahead``: groups of later steps of the plan that were trained already, as overlap.Window counts them, by kind of tasks.
    """

    step: int = 0
    version: int = 0
    syncs: int = 0
    tokens_sampled: int = 0
    episodes: int = 0
    retried: int = 0
    masked: int = 0
    dropped: int = 0
    silent: int = 0
    seconds: float = 0.0
    tolerance: float | None = None
    recent_success: list[float] = field(default_factory=list)
    ahead: dict[str, list[int]] = field(default_factory=dict)
    ledger: Mark = Mark()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LoopState:
        """What ``asdict`` gave; a state of before there was a ledger has none."""
        return cls(**data | {"ledger": Mark(**data.get("ledger", {}))})

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
    moves = not (a.get("run.deterministic") or b.get("run.deterministic"))
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k) and not may_differ(k, moves))


def may_differ(key: str, moves: bool = True) -> bool:
    """Whether a run may be resumed with another value of ``key``; of a section that is listed every key may change.

    ``moves``: those of MAY_MOVE, too.
    """
    parts, listed = key.split("."), (*MAY_DIFFER, *(MAY_MOVE if moves else ()))
    return any(".".join(parts[:n]) in listed for n in range(1, len(parts) + 1))


# What a recipe may leave to its environment (preflight.settle), by section: it stands in what was written.
_SETTLED = {"environment": ("max_turns",), "algorithm": ("loss_constant", "overlong_limit", "kl_estimator")}


def same_recipe(written: Recipe, recipe: Recipe, where: Path) -> Recipe:
    """``recipe`` with what ``written`` took from the environment, and it doesn't name. Raises BadInput, naming the keys, where it
    differs from ``written`` in more than how long to go on."""
    for name, keys in _SETTLED.items():
        section, stands = getattr(recipe, name), getattr(written, name)
        open_ = {key: getattr(stands, key) for key in keys if getattr(section, key) is None}
        recipe = recipe.model_copy(update={name: section.model_copy(update=open_)})
    differ = differing_keys(written.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if differ:
        raise BadInput(
            f"{where}: was written by another recipe; these keys differ: {', '.join(differ)}. Resume with the run's own "
            f"recipe.yaml (only {', '.join(MAY_DIFFER)} may change, and without run.deterministic {', '.join(MAY_MOVE)}), or "
            "start a new run"
        )
    return recipe


def save(directory: Path, state: LoopState, recipe: Recipe, save_learner: Callable[[str], object], planned: int = 0) -> Path:
    """Write ``step-<n>`` under ``directory`` and keep the newest two. ``save_learner`` writes into the path it is given.

    ``planned``: bytes that it is expected to take, where no earlier one tells.

    Raises LimitReached, the checkpoints of before untouched, where the disk is full or about to be.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final, work = directory / f"step-{state.step:06d}", directory / f".writing-{os.getpid()}"
    for left in directory.glob(".writing-*"):  # of a process that was killed; the run's lock says that there is no other now
        shutil.rmtree(left)
    for aside in directory.glob(f"step-*{_REPLACED}"):  # of one that was killed between two renames, or just after them
        whole = aside.with_name(aside.name.removesuffix(_REPLACED))
        shutil.rmtree(aside) if whole.exists() else os.replace(aside, whole)
    _require_space(directory, planned)
    (work / "learner").mkdir(parents=True)
    try:
        save_learner(str(work / "learner"))
        (work / "loop.json").write_text(json.dumps(asdict(state), indent=1))
        (work / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json"), indent=1))
        files = {str(p.relative_to(work)): _digest(p) for p in sorted(work.rglob("*")) if p.is_file()}
        (work / "manifest.json").write_text(json.dumps({"step": state.step, "files": files}, indent=1))
        for path in [*work.rglob("*"), work]:
            _fsync(path)
        # The same step again, after a resume: until the new one has the name, the old one stands by its side, and verifies.
        replaced = directory / f"{final.name}{_REPLACED}"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(work, final)
        _fsync(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as e:
        if is_full(e):
            raise LimitReached(f"{_no_space(directory)}; nothing of the new checkpoint is left") from e
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in sorted(directory.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def _require_space(directory: Path, planned: int) -> None:
    """Raises LimitReached where a checkpoint of the size of the last one, or as ``planned``, would not fit."""
    last = max(directory.glob("step-*"), default=None)
    wanted = MARGIN + (sum(p.stat().st_size for p in last.rglob("*") if p.is_file()) if last else planned)
    if shutil.disk_usage(directory).free < wanted:
        raise LimitReached(f"{_no_space(directory)}: a checkpoint needs about {wanted / 2**20:.0f} MiB")


def _no_space(directory: Path) -> str:
    free = shutil.disk_usage(directory).free / 2**20
    return f"{directory}: no room for a checkpoint ({free:.0f} MiB free); free some. The checkpoints of before are untouched"


def is_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what caused it in another process, says that the disk is full."""
    while error is not None:
        # safetensors and Ray tell of the system's error in their text alone.
        if getattr(error, "errno", None) in _FULL or any(f"os error {n})" in str(error) for n in _FULL):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


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
    for path in sorted(directory.glob("step-*"), key=_age, reverse=True):
        wrong = problem(path)
        if wrong:
            warn(f"{path}: damaged checkpoint passed over: {wrong}")
            continue
        same_recipe(Recipe.model_validate_json((path / "recipe.json").read_text()), recipe, path)
        return path, LoopState.from_json(json.loads((path / "loop.json").read_text()))
    raise BadInput(
        f"{directory}: no checkpoint that verifies, so there is nothing to resume; start the run again without --resume"
    )


def _age(path: Path) -> tuple[str, bool]:
    """What sorts checkpoints: the newest last; one that another of its step has replaced comes before that."""
    return path.name.removesuffix(_REPLACED), not path.name.endswith(_REPLACED)


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
