"""Traces as an environment's dialogues: one call a turn, results where they belong, everything else refused by turn."""

from __future__ import annotations

from typing import Any

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.sdk.grammar import ToolCall
from frontier_tune.traces import schema
from frontier_tune.traces.dialogue import Dialogue, said_json, said_of, unroll
from frontier_tune.traces.replay import Workbench
from tests.traces.conftest import call, raw

USER = {"role": "user", "content": "reach 12"}


def said(bench: Workbench, *messages: dict[str, Any], **changes: Any) -> Dialogue:
    return unroll(schema.parse(raw(messages=list(messages), **changes), "x"), bench.signatures)


def test_calls_as_objects_and_as_text_are_the_same(bench: Workbench) -> None:
    spoken = [{"role": "assistant", "content": text} for text in ("add 12", '{"name": "submit", "arguments": {}}')]
    called = [call("add", amount=12), call("submit")]
    for a, b in zip(said(bench, USER, *spoken).turns, said(bench, USER, *called).turns, strict=True):
        assert a.call == b.call


def test_parallel_calls_become_turns_with_their_own_results(bench: Workbench) -> None:
    calls = [{"id": f"c{i}", "name": "add", "arguments": {"amount": i}} for i in (1, 2, 3)]
    answers = [{"role": "tool", "content": f"total of c{i}", "tool_call_id": f"c{i}"} for i in (3, 1, 2)]
    found = said(bench, USER, {"role": "assistant", "content": "let me see", "tool_calls": calls}, *answers, call("submit"))
    assert [t.call.arguments for t in found.turns if t.call] == [{"amount": 1}, {"amount": 2}, {"amount": 3}, {}]
    assert [t.answer[0].content for t in found.turns[:3]] == ["total of c1", "total of c2", "total of c3"]
    assert found.notes == ("turn 0: words beside the call were left out",)


def test_closing_words_are_left_out_and_told(bench: Workbench) -> None:
    done = {"role": "assistant", "content": "I have reached 12."}
    found = said(bench, USER, call("submit"), {"role": "tool", "content": "thank you"}, done)
    assert len(found.turns) == 1 and "closing words" in found.notes[0]


def test_results_may_be_missing_where_the_environment_gives_its_own(bench: Workbench) -> None:
    assert len(said(bench, USER, call("add", amount=12), call("submit")).turns) == 2
    with pytest.raises(BadInput, match="turn 0: 1 calls, but 0 results"):
        said(bench, USER, call("add", amount=12), call("submit"), task=None)


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([USER], "no call"),
        ([call("submit")], "does not begin with a user's message"),
        ([USER, call("subtract", amount=1)], "turn 0: unknown tool 'subtract'"),
        ([USER, call("add", amount="many")], "turn 0: add: amount is a whole number"),
        ([USER, call("add", sum=1)], "turn 0: add: unknown argument 'sum'"),
        ([USER, {"role": "assistant", "content": "I would add 12"}, call("submit")], "turn 0: neither a tool call"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "submit"}] * 3}, {"role": "tool"}, call("submit")],
            "turn 0: 3 calls, but 1 results",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_turn(bench: Workbench, messages: list[dict[str, Any]], wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        said(bench, *messages)


def test_a_corrected_turn_may_be_the_one_that_does_not_fit(bench: Workbench) -> None:
    fixed = {"verdict": "corrected", "corrections": [{"turn": 0, "content": "add 12"}]}
    found = said(bench, USER, {"role": "assistant", "content": "I would add 12"}, **fixed)
    assert found.turns[0].call is None and found.turns[0].said == "I would add 12"
    found = said(bench, USER, call("add", sum=12), **fixed)
    assert found.turns[0].said == '{"name": "add", "arguments": {"sum": 12}}'
    with pytest.raises(BadInput, match="turn 5: the trace has 1 turns"):
        said(bench, USER, call("submit"), verdict="corrected", corrections=[{"turn": 5, "content": "submit"}])


def test_what_was_said_survives_json() -> None:
    for value in (ToolCall("add", {"amount": 3}), "free text"):
        assert said_of(said_json(value)) == value
