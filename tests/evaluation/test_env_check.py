"""The audit on a sound workflow, and on one for each defect: caught by the check of its name, and told by evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.evaluation.env_check import Report, check, processes
from frontier_tune.sdk.registry import list_environments

DEFECTS = Path(__file__).parent / "defects"
ROOT = Path(__file__).parents[2]


def audit(name: str, **arguments: object) -> Report:
    return check(f"defective:{name}", DEFECTS, tasks=4, **arguments)  # type: ignore[arg-type]


def test_a_sound_environment_passes_every_check() -> None:
    report = audit("Sound")
    assert [(c.name, c.verdict, c.evidence) for c in report.checks if c.verdict != "pass"] == []
    assert report.verdict == "pass" and report.exit_code == 0
    assert report.agents["golden"].success == 1.0 and report.agents["canary for free"].success == 0.0
    assert report.speed["steps_per_s"] > 0
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["environment"]["name"] == "sound" and len(content["checks"]) == len(report.checks)


@pytest.mark.parametrize(
    ("name", "failed", "evidence"),
    [  # where more than one check fails, the others see the same defect from their side
        ("Leak", {"leakage", "near-duplicates"}, "held-out tasks are training tasks"),
        ("SharedFamily", {"leakage"}, "letter"),
        ("Repeated", {"tasks"}, "more than once"),
        ("NoTasks", {"tasks", "gymnasium"}, "orders.csv is not there"),
        ("NearDuplicates", {"near-duplicates"}, "4 of 4"),
        ("ToldAnswer", {"prompt-answer"}, "quote.total"),
        ("ToldGrader", {"prompt-grader"}, "ToldGrader.grade"),
        ("WrongGolden", {"oracle", "components"}, "fails on 8 of 8"),
        ("PaysNothing", {"cheats", "guessing", "reward"}, "succeeds on 100%"),
        ("Substring", {"cheats"}, "shotgun quote.total"),
        ("PaysAnything", {"guessing"}, "'constant quote low') succeeds on 100%"),
        ("OneScript", {"guessing"}, "'another's answer') succeeds on 100%"),
        ("Overpaid", {"reward"}, "no less than who did"),
        ("Unreachable", {"components"}, "polite"),
        ("NeverMissed", {"components"}, "kind"),
        ("Crashes", {"robustness"}, "KeyError"),
        ("NonDeterministic", {"determinism", "faults"}, "ticket"),
        ("Remembers", {"determinism", "gymnasium", "faults"}, "This is order"),
        ("LeavesProcesses", {"processes"}, "Episodes leave processes running"),
    ],
)
def test_each_defect_is_caught_by_the_check_of_its_name(name: str, failed: set[str], evidence: str) -> None:
    report = audit(name)
    assert set(report.failed) == failed
    assert any(evidence in c.evidence and c.mend for c in report.checks if c.verdict == "fail"), report.checks
    assert report.exit_code == 3


@pytest.mark.parametrize("name", ["Extracts", "ListsChoices", "UngradedNote"])
def test_what_only_looks_like_a_defect_passes(name: str) -> None:
    assert audit(name).failed == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in list_environments(ROOT) if path.startswith("envs/")])
def test_every_environment_of_the_repository_is_green(path: str) -> None:
    try:
        report = check(path, ROOT, tasks=8)
    except BadInput as e:
        if path == "envs/month_end_close":
            raise
        pytest.skip(f"needs what is not in the repository: {e}")
    assert [(c.name, c.evidence) for c in report.checks if c.verdict == "fail"] == []
    assert report.check("cheats").details["hack_rate"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Hangs", "HangsWithGrandchild"])
def test_a_hung_tool_is_named_and_its_whole_process_tree_goes(name: str) -> None:
    report = audit(name, timeout_s=3.0)
    assert report.failed == ["time-outs"]
    found = report.check("time-outs")
    assert "refresh" in found.evidence and found.details["hung"]
    assert report.check("processes").verdict == "pass", "the pool killed grandchildren, too, orphans among them"
    assert report.agents["golden"].success == 1.0, "episodes that shared a worker with a hung one are played again"


def test_what_a_killed_worker_leaves_half_done_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STALE_LOCK", str(tmp_path / "lock"))
    report = check("stale_lock:StaleLock", DEFECTS, tasks=2)
    assert report.failed == ["faults"]
    assert "another clerk is at work" in report.check("faults").evidence


def test_what_is_not_shown_is_a_warning(tmp_path: Path) -> None:
    report = audit("Silent")
    assert report.failed == [] and report.verdict == "warn" and report.exit_code == 0
    assert {c.name for c in report.checks if c.verdict == "warn"} >= {"oracle", "cheats", "components", "prompt-answer"}


def test_rewards_below_0_are_told_what_a_failed_episode_is_worth() -> None:
    found = audit("Penalises").check("reward")
    assert found.verdict == "warn" and "the agent's own fault is worth 0" in found.mend


def test_the_same_seed_audits_alike() -> None:
    first, second = (audit("Sound", seed=3).to_json() for _ in range(2))
    for report in (first, second):
        report.pop("speed")
        report["checks"] = {c["name"]: c for c in report["checks"] if c["name"] != "speed"}
    assert [(c, second["checks"][n]) for n, c in first["checks"].items() if c != second["checks"].get(n)] == []
    assert first == second


def test_marked_processes_are_found_wherever_they_went_and_killed_at_the_end() -> None:
    import subprocess

    with processes.marked() as mark:
        subprocess.run(["setsid", "sh", "-c", "sleep 614 &"], check=True)
        found = processes.running(mark)
        assert len(found) == 1 and "sleep 614" in next(iter(found.values()))
    assert processes.survivors(mark) == {}


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadInput, match="no 'Nowhere'"):
        audit("Nowhere")
    with pytest.raises(BadInput, match="at least 2"):
        check("defective:Sound", DEFECTS, tasks=1)
