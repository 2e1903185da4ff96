"""``frontier-tune headroom`` through the whole chain: a base that knows the grammar and not the answer has headroom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.e2e.conftest import run

pytestmark = pytest.mark.slow


def test_headroom_of_a_base(tmp_path: Path, taught_base: Path) -> None:
    tiny.write_workspace(tmp_path, taught_base)
    arguments = ("headroom", "recipes/echo.yaml", "--tasks", "12", "--samples", "6")
    said = run(tmp_path, *arguments, "--json", "head.json")
    found = json.loads((tmp_path / "head.json").read_text())
    assert "tuning" in said and found["verdict"] in ("pass", "warn")
    assert found["best_of_n"] >= found["sampled"]["success"] and found["groups"]["signal"] > 0.2
    home = tmp_path / "runs" / "headroom-echo"
    assert json.loads((home / "headroom.json").read_text()) == found
    assert len((home / "rollouts" / "sampled.jsonl").read_text().splitlines()) == 72
    again = run(tmp_path, *arguments, "--json", "-")
    assert json.loads(again[: again.rindex("}") + 1])["best_of_n"] == found["best_of_n"], "the same seeds, the same tries"
    assert "at least 2" in run(tmp_path, "headroom", "recipes/echo.yaml", "--samples", "1", expect=2)
    assert "train_tasks" in run(tmp_path, "headroom", "recipes/echo.yaml", "--tasks", "41", expect=2)
