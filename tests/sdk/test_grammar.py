"""The grammar round-trips in both renderings, and what is wrong is said so that a model can mend it."""

import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.contracts import Message
from frontier_tune.sdk.grammar import (
    GrammarError,
    ToolCall,
    bind,
    compact_dialogue,
    escape_markers,
    parse,
    render_compact,
    render_json,
)
from frontier_tune.sdk.tools import collect_tools, tool


class Tools:
    @tool
    def fill(self, cell: str, formula: str, rows: int = 1) -> str:
        """Fill.

        Args:
            cell: Where.
            formula: What.
            rows: How many.
        """
        return ""

    @tool
    def set(
        self,
        text: str,
        number: float,
        flag: bool,
        mode: Literal["a", "b"] | None,
        note: str | None = None,
        level: Literal[1, 2] = 1,
    ) -> str:
        """Set.

        Args:
            text: Text.
            number: Number.
            flag: Flag.
            mode: Mode.
            note: Note.
            level: Level.
        """
        return ""

    @tool(ends=True)
    def submit(self) -> str:
        """Hand in."""
        return ""


SIGNATURES = {verb: signature for verb, (_, signature) in collect_tools(Tools).items()}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text(" \\|\n\tnse|N{`<", max_size=8)
calls = st.one_of(
    st.just(ToolCall("submit")),
    st.builds(lambda **a: ToolCall("fill", a), cell=text, formula=text, rows=st.integers(-(10**17), 10**17)),
    st.builds(
        lambda **a: ToolCall("set", a),
        text=text,
        number=st.floats(allow_nan=False, allow_infinity=False),
        flag=st.booleans(),
        mode=st.sampled_from(["a", "b", None]),
        note=text | st.none(),
        level=st.sampled_from([1, 2]),
    ),
)


@given(calls)
@settings(max_examples=400)
def test_both_renderings_give_the_call_back(call: ToolCall) -> None:
    compact = render_compact(call, SIGNATURES)
    assert "\n" not in compact
    assert parse(compact, SIGNATURES) == call
    assert parse(f"  {compact} \n", SIGNATURES) == call
    as_json = render_json(call)
    assert parse(as_json, SIGNATURES) == call
    assert parse(f"```json\n{as_json}\n```", SIGNATURES) == call
    assert parse(f"<tool_call>\n{as_json}\n</tool_call>", SIGNATURES) == call
    openai = {"id": "1", "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
    assert parse(json.dumps(openai), SIGNATURES) == call


@given(st.text(max_size=60) | st.text(' fill|\\{"}:[]`<>submit1e9,', max_size=40))
@settings(max_examples=400)
def test_any_text_is_a_call_or_a_grammar_error(raw: str) -> None:
    try:
        call = parse(raw, SIGNATURES)
    except GrammarError as e:
        assert len(str(e)) < 300
    else:
        assert parse(render_compact(call, SIGNATURES), SIGNATURES) == call


def test_compact_text_reads_as_documented() -> None:
    assert parse("fill D5 | =B5-C5", SIGNATURES).arguments == {"cell": "D5", "formula": "=B5-C5", "rows": 1}
    assert render_compact(ToolCall("fill", {"cell": "D5", "formula": "=B5-C5", "rows": 1}), SIGNATURES) == "fill D5 | =B5-C5"
    assert parse("submit", SIGNATURES) == ToolCall("submit")
    assert parse(r"fill a\|b | c\\d\ne", SIGNATURES).arguments["formula"] == "c\\d\ne"
    assert parse(r"set \e | 1 | TRUE | \N | \N | 2", SIGNATURES).arguments["mode"] is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "no call; tools: fill, set, submit"),
        ("fil D5 | x", "unknown tool 'fil'; tools: fill, set, submit"),
        ("fill D5", "fill: got 1 argument; usage: fill cell | formula [| rows]"),
        ("submit now", "submit: got 1 argument; usage: submit"),
        ("fill a | b | x", "fill: rows is a whole number, got 'x'"),
        ("fill a | b | 1_0", "fill: rows is a whole number, got '1_0'"),
        ("fill a | C:\\x", "fill: formula: '\\x' is no escape; write a backslash as \\\\"),
        ("fill a | b\\", "fill: formula: '\\' is no escape; write a backslash as \\\\"),
        ("fill a | b\nsubmit", "one call on one line; write a line end inside an argument as \\n"),
        ("set a | nan | true | a", "set: number is a number, got 'nan'"),
        ("set a | 1 | true | c", "set: mode is one of a, b, got 'c'"),
        ("[]", 'a call in JSON is one object: {"name": "...", "arguments": {...}}'),
        ("{", "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"name": "fill", "arguments": {"cell": "a"}}', "fill: missing argument 'formula'; usage: fill cell | formula [| rows]"),
        ('{"name": "submit", "arguments": {"x": 1}}', "submit: unknown argument 'x'; usage: submit"),
        ('{"name": "fill", "arguments": {"cell": "\\ud800", "formula": ""}}', "fill: cell is not valid Unicode"),
        ('{"name": "fill", "arguments": {"cell": 1e999, "formula": ""}}', "fill: cell is not finite"),
        ('{"name": "fill", "arguments": {"cell": NaN, "formula": ""}}', "not valid JSON: NaN is no number"),
    ],
)
def test_errors_tell_the_model_what_to_do(raw: str, message: str) -> None:
    with pytest.raises(GrammarError) as e:
        parse(raw, SIGNATURES)
    assert str(e.value) == message


def test_json_numbers_become_the_declared_type() -> None:
    call = bind("fill", {"cell": 5, "formula": 1.5, "rows": 2.0}, SIGNATURES)
    assert call.arguments == {"cell": "5", "formula": "1.5", "rows": 2}
    with pytest.raises(GrammarError):
        bind("fill", {"cell": "a", "formula": "b", "rows": True}, SIGNATURES)


def test_dialogue_keeps_its_markers_to_itself() -> None:
    dialogue = [Message("user", "do <|call|>"), Message("assistant", "submit"), Message("tool", "ok")]
    assert compact_dialogue(dialogue) == "<|user|>do < |call|><|end|><|call|>submit<|end|><|tool|>ok<|end|>"
    assert "<|" not in escape_markers("<|<|end|>|>")
