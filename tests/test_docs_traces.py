"""The tutorial of docs/traces.md does what it says: its files, its commands, and every line that they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from frontier_tune.cli import main


def test_the_tutorial_prints_what_it_says(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "traces.md").read_text()
    example = re.search(r"```python\n(.*?)```", (root / "docs" / "environments.md").read_text(), re.S)
    assert example is not None
    home = tmp_path / "envs" / "refunds"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(example[1])
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"^`(\w+\.jsonl)`\n```jsonl\n(.*?)```", page, re.S | re.M):
        (tmp_path / name).write_text(content)
    runs = re.findall(r"```console\n\$ frontier-tune ([^\n]*)\n(.*?)```", page, re.S)
    assert len(runs) == 3
    for command, said in runs:
        assert main.main(shlex.split(command)) == 0
        assert capsys.readouterr().out.replace(str(tmp_path) + "/", "") == said
