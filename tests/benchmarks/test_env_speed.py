"""The workbook benchmark: sizes as stated, the same steps with and without a living engine, LibreOffice never invented."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import env_speed
from benchmarks.saved_engine import Formualizer, LibreOffice, SavedEngine
from frontier_tune.sdk.workbook.session import WorkbookSession
from tests.sdk.workbook.conftest import make_book


@pytest.fixture(scope="module")
def env() -> env_speed.LargeWorkbooks:
    return env_speed.LargeWorkbooks()


def test_workbooks_are_of_the_stated_sizes(env: env_speed.LargeWorkbooks) -> None:
    cells = sorted(env_speed.filled(env, env.tasks("train", 96, 0)))
    assert statistics.median(cells) >= env_speed.CELLS and cells[96 * 9 // 10] >= env_speed.CELLS_P90


def test_every_kind_is_graded_as_it_is_on_its_own_tasks(env: env_speed.LargeWorkbooks) -> None:
    tasks = env.tasks("heldout", 8, 1)
    assert len({task.kind for task in tasks}) == 8
    assert env_speed.episodes(env, tasks) > 0  # it raises where a golden program fails
    for task in tasks[:2]:
        for script in env.canary_scripts(task).values():
            env.reset(options={"task": task})
            for call in script:
                *_, terminated, truncated, info = env.step(call)
                if terminated or truncated:
                    break
            assert not info["success"]


def test_saved_files_come_to_the_same_answers(env: env_speed.LargeWorkbooks) -> None:
    """The baseline does the same work: what it answers is what the living engine answers."""
    tasks = env.tasks("train", 8, 2)
    (seconds, live), (saved_seconds, saved) = env_speed.steps(env, tasks), env_speed.steps(env, tasks, Formualizer())
    assert live == saved and {v: len(t) for v, t in seconds.items()} == {v: len(t) for v, t in saved_seconds.items()}
    assert any(before != after for before, after in zip(live[::2], live[1::2])), "overwritten inputs reach the answers"


def test_a_saved_engine_keeps_formulas_as_they_were() -> None:
    session = WorkbookSession(make_book())
    session.engine = SavedEngine(session.book, Formualizer())  # type: ignore[assignment]
    assert session.fill("Sales", "Net", "=XLOOKUP(\"GBP\",'FX table'[Ccy],'FX table'[Final rate])") == "3 cells, first 1.3"
    assert session.book["Sales"]["E4"].value == "=XLOOKUP(\"GBP\",'FX table'!$A$2:$A$3,'FX table'!$B$2:$B$3)"
    assert session.write("Sales!G1", "=1/0") == "Sales!G1 is #DIV/0!"


@pytest.fixture
def no_office(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    yield


def test_without_libreoffice_the_result_says_so(no_office: None) -> None:
    assert LibreOffice.missing() == "no soffice on the PATH"
    with pytest.raises(RuntimeError, match="no soffice"):
        LibreOffice()


@pytest.mark.skipif(bool(LibreOffice.missing()), reason=f"LibreOffice: {LibreOffice.missing()}")
@pytest.mark.slow
def test_libreoffice_comes_to_the_same_numbers() -> None:
    session = WorkbookSession(make_book())
    office = LibreOffice()
    try:
        session.engine = SavedEngine(session.book, office)  # type: ignore[assignment]
        assert session.fill("Sales", "Net", "=ROUND([@Gross]-[@Returns],2)") == "3 cells, first 99.25"
        assert session.write("Sales!B4", "7") == "Sales!B4 is 7"
        assert session.read("Sales!E4:E5") == "Sales!E4:E5\n5.75\n198"
    finally:
        office.close()
