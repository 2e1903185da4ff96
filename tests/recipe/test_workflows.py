"""The workflows of the repository are tuned under one recipe: theirs differ in the environment's name alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from frontier_tune import recipe as recipes


def resolved(path: Path) -> dict[str, Any]:
    recipes.load(path)  # valid
    return dict(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", ["hr_triage", "crm_cleanup", "invoice_matching"])
def test_one_recipe_for_all_workflows(root: Path, name: str) -> None:
    ours, main = (resolved(root / "recipes" / f"{which}.yaml") for which in (name, "month_end_close"))
    assert ours["environment"].pop("path") == f"envs/{name}"
    del main["environment"]["path"]
    assert ours == main
