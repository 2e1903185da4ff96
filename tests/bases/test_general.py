"""The general suite: solvable by its reference, by nothing else, and on held-out layouts."""

from __future__ import annotations

import pytest

from frontier_tune.bases.general import GeneralSpreadsheet


def _play(env: GeneralSpreadsheet, task, calls: list[str]) -> dict:  # type: ignore[no-untyped-def, type-arg]
    env.reset(options={"task": task})
    info: dict = {}  # type: ignore[type-arg]
    for call in calls:
        *_, info = env.step(call)
    return info


@pytest.fixture(scope="module")
def env() -> GeneralSpreadsheet:
    return GeneralSpreadsheet()


def test_the_reference_succeeds_on_every_kind(env: GeneralSpreadsheet) -> None:
    tasks = env.tasks("heldout", 28, 0)
    assert len({t.hash for t in tasks}) == 28
    assert all(_play(env, t, env.golden(t))["success"] for t in tasks)


def test_submitting_at_once_or_editing_elsewhere_fails(env: GeneralSpreadsheet) -> None:
    for task in env.tasks("heldout", 7, 1):
        assert not _play(env, task, ["submit"])["success"]
        *calls, submit = env.golden(task)
        sheet = calls[0].removeprefix("read ")
        assert not _play(env, task, [*calls, f"write {sheet}!Z300 | 1", submit])["success"]
        assert not _play(env, task, calls)["success"], "not submitted"


def test_a_constant_in_place_of_a_formula_fails(env: GeneralSpreadsheet) -> None:
    task = next(t for t in env.tasks("heldout", 20, 2) if t.kind == "single_cell")
    read, write, submit = env.golden(task)
    env.reset(options={"task": task})
    env.step(read)
    messages, *_ = env.step(write)
    value = messages[0].content.rsplit(" ", 1)[1]
    assert not _play(env, task, [read, f"{write.split(' | ')[0]} | {value}", submit])["success"]


def test_train_and_heldout_share_no_task(env: GeneralSpreadsheet) -> None:
    assert not {t.hash for t in env.tasks("train", 50, 0)} & {t.hash for t in env.tasks("heldout", 50, 0)}
