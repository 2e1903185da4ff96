"""Practice dialogues: every way of doing the work about equally often, nothing in the prompt that gives one away."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from envs.crm_cleanup import Company as CrmCompany
from envs.crm_cleanup import CrmCleanup
from envs.crm_cleanup.conventions import CHOICES
from frontier_tune.contracts import BadInput, Message
from frontier_tune.sdk.practice import dialogues


def test_every_way_is_met_and_none_is_a_favourite(root: Path) -> None:
    found = list(dialogues("envs/crm_cleanup", root, n=480, seed=3))
    assert len(found) == 480 and list(dialogues("envs/crm_cleanup", root, n=480, seed=3))[:3] == found[:3]
    tasks = CrmCleanup().tasks("train", 480, 3)
    for practice, task in zip(found, tasks, strict=True):
        prompt, *_, ending, last = practice.messages
        assert (practice.kind, prompt.role) == (task.kind, "user") and (ending.content, last.role) == ("submit", "tool")
        assert prompt == CrmCleanup(0).reset(options={"task": task})[0][0]  # the same whatever the company
    ways = Counter(CrmCompany.draw(p.company).line_style for p in found if p.kind == "number")
    assert set(ways) == set(CHOICES["line_style"]) and max(ways.values()) < 30  # of 60 in all, 15 expected
    calls = [m.content for p in found for m in p.messages if m.role == "assistant"]
    assert {c.partition(" ")[0] for c in calls} == {"read", "find", "merge", "write", "normalise", "clear", "send", "submit"}


def test_refused_where_there_are_no_companies_or_no_way(root: Path) -> None:
    with pytest.raises(BadInput, match="no_such_option"):
        next(dialogues("envs/crm_cleanup", root, n=1, seed=0, option="no_such_option"))
    with pytest.raises(BadInput, match="company_seed"):
        next(dialogues("defective:Sound", root / "tests" / "evaluation" / "defects", n=1, seed=0))


def test_an_assistant_s_turn_is_a_compact_call(root: Path) -> None:
    (practice,) = dialogues("envs/hr_triage", root, n=1, seed=0)
    roles = [m.role for m in practice.messages]
    assert roles[1::2] == ["assistant"] * (len(roles) // 2) and roles[2::2] == ["tool"] * (len(roles) // 2)
    assert practice.messages[-2] == Message("assistant", "submit")
