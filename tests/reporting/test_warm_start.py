"""The report's section on supervised stages: there where a run has them, with every origin; text is escaped."""

from __future__ import annotations

import json
from pathlib import Path

from frontier_tune.reporting import report

STAGE = {
    "stage": "sft",
    "source": "traces/refunds/demonstrations.jsonl",
    "origins": [{"kind": "person", "name": "<b>desk</b>", "license": "LicenseRef-Internal", "rows": 7, "reviewers": ["jane"]}],
    "examples": 7,
    "updates": 21,
    "loss": [2.5, 0.125],
    "evaluation": {"success": 0.5, "ci95": [0.3, 0.7], "n": 20, "success_sampled": 0.4, "general": None},
}


def test_stages_and_their_origins_are_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base: nano\n")
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "sft", "step": 0, "update": 1, "loss": 2.5}\n{"step": 1, "seconds": 2.0}\n'
    )
    page = report.write(tmp_path).read_text()
    assert "Warm start" not in page
    (tmp_path / "warm_start.json").write_text(json.dumps({"stages": [STAGE, {**STAGE, "stage": "dpo", "evaluation": None}]}))
    page = report.write(tmp_path).read_text()
    assert "Warm start" in page and "2.500 → 0.125" in page and "50.0 %" in page
    assert "person &lt;b&gt;desk&lt;/b&gt;, LicenseRef-Internal: 7 rows" in page and "<b>desk</b>" not in page
    assert [r["step"] for r in report.gather(tmp_path).rows] == [1]
    (tmp_path / "warm_start.json").write_text("{")
    assert any("warm_start.json: can't be read" in m for m in report.gather(tmp_path).missing)
