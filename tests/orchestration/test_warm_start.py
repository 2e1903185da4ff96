"""Stages of a run: data checked against the recipe, trained once, gone on with after a stop, told in metrics and record."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from frontier_tune import recipe as recipes
from frontier_tune.cli import main
from frontier_tune.contracts import BadInput, Task
from frontier_tune.governance.digests import file_digest
from frontier_tune.orchestration import accepted, events, warm_start
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.reporting import metrics
from frontier_tune.traces.schema import Origin
from frontier_tune.traces.store import Store
from tests import tiny

WORK = {
    "id": "w1",
    "task": {"kind": "word", "data": {"number": 77, "side": "train"}},
    "origin": {"kind": "model", "name": "big-model-5"},
    "license": "LicenseRef-Internal",
    "verdict": "corrected",
    "reviewer": "jane",
    "corrections": [{"turn": 0, "content": "say blue"}],
    "messages": [{"role": "user", "content": "reply with the word wanted for 77"}, {"role": "assistant", "content": "say red"}],
}
STAGES = ["warm_start.sft.traces=traces/echo", "warm_start.dpo.pairs=traces/echo", "warm_start.allow_model_output=[big-model-5]"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy workflow with three golden demonstrations, a correction of a third party's work, and a tiny base."""
    home = tmp_path_factory.mktemp("workspace")
    tiny.write_workspace(home, tiny.build_base(home / "base"))
    (home / "work.jsonl").write_text(json.dumps(WORK) + "\n")
    recipe = str(home / "recipes" / "echo.yaml")
    assert main.main(["traces", "from-golden", "--recipe", recipe, "--n", "3"]) == 0
    assert main.main(["traces", "import", str(home / "work.jsonl"), "--recipe", recipe, "--strict"]) == 0
    return home


