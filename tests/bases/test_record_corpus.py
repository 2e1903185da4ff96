"""Dialogues on records: whatever a call says is said by the prompt or an answer, or stands beside a name that they give."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import pytest

from envs.crm_cleanup import CrmCleanup
from envs.hr_triage import HrTriage
from frontier_tune.bases.corpus import records
from frontier_tune.bases.corpus.dialogues import record_dialogue, record_drill
from frontier_tune.contracts import Message
from frontier_tune.sdk.grammar import parse, render_compact
from frontier_tune.sdk.records.vocabulary import PEOPLE

SIGNATURES: dict[str, Any] = {**HrTriage.signatures, **CrmCleanup.signatures}


def test_a_pure_function_of_seed_and_index() -> None:
    for program in (record_dialogue, record_drill):
        assert program(3, 17) == program(3, 17)
        assert len({program(3, 17), program(3, 18), program(4, 17)}) == 3


def test_every_question_comes_up_and_every_call_is_in_the_grammar() -> None:
    found: Counter[str] = Counter()
    for index in range(400):
        dialogue = record_dialogue(5, index)
        found.update(dialogue.questions)
        for message in dialogue.messages:
            if message.role == "assistant":
                assert render_compact(parse(message.content, SIGNATURES), SIGNATURES) == message.content
            assert not message.content.startswith("error")
    assert set(found) == {question.__name__ for question in records.QUESTIONS} and min(found.values()) > 25


@pytest.mark.parametrize("program", [record_dialogue, record_drill], ids=["explicit", "drill"])
def test_nothing_is_left_to_chance_or_copied_from_a_record(program: Any) -> None:
    """Each argument of a call is in the prompt, was told by somebody, or is ``it``."""
    for index in range(300):
        messages = program(6, index).messages
        prompt = messages[0].content.split("\nTables:")[0]
        for at, message in enumerate(messages):
            if message.role == "assistant" and message.content != "submit":
                said = _said(messages[:at])
                for item in re.split(r" \| |, |!| ", message.content.split(" ", 1)[1]):
                    assert item == "it" or item in prompt or item in said, (prompt, message.content)


def _said(messages: tuple[Message, ...]) -> str:
    """Whom people named instead of themselves."""
    return "\n".join(m.content for m in messages if m.role == "tool" and "request " in m.content)


def test_a_person_is_found_by_the_field_that_names_them() -> None:
    """No two fields of a record hold the same person: taking any would not do."""
    for seed in range(200):
        file = records.make_file(random.Random(seed))
        for record in (file.session.locate(file.key)[2], file.staff):
            people = [value for value in record.values() if value in PEOPLE]
            assert len(people) == len(set(people))
