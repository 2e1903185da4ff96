"""How many tool steps with recalculation, and how many graded episodes, the workbook environment does in a second on one core.

    python benchmarks/env_speed.py [--quick] [--cpu] [--json PATH]

The environment is month-end close, its tables longer: each task draws a factor of 1 to 10 for its workbook's rows (log-normal),
so that workbooks hold 400 filled cells in the median and 2,000 in the highest tenth, at least; how many is in the result.

Steps: the golden program's reads and fill, then the answers read, an input overwritten, the answers read again: each through the
environment's own ``step``. Baseline: the same steps where the engine is a calculator that opens the saved file after each edit
(saved_engine.py): one LibreOffice process where there is one, else not run and said so; and formualizer, which is always there.
Episodes: reset, the golden program, grading on hidden copies; each on workbooks of its own, all of which are built and opened
for it while nothing is kept; and eight to a workbook, as a training group plays them.

``--cpu``, for a machine that others work on, too: seconds are CPU seconds of this process, and what other processes do
(LibreOffice, the worker process) is not measured. A neighbour on the same core still slows them down.

What to expect, from a profile: a step is the engine's work on the cells it sets, 10 microseconds each; two thirds of a graded
episode on fresh workbooks are the engine's work, too: loading three or four copies at 1 to 2 microseconds a cell, and setting the
formulas of the edits and of their replay. The rest draws the copies' values, lays them out, finds tables, works out answers.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import ROOT, Row, compare, machine, parser, report  # noqa: E402
from benchmarks.saved_engine import Calculator, Formualizer, LibreOffice, SavedEngine  # noqa: E402
from envs.month_end_close import environment, sessions  # noqa: E402
from envs.month_end_close.generator import build  # noqa: E402
from envs.month_end_close.plan import Plan, TablePlan, make_plan  # noqa: E402
from frontier_tune.sandbox import EnvironmentPool  # noqa: E402
from frontier_tune.sdk import Task  # noqa: E402
from frontier_tune.sdk.workbook import session as workbook_session  # noqa: E402
from frontier_tune.sdk.workbook.addresses import cell, letters  # noqa: E402
from frontier_tune.sdk.workbook.formula_text import references  # noqa: E402
from frontier_tune.sdk.workbook.references import compile_formula  # noqa: E402

STEPS_S, EPISODES_S, TIMES, IMPORT_S = 1000.0, 30.0, 50.0, 0.5
CELLS, CELLS_P90 = 400, 2000
GROUP = 8
now: Callable[[], float] = time.perf_counter


class LargeWorkbooks(environment.MonthEndClose):
    """Month-end close on longer tables. Kinds, answers and grading are the environment's own."""

    def plan(self, task: Task) -> Plan:
        plan = super().plan(task)
        return _longer(plan.kind.name, plan.seed, plan.family)


@lru_cache(maxsize=1024)
def _longer(kind: str, seed: int, family: str) -> Plan:
    """A plan's workbook with all its rows multiplied, but for summaries and rates, whose keys are few."""
    plan = make_plan(kind, seed, family)
    factor = min(max(1.15 * random.Random(f"env_speed/{seed}").lognormvariate(0.0, 1.3), 1.0), 10.0)

    def longer(table: TablePlan) -> TablePlan:
        return replace(table, rows=round(factor * table.rows))

    return replace(
        plan,
        target=plan.target if plan.kind.grows else longer(plan.target),
        source=longer(plan.source) if plan.source and plan.kind.grows else plan.source,
        bystanders=tuple(longer(table) for table in plan.bystanders),
        notes={sheet: round(factor * rows) for sheet, rows in plan.notes.items()},
        insert_at=round(factor * plan.insert_at),
    )


def filled(env: LargeWorkbooks, tasks: Sequence[Task]) -> list[int]:
    """Filled cells of each task's workbook, as the agent gets it."""
    books = (build(env.plan(task), 0).plain for task in tasks)
    return [sum(v is not None for s in b.sheets.values() for cells in s.rows.values() for v in cells.values()) for b in books]


