"""A training run refuses real writes with exit code 2, unless the recipe names the tool and the policy file allows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from frontier_tune.cli.main import main

DESK = Path(__file__).parents[1] / "evaluation" / "defects" / "desk.py"


def test_a_real_write_in_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "envs" / "desk"
    home.mkdir(parents=True)
    shutil.copy(DESK, home / "environment.py")
    (home / "__init__.py").write_text("from envs.desk.environment import Real\n\nENVIRONMENT = Real\n")
    recipe = tmp_path / "recipes" / "desk.yaml"
    recipe.parent.mkdir()
    sizes = "train_tasks: 8, heldout_tasks: 4, general_tasks: 0"
    recipe.write_text(f"base: nano\nenvironment: {{path: envs/desk, {sizes}}}\nrun: {{steps: 1}}\n")
    allow = "environment.allow_real_writes=[enter]"

    assert main(["tune", str(recipe), "--dry-run"]) == 2
    assert "envs/desk has tools that write to production: enter" in capsys.readouterr().err
    assert main(["tune", str(recipe), "--dry-run", "placement.gpus_per_node=1", "placement.gpu_memory_gib=80"]) == 2
    assert "envs/desk has tools that write to production: enter" in capsys.readouterr().err
    assert main(["tune", str(recipe), "--dry-run", allow]) == 2
    assert "policy.yaml does not allow envs/desk to write to production by enter" in capsys.readouterr().err
    (tmp_path / "policy.yaml").write_text("real_writes: {envs/desk: [enter]}\n")
    assert main(["tune", str(recipe), "--dry-run", allow]) == 0
    assert "allow_real_writes:\n  - enter" in capsys.readouterr().out
