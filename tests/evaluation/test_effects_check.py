"""The audit's check of effects: virtual writes that reach production, mocks without a recording, files left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.evaluation.env_check import Check, check
from frontier_tune.sandbox import EnvironmentPool
from frontier_tune.sdk import WorkflowEnv, load_environment
from frontier_tune.sdk.examine import examine

DEFECTS = Path(__file__).parent / "defects"


def audit(name: str) -> tuple[Check, list[str]]:
    report = check(f"desk:{name}", DEFECTS, tasks=2)
    return report.check("effects"), report.failed


def test_virtual_tools_pass_even_where_the_client_hands_out_its_own_records() -> None:
    found, failed = audit("Aliases")
    assert (found.verdict, failed) == ("pass", []) and "1 own, 2 virtual" in found.evidence


def test_a_virtual_write_that_reaches_production_is_caught() -> None:
    found, failed = audit("WritesProduction")
    assert "effects" in failed
    assert "'enter' (virtual) changed production: the store 'crm'" in found.evidence and "attach_store" in found.mend


def test_begin_is_watched_too_and_large_stores_once_an_episode() -> None:
    def new() -> WorkflowEnv:
        return load_environment("desk:WritesInBegin", DEFECTS)

    env = new()
    (task,) = env.tasks("train", 1, 0)
    found = examine(new, "effects", episodes=[{"task": task.to_json(), "script": env.golden(task)}])
    assert found["reached"] == [{"place": "begin", "effect": "own", "store": "crm"}]
    assert dict(found["called"]) == {"letters": 1, "enter": 1, "submit": 1} and found["outside"] == []


def test_a_mock_whose_recording_is_not_there_is_refused_before_any_episode() -> None:
    with pytest.raises(BadInput, match=r"letters_of_yesterday\.json: can't be read as a recording"):
        EnvironmentPool("desk:NoFile", DEFECTS)
    with pytest.raises(BadInput, match="'letters' is virtual, not real; real tools of desk: none"):
        EnvironmentPool("desk:Desk", DEFECTS, allow_real_writes=["letters"])
    with EnvironmentPool("desk:Real", DEFECTS, allow_real_writes=["enter"]) as pool:
        assert pool.description["effects"] == {"letters": "virtual", "enter": "real", "submit": "own"}


def test_a_virtual_tool_that_writes_files_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what lies there is the episode's own; this checkout may lie in /tmp
    left = DEFECTS / "left.log"
    try:
        found, failed = audit("LeavesFiles")
        assert (
            failed == ["effects"] and "'letters' (virtual) leaves the episode" in found.evidence and "left.log" in found.evidence
        )
    finally:
        left.unlink(missing_ok=True)


def test_a_mock_without_a_recording_is_a_loud_failure() -> None:
    found, failed = audit("Unrecorded")
    assert {"effects", "oracle"} <= set(failed)
    assert "letters" in found.evidence and "never recorded" in found.evidence and "record" in found.mend


def test_a_real_tool_is_refused_in_the_audit() -> None:
    found, failed = audit("Real")
    assert found.verdict == "warn" and "enter would write to production" in found.evidence
    assert "oracle" in failed  # what it does can't be shown
