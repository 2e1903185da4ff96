"""``frontier-tune traces`` as a user meets it: what is refused before anything is read, exit codes, who decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.cli import main
from frontier_tune.orchestration.groups import derive_seed
from frontier_tune.traces.store import Store
from tests.episodes.conftest import WORKSPACE
from tests.traces.conftest import raw

ENV = ["--env", "envs/count_up", "--root", str(WORKSPACE), "--heldout", "3"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [raw(12), raw(13, 12, 2)]  # the second misses its target
    (tmp_path / "work.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_import_accept_decline_and_show(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["traces", "import", "work.jsonl", "start=0", *ENV, "--out", "t", "--strict"]) == 3
    said = capsys.readouterr().out
    assert "refused    work.jsonl:2: trace 'count-13': 'jane' accepted it, but the environment grades it as failed" in said
    store = Store.open(work / "t")
    assert store.manifest["options"] == {"start": 0} and [r["trace"] for r in store.refused] == ["count-13"]
    (task,) = store.proposals
    assert main.main(["traces", "decline", "t", task.id, "--by", "ravi"]) == 0
    assert main.main(["traces", "accept", "t", "all", "--by", "jane"]) == 0  # nothing is left that was only proposed
    assert (Store.open(work / "t").proposals[0].status, Store.open(work / "t").proposals[0].by) == ("declined", "ravi")
    capsys.readouterr()
    assert main.main(["traces", "show", "t"]) == 0
    assert "1 declined" in capsys.readouterr().out
    assert main.main(["traces", "import", "work.jsonl", *ENV, "--out", "t"]) == 2  # without the option: other conventions
    assert "with options {'start': 0}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import", "work.jsonl"], "name the environment, or --recipe"),
        (["import", "start=1", *ENV], "name a file of traces"),
        (["import", "nothing.jsonl", *ENV], "nothing.jsonl: no such file"),
        (["import", "work.jsonl", *ENV, "--license", "ours"], "--license: 'ours' is no SPDX licence expression"),
        (["import", "work.jsonl", *ENV, "--origin", "robot:r2"], "origin 'robot:r2': write it as kind:name"),
        (["import", "work.jsonl", *ENV, "--reviews", "reviews.jsonl"], "no trace has the id count-99; nothing was imported"),
        (["show", "nowhere"], "no traces here"),
        (["from-golden", "envs/nothing", *ENV[2:]], "no such directory"),
        (["from-golden", "--recipe", "nothing.yaml", "company.seed=3"], "nothing.yaml: no such recipe"),
    ],
)
def test_bad_input_is_one_message(work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str) -> None:
    (work / "reviews.jsonl").write_text('{"trace": "count-99", "verdict": "accepted", "reviewer": "jane"}\n')
    assert main.main(["traces", *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not (work / "traces").exists() and not (WORKSPACE / "traces").exists()


def test_reviews_of_a_conversation_that_is_refused_stop_no_other(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An OpenTelemetry conversation may be refused before it has become a trace."""

    def attributes(**of: str) -> list[dict[str, Any]]:
        return [{"key": f"gen_ai.{key.replace('__', '.')}", "value": {"stringValue": value}} for key, value in of.items()]

    given = json.dumps([{"role": "user", "parts": [{"type": "blob"}]}])
    found = attributes(conversation__id="case-9", response__model="m", input__messages=given)
    span = {"traceId": "ab", "spanId": "cd", "attributes": found}
    (work / "spans.json").write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}))
    (work / "reviews.jsonl").write_text('{"trace": "case-9", "verdict": "accepted", "reviewer": "jane"}\n')
    arguments = ["work.jsonl", "spans.json", "start=0", *ENV, "--reviews", "reviews.jsonl", "--out", "t"]
    assert main.main(["traces", "import", *arguments]) == 0
    assert "conversation case-9: a message has a part of type 'blob'" in capsys.readouterr().out


def test_where_none_can_be_taken_the_reasons_are_kept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = 10_000 + derive_seed("heldout") % 1000  # the workflow's first held-out task, as a run draws them
    (work / "work.jsonl").write_text(json.dumps(raw(held_out)) + "\n")
    assert main.main(["traces", "import", "work.jsonl", *ENV, "--out", "t"]) == 2
    assert "none of 1 traces could be taken" in capsys.readouterr().err
    assert "held-out" in Store.open(work / "t").refused[0]["reason"]
