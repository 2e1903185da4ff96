"""The command line: overrides anywhere, one message on an error, exit codes, nothing heavy for --help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.cli import commands, main
from frontier_tune.contracts import BadInput, GateFailed, LimitReached


def test_overrides_may_stand_anywhere() -> None:
    a = main.parse(["tune", "r.yaml", "seed=1", "--dry-run", "learner.learning_rate=2e-3"])
    assert (a.recipe, a.set, a.dry_run) == ("r.yaml", ["seed=1", "learner.learning_rate=2e-3"], True)
    a = main.parse(["tune", "--resume", "runs/x", "run.steps=9"])
    assert (a.recipe, a.set, a.resume) == (None, ["run.steps=9"], "runs/x")
    a = main.parse(["tune", "r.yaml", "--resume"])
    assert (a.recipe, a.resume) == ("r.yaml", "latest")


@pytest.mark.parametrize("wrong", [["tune", "r.yaml", "--steps", "3"], ["report", "a", "b=c"], ["fly"], []])
def test_an_unknown_argument_is_bad_input(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main.parse(wrong)
    assert e.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom frontier_tune.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "tune" in done.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [(BadInput("no such base"), 2), (GateFailed("digest of layer 3"), 3), (LimitReached("budget"), 4), (ValueError("bug"), 1)],
)
def test_errors_are_one_message_and_an_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.delenv("FRONTIER_TUNE_DEBUG", raising=False)
    monkeypatch.setattr(commands, "report", fail)
    assert main.main(["report"]) == code
    said = capsys.readouterr()
    assert str(error) in said.err and "Traceback" not in said.err and not said.out
    monkeypatch.setenv("FRONTIER_TUNE_DEBUG", "1")
    with pytest.raises(type(error)):
        main.main(["report"])


def test_a_mistyped_key_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learner: {learning_rat: 1.0e-3}\n")
    assert main.main(["tune", str(recipe)]) == 2
    assert "learner.learning_rate" in capsys.readouterr().err
    assert main.main(["tune", str(tmp_path / "s.yaml")]) == 2
    assert "r.yaml" in capsys.readouterr().err
    assert main.main(["tune"]) == 2
    assert "recipe" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["report", "nothing"], ["verify"], ["eval", "nothing"], ["tune", "--resume"]):
        assert main.main(command) == 2
        assert "no run there" in capsys.readouterr().err


def test_json_of_experts_is_all_that_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from frontier_tune.orchestration import narrow

    def command(target: str, share: float, out: str | None, note: Callable[[str], None]) -> dict[str, Any]:
        note("a table")
        return {"target": target, "share": share}

    monkeypatch.setattr(narrow, "command", command)
    assert main.main(["experts", "runs/x", "--share", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"target": "runs/x", "share": 0.5}
    assert main.main(["experts", "runs/x"]) == 0
    assert capsys.readouterr().out == "a table\n"


def test_a_run_resumed_by_another_recipe_is_refused_and_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even before its first checkpoint: its evaluation of the base is of its own company."""
    from frontier_tune import recipe as recipes
    from frontier_tune.orchestration.run_dir import RunDir
    from frontier_tune.recipe import Recipe

    monkeypatch.chdir(tmp_path)
    run = RunDir(tmp_path / "runs" / "cut")
    run.root.mkdir(parents=True)
    run.write_recipe(Recipe())
    assert main.main(["tune", "--resume", "cut", "company.seed=9", "run.steps=3"]) == 2
    said = capsys.readouterr().err
    assert "company.seed" in said and "run.steps," in said
    assert recipes.load(run.recipe_file) == Recipe()


def test_environments_are_listed_and_shown(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root / "tests" / "toy_env")
    assert main.main(["env", "list"]) == 0
    assert "envs/echo" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "frontier_tune.cli.main", "env", "show", "envs/echo"],
        cwd=root / "tests" / "toy_env",
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "say" in done.stdout and "reward 1" in done.stdout


BROKEN = """
from frontier_tune.sdk import WorkflowEnv
class Desk(WorkflowEnv):
    name = "desk"
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = undefined
    def tasks(self, split, n, seed): ...
    def begin(self, task): ...
    def grade(self): ...
"""


def test_an_environment_that_cannot_be_shown_says_whose_fault_it_is(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "envs" / "unfinished_desk").mkdir(parents=True)
    (tmp_path / "envs" / "unfinished_desk" / "__init__.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    assert main.main(["env", "show", "envs/unfinished_desk"]) == 2
    said = capsys.readouterr().err
    assert "NameError: name 'undefined' is not defined" in said and "unfinished_desk/__init__.py:7" in said
    assert "a fault of frontier-tune" not in said


def test_an_environment_without_a_golden_program_is_shown(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (root / "tests" / "toy_env" / "envs" / "echo" / "__init__.py").read_text()
    (tmp_path / "envs" / "no_golden").mkdir(parents=True)
    (tmp_path / "envs" / "no_golden" / "__init__.py").write_text(text.replace("def golden(", "def _golden("))
    monkeypatch.chdir(tmp_path)
    assert main.main(["env", "show", "envs/no_golden"]) == 0
    said = capsys.readouterr().out
    assert "a training task (word)" in said and "no golden program: " in said