@pytest.fixture
def ready(workspace: Path) -> Callable[..., Any]:
    def make(*overrides: str, **changes: Any) -> Any:
        recipe = recipes.load(workspace / "recipes" / "echo.yaml", [*overrides, "learner.threads=1", "learner.device=cpu"])
        base, config = workspace / "base", AutoConfig.from_pretrained(workspace / "base")
        found = {
            "recipe": recipe,
            "root": workspace,
            "base": base,
            "config": config,
            "heldout": [],
            "options": {"company_seed": 7},
        }
        return SimpleNamespace(**found | changes)

    return make


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that are trained, here in this process and not in an actor."""
    found: list[str] = []

    def train(ready: Any, run: RunDir, stages: Sequence[warm_start.Stage], start: Path | None, note: Any) -> None:
        for stage in stages:
            found.append(stage.name)
            actor = warm_start.WarmStartActor(str(ready.base), ready.recipe, None)
            actor.train(stage.name, stage.rows, str(stage.directory(run)), str(start) if start else None, stage.about)
            start = stage.directory(run)

    monkeypatch.setattr(warm_start, "_train", train)
    return found


def run_dir(path: Path) -> RunDir:
    path.mkdir(exist_ok=True)
    return RunDir(path)


def test_no_recipe_of_ours_has_a_warm_start(root: Path, ready: Callable[..., Any], tmp_path: Path) -> None:
    for path in (root / "recipes").glob("*.yaml"):
        assert recipes.load(path).warm_start == recipes.WarmStart()
    assert warm_start.prepare(ready()) == [] and warm_start.run(ready(), run_dir(tmp_path), print) is None


def test_rows_are_those_of_the_files_with_their_origins(ready: Callable[..., Any]) -> None:
    sft, dpo = warm_start.prepare(ready(*STAGES))
    assert (len(sft.rows), len(dpo.rows)) == (4, 1)  # three of the golden program, the corrected turn
    assert [o["name"] for o in sft.about["origins"]] == ["big-model-5", "jane", "golden program of echo 1"]
    assert "4 demonstrations of traces/echo/demonstrations.jsonl" in warm_start.describe([sft, dpo])
    assert sft.about["source_sha256"] != sft.about["rows_sha256"]
    assert sft.about["made_for"]["environment"] == "envs/echo" and "not known" not in warm_start.describe([sft, dpo])


def test_rows_without_a_manifest_are_said_to_be_of_nobody_knows_which_company(ready: Callable[..., Any], workspace: Path) -> None:
    shutil.copy(workspace / "traces" / "echo" / "demonstrations.jsonl", workspace / "moved.jsonl")
    (stage,) = warm_start.prepare(ready("warm_start.sft.traces=moved.jsonl", STAGES[2]))
    assert stage.about["made_for"] is None
    assert "for which environment and company is not known: no manifest.json beside it" in warm_start.describe([stage])


@pytest.mark.parametrize(
    ("overrides", "changes", "reason"),
    [
        (STAGES[:2], {}, r"warm_start.sft.traces: .*'big-model-5': 1 rows.*allow_model_output: \[big-model-5\]"),
        ([*STAGES, "environment.max_tokens_per_turn=2"], {}, "a turn of .* tokens, but environment.max_tokens_per_turn is 2"),
        ([STAGES[0], STAGES[2], "sampler.max_model_len=64"], {"long": True}, "no rollout gets longer than"),
        (STAGES, {"options": {"company_seed": 8}}, "import the traces again with --recipe"),
        (STAGES, {"heldout": [Task("word", "heldout", {"number": 77, "side": "train"})]}, "'w1.*held-out task"),
        (["warm_start.sft.traces=traces/nothing"], {}, "no such file"),
        (["warm_start.dpo.pairs=empty.jsonl"], {}, "has no rows"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    ready: Callable[..., Any], workspace: Path, overrides: list[str], changes: dict[str, Any], reason: str
) -> None:
    (workspace / "empty.jsonl").write_text("")
    if changes.pop("long", False):
        long = Store.open(workspace / "traces" / "echo").demonstrations[0]
        opening = (replace(long.opening[0], content="word " * 80),)
        (workspace / "long.jsonl").write_text(json.dumps(replace(long, opening=opening).to_json()) + "\n")
        overrides = ["warm_start.sft.traces=long.jsonl", *overrides[1:]]
    with pytest.raises(BadInput, match=reason):
        warm_start.prepare(ready(*overrides, **changes))


def test_a_stage_is_trained_once_and_again_where_it_must_be(
    ready: Callable[..., Any], trained: list[str], tmp_path: Path
) -> None:
    run, here = run_dir(tmp_path / "run"), ready(*STAGES, "warm_start.sft.epochs=2")

    def again() -> list[str]:
        trained.clear()
        assert warm_start.run(here, run, lambda text: None) == run.root / "warm_start" / "dpo"
        return list(trained)

    def digests() -> list[dict[str, str]]:
        return [json.loads(p.read_text())["digests"] for p in sorted((run.root / "warm_start").glob("*/stage.json"))]

    assert again() == ["sft", "dpo"]
    first = digests()
    assert again() == []  # a resumed run
    (run.root / "warm_start" / "dpo" / "stage.json").unlink()  # killed in its second stage
    (run.root / "warm_start" / ".scratch-1").mkdir()
    assert again() == ["dpo"]
    assert sorted(p.name for p in (run.root / "warm_start").iterdir()) == ["dpo", "sft"]
    weights = run.root / "warm_start" / "sft" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert again() == ["sft", "dpo"]  # what was built on damage is not kept either
    assert digests() == first and first[0] != first[1]
    (run.checkpoints / "step-000001").mkdir(parents=True)
    here.root = tmp_path / "elsewhere"  # a run past its stages needs their data no more
    assert again() == []


class Mortal:
    """Is killed at its first try, with a stage half written."""

    def __init__(self, base_dir: str, recipe: Any, log: str) -> None:
        self.died = Path(log).with_name("died")

    def train(self, name: str, rows: Any, out: str, start: str | None, about: Any) -> dict[str, Any]:
        half = Path(out).parent / ".half"
        if not self.died.exists():
            self.died.touch()
            half.mkdir(parents=True)
            os.kill(os.getpid(), signal.SIGKILL)
        assert not half.exists()
        return {"history": [{"loss": 1.0}], "updates": 1, "seconds": 0.0}


@pytest.mark.slow
def test_a_trainer_that_is_killed_is_replaced(ready: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, here, said = run_dir(tmp_path / "run"), ready(STAGES[0], STAGES[2]), list[str]()
    monkeypatch.setattr(warm_start, "WarmStartActor", Mortal)
    warm_start._train(here, run, warm_start.prepare(here), None, said.append)
    assert "starting another (1 of" in said[0] and said[1:] == ["sft: loss 1.000 to 1.000 in 1 updates, 0 s"]
    assert [e["role"] for e in events.read(run.events)] == ["warm start"]


def test_metrics_summary_and_sources_tell_of_the_stages(ready: Callable[..., Any], trained: list[str], tmp_path: Path) -> None:
    run, here = run_dir(tmp_path / "run"), ready(*STAGES, "warm_start.sft.epochs=2")
    run.metrics.write_text('{"step": 1, "loss": 0.5}\n')
    for _ in range(2):  # written again by a resumed run, not twice
        warm_start.run(here, run, lambda text: None)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(r.get("stage"), r["step"], r.get("update")) for r in rows] == [
        ("sft", 0, 1),
        ("sft", 0, 2),
        ("dpo", 0, 1),
        (None, 1, None),
    ]
    assert [r["step"] for r in metrics.read(run.metrics)] == [1]
    assert {k: len(v) for k, v in metrics.stages(run.metrics).items()} == {"sft": 2, "dpo": 1}
    (dpo, sft) = warm_start.sources(run)
    assert sft["name"] == "warm start sft" and sft["uri"] == "traces/echo/demonstrations.jsonl"
    assert dpo["annotations"]["allow_model_output"] == ["big-model-5"]
    assert dpo["annotations"]["made_for"]["environment"] == "envs/echo"
    origins = [(o["kind"], o["name"], o["license"]) for o in sft["annotations"]["origins"]]
    assert ("model", "big-model-5", "LicenseRef-Internal") in origins
    assert ("program", "golden program of echo 1", "LicenseRef-Workspace") in origins


def test_accepted_tasks_train_beside_the_generator_s(workspace: Path) -> None:
    home = workspace / "traces" / "echo"
    recipe = recipes.load(workspace / "recipes" / "echo.yaml", ["environment.accepted_tasks=traces/echo"])
    options = json.loads((home / "manifest.json").read_text())["options"]
    with pytest.raises(BadInput, match="has none; accept some"):
        accepted.tasks(recipe, workspace, options)
    assert main.main(["traces", "accept", str(home), "all", "--by", "jane"]) == 0
    assert accepted.tasks(recipe, workspace, options) == [Task("word", "train", {"number": 77, "side": "train"})]
    with pytest.raises(BadInput, match="environment.accepted_tasks: .* was made with envs/echo and options"):
        accepted.tasks(recipe, workspace, {**options, "company_seed": 99})
    (listed,) = accepted.sources(SimpleNamespace(recipe=recipe, root=workspace))
    assert listed["digest"] == {"sha256": file_digest(home / "tasks.jsonl")} and listed["uri"] == "traces/echo/tasks.jsonl"
    (origin,) = listed["annotations"]["origins"]
    assert (origin["name"], origin["license"], origin["tasks"], origin["accepted_by"]) == (
        "big-model-5",
        "LicenseRef-Internal",
        1,
        ["jane"],
    )
    assert Origin(**WORK["origin"]).name == "big-model-5"
