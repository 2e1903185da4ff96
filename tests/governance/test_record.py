"""The run record: against sha256sum and git, and every kind of tampering with a run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.governance import record
from frontier_tune.governance.datasheet import parse
from frontier_tune.governance.digests import tree, tree_digest
from tests.governance.test_datasheet import SHEET


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "runs/one"
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "rollouts/step-00001.jsonl",
        "evaluation/base-greedy.jsonl",
    ):
        write(root / name, f"content of {name}")
    for name in (
        "engine.log",
        "lock",
        "report.html",
        "learning-curve.png",
        "checkpoints/step-000001/loop.json",
        "wandb/run",
        "sync/v000001/a",
    ):
        write(root / name, "may change")
    return root


@pytest.fixture
def inputs(tmp_path: Path) -> record.Inputs:
    workspace = tmp_path / "workspace"
    for name in (
        "envs/sums/__init__.py",
        "envs/sums/generate.py",
        "rewards/house.py",
        "base/config.json",
        "base/model.safetensors",
        "cpu.lock",
    ):
        write(workspace / name, f"content of {name}")
    write(workspace / "envs/sums/__pycache__/a.pyc", "compiled")
    return record.Inputs(
        recipe={"seed": 3, "base": "nano"},
        base=workspace / "base",
        base_name="nano",
        environment=workspace / "envs/sums",
        environment_name="envs/sums",
        rewards=workspace / "rewards",
        lock_files=[workspace / "cpu.lock"],
        workspace=workspace,
        seeds={"run": 3, "company": 7},
        device={"kind": "cpu", "threads": 2},
        datasheets=[parse(SHEET)],
        base_license="Apache-2.0",
    )


def build(run: Path, inputs: record.Inputs) -> dict[str, Any]:
    made = record.build(run, inputs, started=1.7e9, finished=1.7e9 + 60)
    record.write(run, made)
    return made


def part(made: dict[str, Any], name: str) -> dict[str, Any]:
    return next(d for d in made["predicate"]["buildDefinition"]["resolvedDependencies"] if d["name"] == name)


def test_it_is_an_in_toto_statement_over_the_adapter(run: Path, inputs: record.Inputs) -> None:
    made = build(run, inputs)
    assert made["_type"] == "https://in-toto.io/Statement/v1" and made["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [s["name"] for s in made["subject"]] == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    details = made["predicate"]["runDetails"]
    assert {b["name"] for b in details["byproducts"]} == {
        "recipe.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "rollouts/step-00001.jsonl",
        "evaluation/base-greedy.jsonl",
    }
    assert details["metadata"] == {
        "invocationId": "one",
        "startedOn": "2023-11-14T22:13:20Z",
        "finishedOn": "2023-11-14T22:14:20Z",
    }
    internal = made["predicate"]["buildDefinition"]["internalParameters"]
    assert internal["seeds"] == {"run": 3, "company": 7} and "torch" in internal["packages"]
    assert part(made, "base")["annotations"]["datasheets"][0]["license"] == "Apache-2.0"
    assert record.read(run) == made


def test_digests_are_those_of_sha256sum(run: Path, inputs: record.Inputs) -> None:
    made = build(run, inputs)
    told = subprocess.run(
        ["sha256sum", *record.listed(made)], cwd=run, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert record.listed(made) == {line.split("  ")[1]: line.split("  ")[0] for line in told}


def test_code_is_hashed_without_what_running_it_leaves(inputs: record.Inputs, run: Path) -> None:
    made = build(run, inputs)
    assert set(part(made, "environment")["annotations"]["files"]) == {"__init__.py", "generate.py"}
    before = part(made, "environment")["digest"]
    write(inputs.environment / "generate.py", "another generator")
    assert part(build(run, inputs), "environment")["digest"] != before
    assert tree_digest(tree(inputs.base)) == part(made, "base")["digest"]["sha256"]


def test_the_commit_and_whether_it_is_dirty(inputs: record.Inputs, run: Path) -> None:
    where = inputs.workspace
    assert record.git_commit(where / "nowhere") is None

    def git(*args: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", str(where), *identity, *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    assert record.git_commit(where) == (git("rev-parse", "HEAD"), False)
    write(where / "rewards/house.py", "edited")
    assert part(build(run, inputs), "code")["annotations"] == {"dirty": True}


def test_a_run_as_it_was_recorded_has_no_problems(run: Path, inputs: record.Inputs) -> None:
    build(run, inputs)
    write(run / "report.html", "rebuilt")
    write(run / "engine.log", "more")
    write(run / "checkpoints/step-000002/loop.json", "later")
    assert record.verify(run) == []


def test_every_tampering_is_listed(run: Path, inputs: record.Inputs, tmp_path: Path) -> None:
    build(run, inputs)
    write(run / "metrics.jsonl", "nicer numbers")
    (run / "rollouts/step-00001.jsonl").unlink()
    write(run / "adapter/.hidden", "x")
    write(run / ".git/hooks/post-checkout", "x")
    shutil.move(run / "evaluation.json", tmp_path / "evaluation.json")
    os.symlink(tmp_path / "evaluation.json", run / "evaluation.json")
    os.symlink("/etc", run / "evaluation/more")
    shutil.rmtree(run / "wandb")
    os.symlink(tmp_path, run / "wandb")
    os.mkfifo(run / "adapter/pipe")
    problems = record.verify(run)
    assert {p.split(": ")[0]: p.split(": ")[1].split(" (")[0] for p in problems} == {
        "metrics.jsonl": "was changed",
        "rollouts/step-00001.jsonl": "is missing",
        "adapter/.hidden": "was added, the record does not list it",
        ".git/hooks/post-checkout": "was added, the record does not list it",
        "evaluation.json": "is a symbolic link",
        "evaluation/more": "is a symbolic link",
        "wandb": "is a symbolic link",
        "adapter/pipe": "is neither file nor directory",
    }


def test_a_changed_record_is_refused(run: Path, inputs: record.Inputs) -> None:
    made = build(run, inputs)
    (run / "record.json").write_text(json.dumps(made, indent=1))
    with pytest.raises(BadInput, match="edited after it was written"):
        record.verify(run)
    (run / "record.json").write_text('{"subject": []}')
    with pytest.raises(BadInput, match="not a run record"):
        record.verify(run)
    (run / "record.json").unlink()
    with pytest.raises(BadInput, match="no record here"):
        record.verify(run)


def test_what_cannot_be_recorded_is_refused(run: Path, inputs: record.Inputs) -> None:
    os.symlink("/etc/hostname", run / "adapter/link")
    with pytest.raises(BadInput, match="can't be recorded"):
        build(run, inputs)
    shutil.rmtree(run / "adapter")
    with pytest.raises(BadInput, match="no adapter/ to record"):
        build(run, inputs)


def test_data_sheets_and_lock_files_are_found_where_they_lie(run: Path, inputs: record.Inputs) -> None:
    write(inputs.base / "datasheets/good.json", json.dumps(SHEET))
    write(inputs.base / "datasheets/bad.json", json.dumps({**SHEET, "license": "unknown"}))
    write(inputs.workspace / "requirements/cpu.lock", "torch==2.13.0")
    made = build(run, dataclasses.replace(inputs, datasheets=(), lock_files=()))
    notes = part(made, "base")["annotations"]
    assert [s["title"] for s in notes["datasheets"]] == [SHEET["title"]]
    assert len(notes["datasheets_refused"]) == 1 and "bad.json: license: 'unknown'" in notes["datasheets_refused"][0]
    assert part(made, "lock file cpu.lock")["digest"]["sha256"]


def test_a_base_of_links_is_recorded_by_what_they_point_to(run: Path, inputs: record.Inputs, tmp_path: Path) -> None:
    plain = part(build(run, inputs), "base")["digest"]
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for path in inputs.base.iterdir():
        os.symlink(path, cache / path.name)
    assert part(build(run, dataclasses.replace(inputs, base=cache)), "base")["digest"] == plain
    os.symlink(tmp_path / "nowhere", cache / "broken")
    with pytest.raises(BadInput, match="broken: a symbolic link"):
        build(run, dataclasses.replace(inputs, base=cache))


def test_what_a_run_began_with_is_recorded_not_what_lies_there_in_the_end(run: Path, inputs: record.Inputs) -> None:
    began = record.build(run, inputs, started=0, finished=1)["predicate"]["buildDefinition"]
    entries = {d["name"]: d for d in began["resolvedDependencies"]}
    pinned = {
        f"{name}/{p}": digest for name in ("base", "environment") for p, digest in entries[name]["annotations"]["files"].items()
    }
    write(inputs.environment / "added.py", "x = 1")
    write(inputs.base / "config.json", "another")
    ended = record.build(
        run,
        dataclasses.replace(inputs, pinned=pinned, algorithm=inputs.environment, algorithm_name="m:A", extra={"inputs": {}}),
        started=0,
        finished=1,
    )["predicate"]["buildDefinition"]
    found = {d["name"]: d for d in ended["resolvedDependencies"]}
    assert all(found[name] == entries[name] for name in ("base", "environment"))
    assert found["algorithm"]["uri"] == "m:A" and "added.py" in found["algorithm"]["annotations"]["files"]
    assert ended["internalParameters"]["inputs"] == {}
