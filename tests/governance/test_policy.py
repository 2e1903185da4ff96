"""The policy file and the gate before a run: nothing reaches production unless recipe and policy both say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.governance import policy
from frontier_tune.orchestration.preflight import check_effects

EFFECTS = {"read": "virtual", "order": "real", "submit": "own"}


def recipe(*allowed: str) -> recipes.Recipe:
    return recipes.parse({"environment": {"path": "envs/shop", "allow_real_writes": list(allowed)}})


def test_recipe_and_policy_both_have_to_allow_a_real_write(tmp_path: Path) -> None:
    check_effects(recipe(), tmp_path, {"read": "virtual", "submit": "own"})
    with pytest.raises(BadInput, match=r"envs/shop has tools that write to production: order.*allow_real_writes: \[order\]"):
        check_effects(recipe(), tmp_path, EFFECTS)
    with pytest.raises(BadInput, match="'read' is virtual, not real"):
        check_effects(recipe("read"), tmp_path, EFFECTS)
    with pytest.raises(BadInput, match=r"policy\.yaml does not allow envs/shop to write to production by order"):
        check_effects(recipe("order"), tmp_path, EFFECTS)
    (tmp_path / "policy.yaml").write_text("real_writes:\n  envs/shop: [order]\n")
    check_effects(recipe("order"), tmp_path, EFFECTS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("real_write: {}", "real_write: "),
        ("real_writes: [", "not valid YAML"),
        ("- a", "the file"),
        ("real_writes: {}\nreal_writes: {envs/shop: [order]}\n", r"a key stands twice(.|\n)*'real_writes' again(.|\n)*line 2"),
        ("real_writes:\n  envs/shop: []\n  envs/shop: [order]\n", "'envs/shop' again"),
    ],
)
def test_a_wrong_policy_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(BadInput, match=why):
        policy.load(tmp_path)


def test_an_empty_policy_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("# nothing yet\n")
    assert policy.load(tmp_path).real_writes == {}
