"""Task files: splits by content, nothing in both, and every line that would mislead is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.contracts import BadInput
from frontier_tune.sdk import TaskFile
from frontier_tune.sdk.tasks import check_disjoint


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "refund", "data": {"case": number}, **more}


def test_content_decides_and_lines_that_are_added_move_no_other(tmp_path: Path) -> None:
    small = TaskFile(write(tmp_path / "tasks.jsonl", [*map(row, range(400)), ""]))
    assert 50 < len(small.tasks["heldout"]) < 110 and sum(map(len, small.tasks.values())) == 400
    large = TaskFile(write(tmp_path / "more.jsonl", [row(n) for n in reversed(range(800))]))
    for split in ("train", "heldout"):
        assert {t.hash for t in small.tasks[split]} <= {t.hash for t in large.tasks[split]}
        assert {t.split for t in large.tasks[split]} == {split}
    check_disjoint(large.tasks["train"], large.tasks["heldout"])
    assert small.draw("train", 9, 3)[:5] == small.draw("train", 5, 3) != small.draw("train", 5, 4)
    assert len(small.draw("heldout", 10_000, 0)) == len(small.tasks["heldout"])
    with pytest.raises(BadInput, match="no split 'test'"):
        small.draw("test", 1, 0)  # type: ignore[arg-type]


@given(families=st.lists(st.integers(0, 12), min_size=60, max_size=60))
@settings(max_examples=30, deadline=None)
def test_a_family_is_on_one_side(families: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [row(n, family=f"layout {f}") for n, f in enumerate(families)] + [row(n) for n in range(1000, 1100)]
    tasks = TaskFile(write(tmp_path_factory.getbasetemp() / "families.jsonl", rows)).tasks
    check_disjoint(tasks["train"], tasks["heldout"])


def test_splits_that_lines_name_are_kept(tmp_path: Path) -> None:
    rows = [row(1, split="train", family="a"), row(2, split="heldout", family="b"), row(3, split="train")]
    tasks = TaskFile(write(tmp_path / "tasks.jsonl", rows)).tasks
    assert [[t.data["case"] for t in tasks[s]] for s in ("train", "heldout")] == [[1, 3], [2]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), "{"], "tasks.jsonl:2: no JSON"),
        ([row(1), {"data": {}}], "tasks.jsonl:2: a task is"),
        ([row(1, answer=3)], "tasks.jsonl:1: unknown keys answer"),
        ([row(1, split="test")], "'split' one of train, heldout"),
        ([row(1, family=3)], "'family' is text"),
        ([row(1), row(2), row(1)], "tasks.jsonl:3: the same task as line 1"),
        ([row(1, split="train"), row(1, split="heldout")], "tasks.jsonl:2: the same task as line 1"),
        ([row(1, split="train"), row(2)], "tasks.jsonl:2: it names no split"),
        ([row(1, split="train", family="a"), row(2, split="heldout", family="a")], "family 'a' is in 'train' since line 1"),
        ([row(1, split="train")], "none is in 'heldout'"),
        ([], "none is in 'train'"),
    ],
)
def test_lines_that_mislead_are_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        TaskFile(write(tmp_path / "tasks.jsonl", rows))


def test_files_and_shares_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="can't be read"):
        TaskFile(tmp_path / "nowhere.jsonl")
    with pytest.raises(BadInput, match="share between 0 and 1"):
        TaskFile(write(tmp_path / "tasks.jsonl", [row(1)]), heldout=1.0)


def test_a_line_separator_within_a_task_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    tasks = [{"kind": "k", "data": {"text": f"a\u2028b\x85{n}"}} for n in range(40)]
    path.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in tasks), encoding="utf-8")
    found = TaskFile(path)
    assert len(found.draw("train", 99, 0)) + len(found.draw("heldout", 99, 0)) == 40
