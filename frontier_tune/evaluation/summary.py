"""evaluation.json: what a run's evaluation found, in the form that other tools read (docs/run-directory.md)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.evaluation.evaluate import Scores, compare

FILE = "evaluation.json"
_SIDE_KEYS = ("success", "success_sampled", "reward", "n", "ci95", "by_kind")
_TRAIN_KEYS = ("seconds", "steps", "tokens_sampled")


def side(greedy: Scores, sampled: Scores | None) -> dict[str, Any]:
    """One policy: its greedy scores and, where measured, success at temperature 1 (else null)."""
    data = greedy.to_json()
    data["success_sampled"] = sampled.success if sampled else None
    data["success_sampled_ci95"] = list(sampled.ci95) if sampled else None
    data["n_sampled"] = sampled.n if sampled else 0
    return data


def summarize(
    base: Scores,
    tuned: Scores | None,
    *,
    base_sampled: Scores | None = None,
    tuned_sampled: Scores | None = None,
    general_before: Scores | None = None,
    general_after: Scores | None = None,
    canaries: Mapping[str, float] | None = None,
    train: Mapping[str, float] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json. What was not measured is null. ``extra`` adds keys and may not replace any."""
    summary: dict[str, Any] = {
        "base": side(base, base_sampled),
        "tuned": side(tuned, tuned_sampled) if tuned else None,
        "paired": compare(base, tuned).to_json() if tuned else None,
        "general_before": general_before.success if general_before else None,
        "general_after": general_after.success if general_after else None,
        "general": {
            "before": general_before.to_json() if general_before else None,
            "after": general_after.to_json() if general_after else None,
            "paired": compare(general_before, general_after).to_json() if general_before and general_after else None,
        },
        "canaries": dict(canaries or {}),
        "train": dict(train) if train else None,
    }
    taken = sorted(set(extra or {}) & set(summary))
    if taken:
        raise ValueError(f"summarize: extra may not replace {taken}")
    return {**summary, **(extra or {})}


def check(summary: Any, where: str = FILE) -> list[str]:
    """What keeps ``summary`` from being a valid evaluation.json; an empty list if nothing does."""
    if not isinstance(summary, dict):
        return [f"{where}: not a JSON object"]
    problems = []
    needed = ("base", "tuned", "general_before", "general_after", "canaries", "train")
    problems += [f"{where}: key '{k}' is missing" for k in needed if k not in summary]
    for name in ("base", "tuned"):
        part = summary.get(name)
        if part is None and name == "tuned":
            continue
        if not isinstance(part, dict):
            problems.append(f"{where}: '{name}' is not an object")
            continue
        problems += [f"{where}: key '{name}.{k}' is missing" for k in _SIDE_KEYS if k not in part]
        problems += _shares(part, f"{where}: {name}")
    train = summary.get("train")
    if isinstance(train, dict):
        problems += [f"{where}: key 'train.{k}' is missing" for k in _TRAIN_KEYS if k not in train]
    canaries = summary.get("canaries")
    if isinstance(canaries, dict):
        problems += [f"{where}: canaries.{k}: {v!r} is no share of 1" for k, v in canaries.items() if not _is_share(v)]
    return problems


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1


def _shares(part: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    if "success" in part and not _is_share(part["success"]):
        problems.append(f"{where}.success: {part['success']!r} is no share of 1")
    ci = part.get("ci95")
    if ci is not None and not (isinstance(ci, list) and len(ci) == 2 and all(map(_is_share, ci)) and ci[0] <= ci[1]):
        problems.append(f"{where}.ci95: {ci!r} is not [low, high]")
    for kind, share in (part.get("by_kind") or {}).items():
        problems += _shares(share, f"{where}.by_kind.{kind}")
    return problems


def write(run_dir: Path, summary: Mapping[str, Any]) -> Path:
    """Write evaluation.json into ``run_dir``, whole or not at all. Raises ValueError where ``check`` finds fault."""
    problems = check(dict(summary))
    if problems:
        raise ValueError("\n".join(problems))
    path = run_dir / FILE
    tmp = path.with_name(FILE + ".tmp")
    with tmp.open("w", encoding="utf-8") as f:
        f.write(json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
    return path


def read(run_dir: Path) -> dict[str, Any]:
    """The evaluation.json of a run. Raises BadInput where it is missing or not valid."""
    path = run_dir / FILE
    if not path.is_file():
        raise BadInput(f"{path}: no evaluation here; run 'frontier-tune eval' on this run first")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise BadInput(f"{path}: not valid JSON: {e}") from None
    problems = check(data, str(path))
    if problems:
        raise BadInput("\n".join(problems))
    return data
