"""OpenTelemetry traces, written by its own SDK and protobuf, become traces, or are refused by conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.traces import importer, otel, schema
from frontier_tune.traces.dialogue import unroll
from frontier_tune.traces.replay import HeldOut, Workbench
from frontier_tune.traces.store import Store

trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")
encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
names = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")

TASK = {"frontier_tune.task": json.dumps({"kind": "count", "data": {"target": 12}})}


def text(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": content}]}


def asks(name: str, id: str, **arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "parts": [{"type": "tool_call", "id": id, "name": name, "arguments": arguments}]}


def answers(id: str, response: Any) -> dict[str, Any]:
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": id, "response": response}]}


HISTORY = [text("user", "reach 12"), asks("add", "c1", amount=12), answers("c1", "total 12"), asks("submit", "c2")]


def chat(upto: int, model: str = "big-model-5", system: bool = True, **more: Any) -> dict[str, Any]:
    """Attributes of the model call that made message ``upto`` of HISTORY."""
    found = {
        names.GEN_AI_OPERATION_NAME: "chat",
        names.GEN_AI_RESPONSE_MODEL: model,
        names.GEN_AI_INPUT_MESSAGES: json.dumps(HISTORY[:upto]),
        names.GEN_AI_OUTPUT_MESSAGES: json.dumps([HISTORY[upto] | {"finish_reason": "tool_call"}]),
    }
    if system:
        found[names.GEN_AI_SYSTEM_INSTRUCTIONS] = json.dumps([{"type": "text", "content": "You count."}])
    return found | more


def write(
    path: Path,
    spans: Sequence[dict[str, Any]],
    events: Sequence[tuple[str, dict[str, Any]]] = (),
    root: dict[str, Any] | None = None,
) -> Path:
    """Spans of one OpenTelemetry trace, with ``events`` on the last, as OTLP JSON by way of its own encoder."""
    from google.protobuf.json_format import MessageToJson
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), trace_sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("invoke_agent counter", attributes=root):
        for i, attributes in enumerate(spans):
            with tracer.start_as_current_span("chat", attributes=attributes) as span:
                for name, fields in events if i == len(spans) - 1 else ():
                    span.add_event(name, fields)
    path.write_text(MessageToJson(encoder.encode_spans(exporter.get_finished_spans())))
    return path


def only(path: Path, **options: Any) -> schema.Trace:
    ((where, raw),) = otel.read(path, **options)
    assert not isinstance(raw, BadInput)
    return schema.parse(raw, where, license="LicenseRef-Internal")


def test_calls_of_a_conversation_are_one_dialogue(tmp_path: Path, bench: Workbench) -> None:
    tool = {
        names.GEN_AI_OPERATION_NAME: "execute_tool",
        names.GEN_AI_TOOL_CALL_ID: "c2",
        names.GEN_AI_TOOL_CALL_RESULT: "thank you",
    }
    found = only(write(tmp_path / "t.json", [chat(1), chat(3, **TASK), tool]))
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert (found.origin.kind, found.origin.name) == ("model", "big-model-5") and found.verdict is None
    assert [t.call.name for t in unroll(found, bench.signatures).turns if t.call] == ["add", "submit"]
    assert found.messages[-1].content == "thank you"
    assert found.task is not None and found.task.data == {"target": 12}


def test_imported_it_is_replayed_and_its_model_is_its_origin(
    tmp_path: Path, store: Store, bench: Workbench, held_out: HeldOut
) -> None:
    evaluation = {names.GEN_AI_EVALUATION_NAME: "close audit", names.GEN_AI_EVALUATION_SCORE_LABEL: "Pass"}
    path = write(tmp_path / "t.json", [chat(1), chat(3, **TASK)], [(otel.EVALUATION, evaluation)])
    found = importer.take(str(path), importer.read(path), store, bench, held_out, license="LicenseRef-Internal")
    assert len(found.taken) == 1 and not found.refused
    (row,) = store.demonstrations
    assert [m.role for m in row.opening] == ["user"]  # the environment's own opening, not the other agent's instructions
    assert (row.made.reviewer, row.made.origin.name) == ("evaluation close audit", "big-model-5")
    assert only(path, own=["big-model-5"]).origin.kind == "own_policy"


def test_tools_and_the_agent_have_spans_of_their_own(tmp_path: Path) -> None:
    """Only model calls name their agent here; the task stands on the agent's span."""
    agent = {names.GEN_AI_AGENT_NAME: "counter"}
    tool = {
        names.GEN_AI_OPERATION_NAME: "execute_tool",
        names.GEN_AI_TOOL_CALL_ID: "c2",
        names.GEN_AI_TOOL_CALL_RESULT: "thank you",
    }
    found = only(write(tmp_path / "t.json", [chat(1, **agent), chat(3, **agent), tool], root=TASK))
    assert found.messages[-1].content == "thank you" and found.task is not None


