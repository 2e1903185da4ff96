"""What a run learns from, written down at its start: base, environment, rewards, tasks. A resumed run goes on with the same.

A recipe names these by path alone. Were one of them another at a resume, the run would go on by another reward, or skip and
repeat tasks, and its evaluation before training would be of something else than the one after; and nothing would show it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, content_hash
from frontier_tune.governance.digests import file_digest, tree
from frontier_tune.orchestration.run_dir import RunDir, write_whole

if TYPE_CHECKING:
    from frontier_tune.orchestration.preflight import Ready

FILE = "inputs.json"
_SHOWN = 4


def take(ready: Ready) -> dict[str, str]:
    """SHA-256 of every file of base, environment, rewards and an own algorithm, and of both lists of tasks, by name."""
    from frontier_tune.sdk.registry import source_directory

    recipe, root = ready.recipe, ready.root
    trees = {
        "base": tree(Path(ready.base)),
        "environment": tree(source_directory(recipe.environment.path, root), code=True),
        "rewards": tree(root / "rewards", code=True) if (root / "rewards").is_dir() else {},
    }
    found = {f"{name}/{path}": digest for name, files in trees.items() for path, digest in files.items()}
    module = root / (recipe.algorithm.name.partition(":")[0].replace(".", "/") + ".py")
    if ":" in recipe.algorithm.name and module.is_file():
        found["algorithm"] = file_digest(module)
    tasks = {"train": ready.train, "heldout": ready.heldout}
    return found | {f"tasks/{split}": content_hash([t.hash for t in listed]) for split, listed in tasks.items()}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of what is another, gone or new."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def pin(ready: Ready, run: RunDir, note: Callable[[str], None], accept: bool = False) -> list[str]:
    """Write a new run's inputs; of one that has some, compare. Returns what has changed, where that is accepted.

    Accepted changes are written down in the file, and the evaluation before training is taken anew. Raises BadInput, naming the
    files, where something has changed and ``accept`` is false.
    """
    path, now = run.root / FILE, take(ready)
    if not path.is_file():
        _write(path, now, [], _rows(run))
        return []
    written: dict[str, Any] = json.loads(path.read_text())
    found = changes(written["files"], now)
    if not found:
        return []
    names = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    if not accept:
        raise BadInput(
            f"{run.root}: since this run began these have changed: {names}. Put back what was there, start a new run, or resume "
            "with --accept-changes: the run's record will then say so, and its base be evaluated anew"
        )
    history = [*written["changes"], {"ledger_rows": _rows(run), "from": {n: written["files"].get(n) for n in found}}]
    for evaluation in [*(run.root / "evaluation").glob("base-*"), *(run.root / "evaluation").glob("canaries*")]:
        evaluation.unlink()
    _write(path, now, history, written["ledger_rows"])
    note(f"inputs     changed since the run began: {names}")
    return found


def _write(path: Path, files: Mapping[str, str], changed: Sequence[Any], rows: int) -> None:
    """``rows``: of the ledger when the inputs were first taken; above 0 where a version that did not take any began the run."""
    write_whole(path, json.dumps({"ledger_rows": rows, "files": files, "changes": changed}, indent=1) + "\n")


def _rows(run: RunDir) -> int:
    """Where in the run it was: how many rows the ledger had then."""
    return run.ledger.read_bytes().count(b"\n") if run.ledger.is_file() else 0
