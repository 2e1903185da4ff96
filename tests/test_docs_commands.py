"""Every command that a page shows exists, with the options that it is shown with; so does every make target and benchmark."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from frontier_tune.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for pattern in ("*.md", "docs/*.md", "envs/*/README.md") for p in ROOT.glob(pattern))


def shown(page: Path) -> list[str]:
    """Lines of code blocks without their comments, and code within a text."""
    text = page.read_text()
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M)
    indented = re.findall(r"^    (\S.*)", text, re.M)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    return [re.sub(r"\s+# .*", "", line).strip() for line in (*"\n".join(blocks).splitlines(), *indented, *inline)]


def filled_in(words: str) -> list[str]:
    """A synopsis as a command: what is optional is given, and numbers are."""
    words = re.sub(r"\[|\]|\.\.\.", "", words)
    return shlex.split(re.sub(r"(--\w+) (?:N|S|SECONDS)\b", r"\1 3", words))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist_with_their_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actions = next(a for a in main.build_parser()._actions if a.dest == "command")
    for line in shown(page):
        if found := re.match(r"(?:\$ )?(?:\S+/)?frontier-tune (.*)", line):
            words = filled_in(found[1])
            if len(words) == 1:
                assert words[0] in (actions.choices or ()), line
                continue
            try:
                main.parse(words)
            except SystemExit:
                pytest.fail(f"{line}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_and_scripts_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in shown(page):
        for target in re.findall(r"^(?:\w+=\S* )*make ([a-z-]+)", line):
            assert target in targets, line
        for script in re.findall(r"\b((?:benchmarks|scripts|tests)/[\w/]+\.\w+)", line):
            assert (ROOT / script).exists(), line