def script(env: LargeWorkbooks, task: Task) -> list[str]:
    """The steps on a workbook that has just been opened."""
    *reads, fill, _ = env.golden(task)
    name, kind = env.plan(task).target.name, env.plan(task).kind
    table = env.session.table(name.sheet)
    column = letters(table.column(name.headers[kind.answer]))
    answers = f"read {name.sheet}!{column}{table.rows[0]}:{column}{table.rows[:20][-1]}"
    formula = compile_formula(fill.rsplit(" | ", 1)[1], table, env.session.table).at(table.rows[0])
    sheet, (row, first, _, _) = next(references(formula, name.sheet))  # the first input of the first answer
    return [*reads, fill, answers, f"write {sheet}!{cell(row, first)} | 45123", answers]


def steps(
    env: LargeWorkbooks, tasks: Sequence[Task], calculator: Calculator | None = None
) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of each step by verb, and the answers seen. With a ``calculator`` the session's engine is one on saved files."""
    seconds: dict[str, list[float]] = {}
    seen = []
    for task in tasks:
        env.reset(options={"task": task})
        live = env.session.engine
        calls = script(env, task)
        if calculator:
            env.session.engine = SavedEngine(env.session.book, calculator)  # type: ignore[assignment]
        for call in calls:
            start = now()
            (message,), *_ = env.step(call)
            seconds.setdefault(call.split()[0], []).append(now() - start)
            if message.content.startswith("error"):
                raise RuntimeError(f"{call}: {message.content}")
            if call.startswith("fill") or call == calls[-1]:  # before the input is overwritten, and after
                seen.append(message.content)
        env.session.engine = live
    return seconds, seen


def rate(seconds: dict[str, list[float]]) -> float:
    times = [t for verb in seconds.values() for t in verb]
    return len(times) / sum(times)


def episodes(env: LargeWorkbooks, tasks: Sequence[Task], each: int = 1) -> float:
    """Graded episodes a second: ``each`` in a row for every task. Raises RuntimeError where the golden program fails."""
    start = now()
    for task in tasks:
        for _ in range(each):
            env.reset(options={"task": task})
            for call in env.golden(task):
                *_, info = env.step(call)
            if not info["success"]:
                raise RuntimeError(f"the golden program fails: {task}: {info}")
    return each * len(tasks) / (now() - start)


def through_worker(tasks: Sequence[Task]) -> float:
    """Tool steps a second of one worker process, each waited for: with the JSON lines there and back."""
    count, total = 0, 0.0
    local = LargeWorkbooks()
    with EnvironmentPool("benchmarks.env_speed:LargeWorkbooks", ROOT) as pool:
        for task in tasks:
            local.reset(options={"task": task})
            slot = pool.new_slot()
            asked: list[tuple[str, dict[str, Any]]] = [("reset", {"task": task.to_json()})]
            asked += [("step", {"action": call}) for call in script(local, task)]
            for op, payload in asked:
                start = time.perf_counter()
                pool.submit(slot, op, payload)
                while not (found := pool.poll(1.0)):
                    pass
                if op == "step":
                    count, total = count + 1, total + time.perf_counter() - start
                if not isinstance(found[0][1], dict):
                    raise RuntimeError(f"{op} {payload}: {found[0][1]}")
            pool.submit(slot, "close")
    return count / total


@contextmanager
def timed(parts: dict[str, tuple[Any, str]], spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds inside of each named function (of a module or class) to ``spent``."""
    kept = {name: getattr(*place) for name, place in parts.items()}

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            start = now()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + now() - start

        return watched

    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, watch(name, kept[name]))
    try:
        yield
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, kept[name])


def milliseconds(env: LargeWorkbooks, tasks: Sequence[Task]) -> dict[str, float]:
    """Where an episode on fresh workbooks spends its time. "replay" is in "grade", as are its copies' building and loading."""
    parts: dict[str, tuple[Any, str]] = {
        "build workbooks": (sessions, "build"),
        "load the engine": (workbook_session, "Engine"),
        "replay": (environment, "replay"),
        "take edits back": (workbook_session.WorkbookSession, "restore"),
        "grade": (environment.MonthEndClose, "grade"),
        "reset": (LargeWorkbooks, "reset"),
    }
    spent: dict[str, float] = {}
    with timed(parts, spent):
        whole = len(tasks) / episodes(env, tasks)
    return {name: round(1000 * s / len(tasks), 2) for name, s in (spent | {"whole": whole}).items()}


def bar(case: str, samples: Sequence[float], at_least: float, unit: str, gate: bool = True) -> Row:
    found = statistics.median(samples)
    return Row(case, found, at_least, "bar", unit, found / at_least, len(samples), gate, 1.0 if gate else None)


IMPORT = (
    "import sys; from time import {clock} as now; sys.modules.update(torch=None, ray=None, vllm=None); t = now(); "
    "import frontier_tune.sdk; print(now() - t)"
)


def import_seconds(times: int) -> list[float]:
    """Seconds that importing the SDK takes in fresh interpreters in which torch, ray and vllm can't be imported."""
    command = [sys.executable, "-c", IMPORT.format(clock=now.__name__)]
    runs = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(times))
    return [float(done.stdout) for done in runs]


