"""Rows of traces: what is read, and by which words a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.traces import schema
from frontier_tune.traces.schema import Call, Origin
from tests.traces.conftest import call, raw


def test_openai_s_envelope_is_the_same_call() -> None:
    plain = Call.model_validate({"name": "add", "arguments": {"amount": 3}, "id": "c1"})
    wrapped = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"amount": 3}'}}
    assert Call.model_validate(wrapped) == plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"origin": None}, "--origin"),
        ({"license": None}, "--license"),
        ({"license": "MIT-ish"}, "no SPDX licence expression"),
        ({"origin": {"kind": "agent", "name": "x"}}, "origin.kind"),
        ({"reviewer": None}, "reviewer"),
        ({"verdict": "corrected"}, "there are none"),
        ({"corrections": [{"turn": 0, "content": "submit"}]}, "make it 'corrected'"),
        ({"verdict": "corrected", "corrections": [{"turn": 0}]}, "either tool_call or content"),
        ({"verdict": "corrected", "corrections": [{"turn": 0, "content": "submit"}] * 2}, "two of one turn"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "tool_calls": [{"name": "add"}]}]}, "makes no tool calls"),
        ({"verdit": "accepted"}, "verdit"),
    ],
)
def test_a_wrong_row_is_refused_by_name_and_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as e:
        schema.parse(raw(**changes), "work.jsonl:7")
    assert "work.jsonl:7: trace 'count-12'" in str(e.value) and said in str(e.value)


@pytest.mark.parametrize("written", ["NaN", "1e999", r'"\ud800"'])
def test_what_json_can_t_hold_refuses_its_own_row_alone(written: str) -> None:
    wrong = raw(id=None, messages=[call("add", amount=json.loads(written))])
    with pytest.raises(BadInput, match="work.jsonl:7: holds what JSON can't"):
        schema.parse(wrong, "work.jsonl:7")


def test_origin_and_license_for_all_do_not_override_a_trace_s_own() -> None:
    given = {"origin": Origin.parse("model:big-model"), "license": "MIT"}
    assert schema.parse(raw(), "x", **given).origin.name == "close team"
    bare = schema.parse(raw(origin=None, license=None), "x", **given)
    assert (bare.origin.kind, bare.origin.name, bare.license) == ("model", "big-model", "MIT")
    with pytest.raises(BadInput, match="kind:name"):
        Origin.parse("somebody")


def test_a_line_end_of_unicode_stays_inside_its_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"content": "a\u2028b"}, ensure_ascii=False) + "\n\n" + json.dumps({"b": 1}) + "\n")
    assert [data for _, data in schema.rows(path)] == [{"content": "a\u2028b"}, {"b": 1}]
    path.write_text('{"a": 1}\n{"b": \n')
    with pytest.raises(BadInput, match=r"t\.jsonl:2: not valid JSON"):
        list(schema.rows(path))
    path.write_bytes("Müller".encode("latin-1"))
    with pytest.raises(BadInput, match=r"t\.jsonl: is not UTF-8 .* at byte 1"):
        list(schema.rows(path))


def test_an_id_is_made_from_the_content_and_identity_ignores_ids() -> None:
    one, two = (schema.parse(raw(id=i), "x") for i in (None, "other"))
    assert one.id.startswith("trace-") and one.content == two.content
    assert schema.parse(raw(13), "x").content != one.content
