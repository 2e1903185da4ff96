"""What a run learns from, written down at its start: base, environment, rewards, tasks. A resumed run goes on with the same.

A recipe names these by path alone. Were one of them another at a resume, the run would go on by another reward, or skip and
repeat tasks, and its evaluation before training would be of something else than the one after; and nothing would show it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, content_hash
from frontier_tune.governance.digests import tree
from frontier_tune.orchestration import accepted
from frontier_tune.orchestration.run_dir import RunDir, write_whole
from frontier_tune.recipe import strict_yaml

if TYPE_CHECKING:
    from frontier_tune.orchestration.preflight import Ready

FILE = "inputs.json"
_SHOWN = 4


def take(ready: Ready, base: bool = True) -> dict[str, str]:
    """SHA-256 of every file of base, environment, rewards and an own algorithm, and of both lists of tasks, by name.

    ``base``: its files, too, which take minutes where they are large.
    """
    from frontier_tune.algorithms import registry as algorithms
    from frontier_tune.sdk.registry import source

    recipe, root = ready.recipe, ready.root
    own = algorithms.source(recipe.algorithm.name, root)
    trees = {
        "base": tree(Path(ready.base)) if base else {},
        "environment": tree(source(recipe.environment.path, root), code=True),
        "rewards": tree(root / "rewards", code=True) if (root / "rewards").is_dir() else {},
        "algorithm": tree(own, code=True) if own else {},
    }
    found = {f"{name}/{path}": digest for name, files in trees.items() for path, digest in files.items()}
    tasks = {"train": ready.train, "heldout": ready.heldout}
    return found | {f"tasks/{split}": content_hash([t.hash for t in listed]) for split, listed in tasks.items()}


def written(run: RunDir) -> dict[str, Any]:
    """What ``pin`` wrote: ``files`` that the run learns from and ``changes`` on the way; both empty where a run has none."""
    path = run.root / FILE
    return dict(json.loads(path.read_text())) if path.is_file() else {"files": {}, "changes": []}


def changed_since(ready: Ready, run: RunDir) -> list[str]:
    """What is another than when the run began, or was resumed with ``--accept-changes``."""
    files = written(run)["files"]
    return changes(files, take(ready)) if files else []


def require_same(ready: Ready, run: RunDir) -> None:
    """Before processes that died in a run are replaced: what starts anew reads its code anew. Raises BadInput, naming files of
    environment, rewards or algorithm that are others; the base is not read for it."""
    before = {name: digest for name, digest in written(run)["files"].items() if not name.startswith("base/")}
    if before and (found := changes(before, take(ready, base=False))):
        raise BadInput(
            f"{run.root}: a process died, and since this run began these have changed, which another in its place would read: "
            f"{_names(found)}. Put back what was there and resume, or resume with --accept-changes"
        )


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of what is another, gone or new."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def pin(ready: Ready, run: RunDir, note: Callable[[str], None], accept: bool = False) -> list[str]:
    """Write a new run's inputs; of one that has some, compare. Returns what has changed, where that is accepted.

    Accepted changes are written down in the file, and evaluations before training are taken anew. Raises BadInput, naming the
    files, where something has changed and ``accept`` is false.
    """
    path, now = run.root / FILE, take(ready)
    if not path.is_file():
        _write(path, {"ledger_rows": _rows(run), "files": now, "sources": accepted.sources(ready), "changes": []})
        return []
    before = written(run)
    found = changes(before["files"], now)
    if found and not accept:
        raise BadInput(
            f"{run.root}: since this run began these have changed: {_names(found)}. Put back what was there, start a new run, or "
            "resume with --accept-changes: the run's record will then say so, and its base be evaluated anew"
        )
    if found:
        for name in ("base", "canaries", "sft", "dpo"):
            for evaluation in (run.root / "evaluation").glob(f"{name}*"):
                evaluation.unlink()
        note(f"inputs     changed since the run began: {_names(found)}")
        change = {"ledger_rows": _rows(run), "from": {n: before["files"].get(n) for n in found}}
        _write(path, before | {"files": now, "sources": accepted.sources(ready), "changes": [*before["changes"], change]})
    return found


def goes_on(ready: Ready, run: RunDir, note: Callable[[str], None]) -> None:
    """Write down the settings that a run goes on with, and which of them are others than before.

    Once its processes stand and its checkpoint was found to fit: a resume that fails at its start has changed nothing.
    """
    content, now = written(run), ready.recipe.model_dump(mode="json")
    before = content.get("recipe") or (strict_yaml.read_recipe(run.recipe_file.read_text()) if run.recipe_file.is_file() else now)
    was, is_ = _settings(before), _settings(now)
    differ = {k: [was.get(k), is_.get(k)] for k in sorted(was.keys() | is_.keys()) if was.get(k) != is_.get(k)}
    if differ:
        note("recipe     changed since the run began: " + ", ".join(f"{k} {a} -> {b}" for k, (a, b) in differ.items()))
        content["changes"] = [*content["changes"], {"ledger_rows": _rows(run), "recipe": differ}]
    _write(run.root / FILE, content | {"recipe": now})


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's keys with their values, but for where its runs lie; those that an earlier version did not have, too."""
    with suppress(BadInput):  # of a recipe that this version would not take, as it stands
        recipe = recipes.parse(recipe).model_dump(mode="json")
    found = _flat(recipe)
    found.pop("run.directory", None)
    return found


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {k: v for name, part in node.items() for k, v in _flat(part, f"{prefix}{name}.").items()}


def _names(found: Sequence[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """``ledger_rows``: of the ledger when the inputs were first taken; above 0 where a version that did not take any began the
    run. ``sources``: what the record says of tasks that people accepted. ``recipe``: settings that the run last went on by."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _rows(run: RunDir) -> int:
    """Where in the run it was: how many rows the ledger had then."""
    return run.ledger.read_bytes().count(b"\n") if run.ledger.is_file() else 0
