"""Directories of traces: what is written reads back equal; people decide about tasks, and the files say who did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.traces import rows
from frontier_tune.traces.convert import convert
from frontier_tune.traces.replay import HeldOut, Workbench
from frontier_tune.traces.store import DEMONSTRATIONS, PAIRS, TASKS, Store, read_demonstrations, read_pairs

FIX = {"verdict": "corrected", "corrections": [{"turn": 0, "content": "add 12"}]}


@pytest.fixture
def filled(store: Store, trace: Callable, bench: Workbench, held_out: HeldOut) -> Store:
    for one in (trace(12), trace(12, 5, id="wrong", **FIX), trace(13, id="outside", task=None)):
        store.add(convert(one, bench, held_out))
    store.refuse("t:9", "other", "because")
    store.save()
    return store


def test_what_is_saved_reads_back_equal(filled: Store) -> None:
    found = Store.open(filled.root)
    assert found == filled
    names = ["demonstrations.jsonl", "manifest.json", "pairs.jsonl", "refused.jsonl", "tasks.jsonl", "traces.jsonl"]
    assert sorted(p.name for p in filled.root.iterdir()) == names
    assert read_demonstrations(filled.root) == read_demonstrations(filled.root / DEMONSTRATIONS) == filled.demonstrations
    assert read_pairs(filled.root / PAIRS) == filled.pairs
    assert len(found.proposals) == 2 and found.proposals[0].traces == ("count-12", "wrong")  # one task, worked on twice


def test_a_person_accepts_tasks_by_id(filled: Store) -> None:
    task = filled.proposals[0]
    with pytest.raises(BadInput, match="no proposed task nothing"):
        filled.decide(["nothing"], "accepted", "jane", "2026-01-01T00:00:00Z")
    with pytest.raises(BadInput, match="outside has no task in the environment's terms"):
        filled.decide(["outside"], "accepted", "jane", "2026-01-01T00:00:00Z")
    filled.decide(["all"], "accepted", "jane", "2026-01-01T00:00:00Z")
    filled.save()
    found = {p.id: p for p in Store.open(filled.root).proposals}
    assert (found[task.id].status, found[task.id].by) == ("accepted", "jane")
    assert found["outside"].status == "proposed"
    written = json.loads((filled.root / TASKS).read_text().split("\n")[0])
    assert written["task"] == {"kind": "count", "split": "train", "data": {"target": 12}, "family": "train"}


def test_origins_are_listed_with_licence_and_reviewers(filled: Store) -> None:
    found = list(rows.origins([*filled.demonstrations, *filled.pairs]))
    assert [(o["kind"], o["name"], o["license"], o["rows"]) for o in found] == [
        ("person", "close team", "LicenseRef-Internal", 4),
        ("person", "jane", "LicenseRef-Internal", 2),
    ]
    assert found[0]["reviewers"] == ["jane"]


def test_directories_of_another_environment_or_none_are_refused(filled: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds traces of envs/count_up"):
        Store.at(filled.root, "envs/other", {})
    with pytest.raises(BadInput, match="no traces here"):
        Store.open(tmp_path / "nothing")
    (filled.root / DEMONSTRATIONS).write_text('{"id": 3}\n')
    with pytest.raises(BadInput, match=r"demonstrations\.jsonl:1: not a row"):
        Store.open(filled.root)
