"""Loading tasks and scoring three cases each; on the real data where the user has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.spreadsheetbench.loader import VARIABLE, SpreadsheetTask, find_data, load
from envs.spreadsheetbench.scorer import CaseResult, TaskResult, Verdict, grade, outputs_in, summarize
from frontier_tune.sdk import BadInput
from tests.envs.spreadsheetbench.conftest import save

ENTRY = {"id": 7, "instruction": "Fill A1", "instruction_type": "Cell-Level Manipulation", "answer_position": "A1"}


def dataset(root: Path, entries: Any) -> Path:
    (root / "dataset.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks of three cases: A1 is to be 10, 20, 30."""
    for name in ("7", "8-1"):
        for case in (1, 2, 3):
            folder = tmp_path / "spreadsheet" / name
            save(folder / f"{case}_{name}_input.xlsx", {"S": {"B1": case}})
            save(folder / f"{case}_{name}_answer.xlsx", {"S": {"B1": case, "A1": 10 * case}})
    return dataset(tmp_path, [ENTRY, {**ENTRY, "id": "8-1", "instruction_type": "Sheet-Level Manipulation"}])


def test_three_cases_soft_and_hard(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "outputs"
    for case, value in ((1, 10), (2, 99)):
        save(out / f"{case}_7_output.xlsx", {"S": {"B1": case, "A1": value}})
    (out / "3_7_output.xlsx").write_text("no workbook")
    for case in (1, 2, 3):
        save(out / f"{case}_8-1_output.xlsx", {"S": {"B1": case, "A1": 10 * case}})
    results = grade(load(data), outputs_in(out), processes=1)
    first, second = results
    assert [c.compatible.reason for c in first.cases] == ["passed", "differs", "output-broken"]
    assert [c.strict.reason for c in first.cases] == ["passed", "wrong-value", "output-broken"]
    assert first.soft("strict") == pytest.approx(1 / 3) and not first.hard("strict")
    assert second.soft("compatible") == 1 and second.hard("compatible")
    summary = summarize(results, "strict")
    assert (summary.tasks, summary.hard) == (2, 0.5) and summary.soft == pytest.approx(2 / 3)
    assert summary.by_type["Sheet-Level Manipulation"] == (1.0, 1.0)


def test_a_missing_file_is_a_failed_case(data: Path, tmp_path: Path) -> None:
    task = load(data)[0]
    task.golden(2).unlink()
    task.input(3).unlink()
    (result,) = grade([task], lambda t, case: t.golden(case), processes=1)
    assert [c.compatible.reason for c in result.cases] == ["passed", "golden-missing", "passed"]
    assert [c.strict.reason for c in result.cases] == ["passed", "golden-missing", "input-missing"]
    (result,) = grade([task], lambda t, case: tmp_path / "nowhere.xlsx", processes=1)
    assert {c.strict.reason for c in result.cases} == {"output-missing", "golden-missing"}


def test_undecided_cases_do_not_count() -> None:
    def result(*reasons: str) -> TaskResult:
        return TaskResult("1", "", tuple(CaseResult(i, Verdict("passed"), Verdict(r)) for i, r in enumerate(reasons, 1)))

    assert result("passed", "undecided", "passed").hard("strict")
    assert result("passed", "undecided", "wrong-value").soft("strict") == 0.5
    assert result("undecided", "undecided", "undecided").soft("strict") == 0
    assert result("undecided", "undecided", "undecided").hard("compatible")


def test_processes_change_nothing(data: Path) -> None:
    tasks = load(data)
    assert grade(tasks, SpreadsheetTask.golden, 2) == grade(tasks, SpreadsheetTask.golden, 1)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("{", "no JSON"),
        ({"id": 1}, "a list of tasks"),
        ([1], "entry 0: an object"),
        ([{"id": 1}], "lacks instruction, instruction_type, answer_position"),
        ([{**ENTRY, "id": "../7"}], "names no directory"),
        ([ENTRY, {**ENTRY, "id": "7"}], "there twice"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, entries: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load(dataset(tmp_path, entries))


def test_bad_arguments_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="dataset.json"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no folder"):
        outputs_in(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="processes"):
        grade(load(data), SpreadsheetTask.golden, 0)
    with pytest.raises(BadInput, match="no results"):
        summarize([], "strict")


def test_the_variable_says_where_the_data_is(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(data))
    assert find_data(Path("elsewhere")) == data
    monkeypatch.setenv(VARIABLE, str(data / "nowhere"))
    assert find_data(Path("elsewhere")) is None


def test_the_benchmark_holds_its_gates_and_lists_what_differs(root: Path, data: Path) -> None:
    save(data / "spreadsheet" / "7" / "2_7_input.xlsx", {"S": {"B1": 2, "A1": 20}})
    out = data / "result.json"
    command = [sys.executable, str(root / "benchmarks" / "spreadsheetbench.py"), "--data", str(data), "--json", str(out)]
    run = subprocess.run([*command, "--processes", "1"], cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    differ = json.loads(out.read_text())["settings"]["modes differ"]
    assert [(d["fed"], d["task"], d["case"], d["strict"]) for d in differ] == [
        ("golden", "7", 2, "undecided"),
        ("unedited", "7", 2, "undecided"),
    ]
    (data / "spreadsheet" / "8-1" / "1_8-1_answer.xlsx").write_bytes(b"")
    assert subprocess.run([*command, "--processes", "1"], cwd=root, capture_output=True, timeout=300).returncode == 1


def test_goldens_pass_and_inputs_fail_on_the_real_data(root: Path) -> None:
    """Every 24th task; benchmarks/spreadsheetbench.py grades all of them."""
    found = find_data(root)
    if found is None:
        pytest.skip(f"no SpreadsheetBench data: set {VARIABLE}, see envs/spreadsheetbench/README.md")
    tasks = load(found)[::24]
    assert all(r.hard("strict") for r in grade(tasks, SpreadsheetTask.golden, 1))
    assert not any(r.soft("strict") or r.hard("compatible") for r in grade(tasks, SpreadsheetTask.input, 1))