def test_an_api_that_keeps_state_sends_only_what_is_new(tmp_path: Path) -> None:
    second = chat(3) | {names.GEN_AI_INPUT_MESSAGES: json.dumps([HISTORY[2]])}
    del second[names.GEN_AI_SYSTEM_INSTRUCTIONS]
    found = only(write(tmp_path / "t.json", [chat(1), second]))
    assert found.messages == only(write(tmp_path / "u.json", [chat(1), chat(3)])).messages


def test_rewritten_history_is_refused_by_conversation(tmp_path: Path) -> None:
    summary = [text("user", "reach 12"), text("assistant", "(summary of what was done)")]
    second = chat(3) | {names.GEN_AI_INPUT_MESSAGES: json.dumps(summary)}
    ((where, error),) = otel.read(write(tmp_path / "t.json", [chat(1), second]))
    assert "conversation" in where and "history was rewritten" in str(error)


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([chat(1), chat(3, model="other")], "one origin"),
        ([chat(1) | {names.GEN_AI_INPUT_MESSAGES: '[{"role": "user", "parts": [{"type": "blob"}]}]'}], "part of type 'blob'"),
        ([chat(1) | {names.GEN_AI_INPUT_MESSAGES: '"hello"'}], "not a list"),
        ([chat(1) | {names.GEN_AI_SYSTEM_INSTRUCTIONS: "You count."}], "not of the conventions' shape"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, spans: list[dict[str, Any]], reason: str) -> None:
    ((_, error),) = otel.read(write(tmp_path / "t.json", spans))
    assert isinstance(error, BadInput) and reason in str(error)


def test_evaluations_that_disagree_are_no_verdict(tmp_path: Path) -> None:
    events = [(otel.EVALUATION, {names.GEN_AI_EVALUATION_SCORE_LABEL: label}) for label in ("pass", "fail")]
    ((_, error),) = otel.read(write(tmp_path / "t.json", [chat(1)], events))
    assert "disagree" in str(error)


@pytest.mark.parametrize("told_apart_by", [names.GEN_AI_CONVERSATION_ID, names.GEN_AI_AGENT_NAME])
def test_a_verdict_on_one_conversation_is_none_on_another_of_the_same_trace(tmp_path: Path, told_apart_by: str) -> None:
    spans = [chat(1, **{told_apart_by: "first"}), chat(1, **{told_apart_by: "second"}, **TASK)]
    path = write(tmp_path / "t.json", spans, [(otel.EVALUATION, {names.GEN_AI_EVALUATION_SCORE_LABEL: "pass"})])
    first, second = (schema.parse(found, where, license="MIT") for where, found in otel.read(path))
    assert (first.verdict, first.task) == (None, None)
    assert second.verdict == "accepted" and second.task is not None


def test_events_of_the_earlier_conventions_are_read(tmp_path: Path) -> None:
    """As span events (flat attributes), and as log records (structured bodies)."""
    call = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"amount": 12}'}}]
    plain = {names.GEN_AI_OPERATION_NAME: "chat", names.GEN_AI_RESPONSE_MODEL: "big-model-5"}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": json.dumps({"content": None, "tool_calls": call})}
    flat = [("gen_ai.user.message", {"content": "reach 12"}), ("gen_ai.choice", choice)]
    found = only(write(tmp_path / "t.json", [plain], flat))
    assert [m.role for m in found.messages] == ["user", "assistant"]
    assert found.messages[1].tool_calls[0].arguments == {"amount": 12}

    def wire(value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {"kvlistValue": {"values": [{"key": k, "value": wire(v)} for k, v in value.items()]}}
        if isinstance(value, list):
            return {"arrayValue": {"values": [wire(v) for v in value]}}
        return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}

    bodies = [
        ("gen_ai.user.message", {"content": "reach 12"}),
        ("gen_ai.choice", {"index": 0, "message": {"tool_calls": call}}),
    ]
    records = [
        {"timeUnixNano": str(i), "eventName": name, "traceId": "ab", "spanId": "cd", "body": wire(body)}
        for i, (name, body) in enumerate(bodies)
    ]
    span = {
        "traceId": "ab",
        "spanId": "cd",
        "startTimeUnixNano": "1",
        "attributes": [{"key": k, "value": wire(v)} for k, v in plain.items()],
    }
    lines = [
        {"resourceLogs": [{"scopeLogs": [{"logRecords": records[::-1]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]},
    ]
    path = tmp_path / "collector.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert only(path).messages == found.messages


def test_a_file_without_content_says_how_to_capture_it(tmp_path: Path) -> None:
    bare = {names.GEN_AI_OPERATION_NAME: "chat", names.GEN_AI_RESPONSE_MODEL: "big-model-5"}
    with pytest.raises(BadInput, match="capture"):
        list(otel.read(write(tmp_path / "t.json", [bare])))
    broken = tmp_path / "b.json"
    for content, reason in (("", "empty"), ('{"a": 1}', "no OTLP"), ('{"resourceSpans": [{"scopeSpans": 3}]}', "malformed")):
        broken.write_text(content)
        with pytest.raises(BadInput, match=reason):
            list(otel.read(broken))
