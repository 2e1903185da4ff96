"""``frontier-tune env check``, ``env init`` and ``headroom``: audit an environment, begin one, see whether tuning can pay."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.evaluation.compare import percent
from frontier_tune.evaluation.env_check.report import FAILED, GREEN, Report

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def check(a: argparse.Namespace) -> int:
    """Audit an environment; print a table and write JSON. Returns 0 where it is green (warnings are), 3 where a check failed."""
    from frontier_tune.evaluation import env_check
    from frontier_tune.sdk import registry

    root = Path(a.root or ".").resolve()
    if not a.path:
        raise BadInput(f"env check: name one of: {', '.join(registry.list_environments(root)) or 'none here'}")
    options = recipes.apply_overrides({}, a.set)
    console = Console()
    with console.status("starting", spinner="dots") as status:
        report = env_check.check(
            a.path, root, options, tasks=a.tasks, seed=a.seed, timeout_s=a.timeout, note=lambda text: status.update(text)
        )
    if a.json:
        write_json(a.json, report.to_json())
    if a.json != "-":
        _show(console, report)
    return report.exit_code


def init(a: argparse.Namespace) -> int:
    """Scaffold an environment with a README, a test and a recipe. Returns 0."""
    from frontier_tune.cli import scaffold

    if not a.path:
        raise BadInput("env init: name the new environment, for example: frontier-tune env init travel_expenses")
    if a.set:
        raise BadInput(f"env init: takes a name alone, not {' '.join(a.set)}")
    for path in scaffold.create(a.path, Path(a.root or ".").resolve()):
        print(path)
    print(f"next: frontier-tune env check envs/{a.path}; docs/environments.md tells how to go on")
    return 0


def headroom(a: argparse.Namespace) -> int:
    """Whether tuning by a recipe can pay; print a table and write JSON. Returns 0 where it can or may, 3 where it can't."""
    from frontier_tune.orchestration import headroom as orchestration

    quiet = a.json == "-"
    found, content, where = orchestration.measure(
        Path(a.recipe), a.set, a.tasks, a.samples, (lambda text: None) if quiet else lambda text: print(text, flush=True)
    )
    if a.json:
        write_json(a.json, content)
    if not quiet:
        _show_headroom(Console(), content)
        print(f"episodes   {where}")
    return FAILED if found.verdict().answer == "fail" else GREEN


def write_json(file: str, content: Mapping[str, Any]) -> None:
    """``content`` into ``file``, or to standard output where that is ``-``. Raises BadInput where it can't be written."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    if file == "-":
        print(text)
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text + "\n", encoding="utf-8")
    except OSError as e:
        raise BadInput(f"--json {file}: can't be written: {e.strerror}") from None


def _show(console: Console, report: Report) -> None:
    table = Table("", "check", "evidence", "how to mend it", box=None, pad_edge=False)
    mended = any(c.mend for c in report.checks)
    if not mended:
        table.columns.pop()
    for c in report.checks:
        row = [f"[{STYLES[c.verdict]}]{c.verdict}[/]", c.name, _plain(c.evidence), _plain(c.mend)]
        table.add_row(*(row if mended else row[:3]))
    console.print(table)
    about, found = report.about, [c.verdict for c in report.checks]
    counts = ", ".join(f"{found.count(v)} {v}" for v in STYLES if v in found)
    console.print(
        f"\n[{STYLES[report.verdict]}]{about['name']} {about['version']}[/] ({about['path']}, {about['hash'][:12]}): {counts}"
    )


def _show_headroom(console: Console, found: Mapping[str, Any]) -> None:
    shares = ("greedy", "sampled", "best_of_n", "signal")
    table = Table(
        "kind", "tasks", "greedy", "sampled", f"best of {found['tries']}", "groups with signal", box=None, pad_edge=False
    )
    for kind, figures in found["by_kind"].items():
        table.add_row(_plain(kind), f"{figures['tasks']:.0f}", *(percent(figures[key]) for key in shares))
    total = {
        "greedy": found["greedy"]["success"],
        "sampled": found["sampled"]["success"],
        "best_of_n": found["best_of_n"],
        "signal": found["groups"]["signal"],
    }
    table.add_row("all", str(found["tasks"]), *(percent(total[key]) for key in shares), style="bold")
    console.print(table)
    rewards, cost = found["reward"], found["cost"]
    console.print(f"\nreward     {rewards['greedy']:.3f} greedy, {rewards['sampled']:.3f} sampled, {rewards['best']:.3f} at best")
    console.print(
        f"cost       {cost['tokens_a_step']:,.0f} sampled tokens a step, {cost['tokens_in_all']:,.0f} in all, "
        f"about {cost['sampling_minutes_in_all']:.0f} min of sampling on this machine"
    )
    words = {"pass": "tuning can pay", "warn": "tuning may pay", "fail": "tuning can't pay as things stand"}
    console.print(
        f"[{STYLES[found['verdict']]}]{words[found['verdict']]}[/]: {_plain(found['why'])} {_plain(found['mend'])}".rstrip()
    )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
