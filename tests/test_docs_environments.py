"""docs/environments.md: its example passes its audit, and its table names every check there is."""

from __future__ import annotations

import re
from pathlib import Path

from frontier_tune.evaluation.env_check import check


def test_the_example_passes_every_check_and_every_check_is_explained(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "environments.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.S)
    assert example is not None
    home = tmp_path / "envs" / "refunds"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(example[1])
    report = check("envs/refunds", tmp_path, tasks=8)
    assert [(c.name, c.verdict, c.evidence) for c in report.checks if c.verdict != "pass"] == []
    explained = re.findall(r"^\| `([a-z-]+)` \|", page.partition("## The audit")[2].partition("## Headroom")[0], re.M)
    assert sorted(explained) == sorted(c.name for c in report.checks)
    assert f"{len(report.checks)} checks" in page