def against(env: LargeWorkbooks, tasks: Sequence[Task], calculator: Any, least: float | None, rounds: int) -> tuple[Row, bool]:
    """The same steps with ``calculator``; whether it came to the same answers."""
    ours, theirs, same = [], [], True
    for _ in range(rounds):
        mine, seen = steps(env, tasks)
        saved, seen_saved = steps(env, tasks, calculator)
        ours.append(rate(mine))
        theirs.append(rate(saved))
        same = same and seen == seen_saved
    case = f"the same steps: {calculator.name}"
    return compare(case, ours, theirs, "baseline", "steps/s", least, higher_is_better=True), same


def main() -> int:
    global now
    options = parser(__doc__ or "")
    options.add_argument("--cpu", action="store_true", help="count this process's CPU seconds, on a machine that others use, too")
    arguments = options.parse_args()
    if arguments.cpu:
        now = time.process_time
    n, rounds = (8, 1) if arguments.quick else (96, 5)
    why_not = "its CPU time is not this process's" if arguments.cpu else LibreOffice.missing()
    office = None if why_not else LibreOffice()
    if hasattr(os, "sched_setaffinity"):  # after LibreOffice was started, which keeps the cores that it likes
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    env = LargeWorkbooks()
    sets = [env.tasks("train", n, seed) for seed in range(rounds)]
    cells = sorted(count for tasks in sets for count in filled(env, tasks))
    median, p90 = cells[len(cells) // 2], cells[len(cells) * 9 // 10]
    if not arguments.quick and (median < CELLS or p90 < CELLS_P90):
        raise RuntimeError(f"workbooks of {median} cells, p90 {p90}: not of the size that is asked for")
    fresh = [episodes(env, tasks) for tasks in sets]  # the pool keeps 256 sessions: none of a set is left when it comes again
    timings = [steps(env, tasks)[0] for tasks in sets]
    few = sets[0][: max(8, n // 6)]
    rows = [
        bar("tool steps, with recalculation", [rate(t) for t in timings], STEPS_S, "steps/s"),
        bar("graded episodes, each on workbooks of its own", fresh, EPISODES_S, "episodes/s"),
        bar(
            f"graded episodes, {GROUP} on each workbook",
            [episodes(env, t[: n // 4], GROUP) for t in sets],
            EPISODES_S,
            "episodes/s",
        ),
    ]
    if not arguments.cpu:
        worker = [through_worker(few)]
        rows.append(bar("tool steps through a worker process, one at a time", worker, STEPS_S, "steps/s", gate=False))
    imports = import_seconds(rounds + 1)[1:]  # the first reads the disk
    took = statistics.median(imports)
    rows.append(Row("import of the SDK", took, IMPORT_S, "bar", "s", IMPORT_S / took, len(imports), True, 1.0))
    row, same = against(env, few, Formualizer(), None, min(rounds, 2))
    rows.append(row)
    if office:
        rows.append(against(env, few, office, TIMES, min(rounds, 2))[0])
        office.close()
    else:
        print(f"LibreOffice: not run: {why_not}")
    verbs = {verb: [t for timing in timings for t in timing[verb]] for verb in timings[0]}
    settings = {
        "tasks": n, "rounds": rounds, "cores": 1, "seconds": "CPU, of this process" if arguments.cpu else "wall clock",
        "filled cells": {"median": median, "p90": p90, "most": cells[-1], "mean": round(statistics.mean(cells))},
        "microseconds of a step": {v: {"median": round(1e6 * statistics.median(t)), "mean": round(1e6 * statistics.mean(t))}
                                   for v, t in verbs.items()},
        "milliseconds of an episode on workbooks of its own": milliseconds(env, env.tasks("train", n, rounds)),
        "LibreOffice": f"not run: {why_not}" if why_not else "run",
        "answers as from saved files (formualizer)": same,
    }  # fmt: skip
    return 0 if report("env_speed", rows, machine(), settings, arguments.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
