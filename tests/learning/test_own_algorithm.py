"""The example of docs/algorithms.md, as it stands there: short, importable from a workspace, and it learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from frontier_tune import recipe as recipes
from frontier_tune.algorithms.registry import ALGORITHMS, build
from frontier_tune.learning.learner import Learner
from tests.learning.test_algorithms import as_sampled, chances

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_example_is_short_and_learns(bases, recipe, episodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 40
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "imitate.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    section = next(s for s in map(yaml.safe_load, blocks("yaml")) if ":" in s["algorithm"].get("name", ""))["algorithm"]
    asked = recipes.Recipe.model_validate({**recipe("learner.learning_rate=0.02").model_dump(), "algorithm": section})
    assert vars(build(asked, tmp_path))["cap"] == 1.5
    learner = Learner(bases(), asked)
    played, _ = episodes()
    before = chances(learner, played)
    for _ in range(4):
        metrics = learner.learn([as_sampled(learner, played)])
    gain = [b - a for a, b in zip(before, chances(learner, played), strict=True)]
    assert min(g for g, t in zip(gain, played, strict=True) if t.spec.member == 0) > 0.1
    assert metrics["kl_base"] > 0


def test_every_recipe_on_the_page_is_valid_and_every_algorithm_is_on_it() -> None:
    for block in blocks("yaml"):
        section = yaml.safe_load(block)
        recipe = recipes.parse(section)
        if ":" not in recipe.algorithm.name:
            build(recipe, strict=True)
    for name in ALGORITHMS:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        for lines in re.findall(r"`(\w+: [^`]+)`", row.rsplit("|", 2)[1]):
            build(recipes.parse({"algorithm": {"name": name, **yaml.safe_load(lines)}}), strict=True)
