"""Runs a second of model-written code in the sandbox, against one fresh interpreter under bubblewrap (or bare) for each run.

    python benchmarks/sandbox_speed.py [--quick] [--json PATH]

Two pieces of code: nothing at all, and a workbook that is opened, changed and saved with openpyxl. The baseline starts an
interpreter for each run, as a sandbox without a zygote does. A graded episode pays for two runs: the agent's code and the grader.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import openpyxl  # noqa: E402

from benchmarks import harness  # noqa: E402
from frontier_tune.sandbox.code import CodeSandbox  # noqa: E402
from frontier_tune.sandbox.confine import KINDS, available, bubblewrap_command  # noqa: E402
from frontier_tune.sandbox.runtime import runtime  # noqa: E402

CODE = {
    "nothing": "pass",
    "workbook": "import openpyxl\nwb = openpyxl.load_workbook('in.xlsx')\nwb.active['B1'] = 1\nwb.save('out.xlsx')",
}


def workbook(rows: int = 40, columns: int = 10) -> bytes:
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    for r in range(1, rows + 1):
        for c in range(1, columns + 1):
            book.active.cell(r, c, r * c)
    book.save(buffer)
    return buffer.getvalue()


def per_second(run: Callable[[], None], n: int, rounds: int) -> list[float]:
    run()
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(n):
            run()
        rates.append(n / (time.perf_counter() - start))
    return rates


def fresh_interpreter(kind: str, code: str, content: bytes) -> Callable[[], None]:
    seen = runtime(("openpyxl",))
    head = "import sys; sys.path.append('/packages')\n" if kind == "bubblewrap" else ""
    save = f"open('in.xlsx', 'wb').write({content!r})\n"

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            if kind == "bubblewrap":
                command = bubblewrap_command(shutil.which("bwrap") or "", seen, 64)
                command = [*command[: command.index("--") + 1], seen.interpreter, "-S", "-c", head + save + code]
            else:
                command = [sys.executable, "-c", save + code]
            subprocess.run(command, cwd=folder, check=True)

    return run


def main() -> int:
    arguments = harness.parser(__doc__ or "").parse_args()
    n, rounds = (20, 2) if arguments.quick else (60, 5)
    content = workbook()
    rows = []
    for kind in KINDS:
        if reason := available()[kind]:
            print(f"skipped {kind}: {reason}")
            continue
        with CodeSandbox(confinement=kind) as sandbox:
            for name, code in CODE.items():

                def run(code: str = code, sandbox: CodeSandbox = sandbox) -> None:
                    assert sandbox.run_python(code, {"in.xlsx": content}, ["out.xlsx"]).ok

                ours = per_second(run, n, rounds)
                each = "bubblewrap and an interpreter for each run" if kind == "bubblewrap" else "a bare interpreter for each run"
                theirs = per_second(fresh_interpreter(kind, code, content), max(2, n // 20), min(rounds, 3))
                rows.append(harness.compare(f"{kind}, {name}", ours, theirs, each, "runs/s", higher_is_better=True))
    settings = {"runs": n, "rounds": rounds, "workbook cells": 400}
    return 0 if harness.report("sandbox_speed", rows, harness.machine(), settings, arguments.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
