"""OpenTelemetry's GenAI conventions: model calls of one conversation become one trace.

Read are the attributes ``gen_ai.input.messages``, ``gen_ai.output.messages`` and ``gen_ai.system_instructions`` of spans or of
the event ``gen_ai.client.inference.operation.details`` (conventions since 1.37), and the events ``gen_ai.user.message`` to
``gen_ai.choice`` of earlier ones (opentelemetry.io/docs/specs/semconv/gen-ai). Results of tools are taken from ``execute_tool``
spans where the dialogue ends with a call; verdicts from ``gen_ai.evaluation.result``. Most instrumentations capture no content
unless told to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, canonical_json
from frontier_tune.traces.otlp import Event, Span, load

DETAILS, EVALUATION = "gen_ai.client.inference.operation.details", "gen_ai.evaluation.result"
EARLIER = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
CHOICE = "gen_ai.choice"
LABELS = {
    "accepted": ("accepted", "pass", "passed", "correct", "good", "approved", "yes", "true"),
    "rejected": ("rejected", "fail", "failed", "incorrect", "bad", "declined", "no", "false"),
}
Raw = dict[str, Any]


def read(path: Path, own: Sequence[str] = ()) -> Iterator[tuple[str, Raw | BadInput]]:
    """``(where, trace as ``schema.parse`` takes it)`` of each conversation, or why it can't be one.

    ``own``: names of models that are the company's own. Raises BadInput for a file that holds no GenAI content at all.
    """
    spans, loose = load(path)
    sessions: dict[str, list[Span]] = {}
    for span in spans:
        if any(k.startswith("gen_ai.") for k in span.attributes):
            sessions.setdefault(_session(span), []).append(span)
    found = False
    for name, members in sessions.items():
        traces = {s.trace for s in members}  # tools and the agent itself may have spans of their own there
        around = [s for s in spans if s.trace in traces and not _of_another(s, name)]
        evaluations = [e for s in around for e in s.events if e.name == EVALUATION]
        evaluations += [e for e in loose if e.name == EVALUATION and e.trace in traces]
        where = f"{path}: conversation {name}"
        try:
            raw = _trace(name, members, around, evaluations, own)
        except BadInput as e:
            found = True
            yield where, e
            continue
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            found = True
            yield where, BadInput(f"its content is not of the conventions' shape ({type(e).__name__}: {e})")
            continue
        if raw is not None:
            found = True
            yield where, raw
    if not found:
        raise BadInput(
            f"{path}: {len(spans)} spans, none with the content of messages; instrumentations capture it only when told to "
            "(for example OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT)"
        )


def _session(span: Span) -> str:
    a = span.attributes
    agent = a.get("gen_ai.agent.id") or a.get("gen_ai.agent.name")
    conversation = str(a.get("gen_ai.conversation.id") or span.trace)
    return f"{conversation}/{agent}" if agent and a.get("gen_ai.operation.name") == "chat" else conversation


def _of_another(span: Span, name: str) -> bool:
    """Whether a span beside conversation ``name`` tells of another one: what it was found to be is not said of this one."""
    stated = span.attributes.get("gen_ai.conversation.id")
    if stated is not None and str(stated) != name and not name.startswith(f"{stated}/"):
        return True
    return span.attributes.get("gen_ai.operation.name") == "chat" and _session(span) != name


def _trace(name: str, spans: list[Span], around: list[Span], evaluations: list[Event], own: Sequence[str]) -> Raw | None:
    dialogue: list[Raw] = []
    models: set[str] = set()
    for span in spans:
        said = _content(span)
        if said is None or span.attributes.get("gen_ai.operation.name") == "invoke_agent":
            continue  # an agent's span repeats what its model calls hold
        models.add(str(span.attributes.get("gen_ai.response.model") or span.attributes.get("gen_ai.request.model") or ""))
        dialogue = _joined(dialogue, *said, span)
    if not dialogue:
        return None
    if len(models) != 1 or "" in models:
        shown = ", ".join(sorted(m or "unnamed" for m in models))
        raise BadInput(f"calls of the models {shown}; a trace has one origin")
    model = models.pop()
    raw: Raw = {"id": name, "messages": dialogue + _results(dialogue, around), "origin": _origin(model, own)}
    extra = {k: v for s in around for k, v in s.attributes.items() if k in ("frontier_tune.task", "frontier_tune.license")}
    if "frontier_tune.task" in extra:
        raw["task"] = _json(extra["frontier_tune.task"])
    if "frontier_tune.license" in extra:
        raw["license"] = extra["frontier_tune.license"]
    return raw | _verdict(evaluations)


def _origin(model: str, own: Sequence[str]) -> Raw:
    return {"kind": "own_policy" if model in own else "model", "name": model}


def _joined(so_far: list[Raw], given: list[Raw], made: list[Raw], span: Span) -> list[Raw]:
    """The dialogue after one more call. A call's input is all that came before, or (of APIs that keep state) only what is new."""
    common = 0
    while common < min(len(so_far), len(given)) and _plain(so_far[common]) == _plain(given[common]):
        common += 1
    if common == len(so_far):
        return given + made
    if common == 0 and all(m["role"] in ("user", "tool") for m in given) and given:
        return so_far + given + made
    raise BadInput(
        f"span {span.id}: message {common} of its input is not what was said before; history was rewritten or cut, so that no "
        "later turn can be learned in its context"
    )


def _plain(message: Raw) -> Any:
    calls = [(c["name"], _json(c.get("arguments"))) for c in message.get("tool_calls", ())]
    return message["role"], message.get("content", "").strip(), calls


def _content(span: Span) -> tuple[list[Raw], list[Raw]] | None:
    """(what the model was given, what it said), or None where the span holds no content."""
    for fields in (span.attributes, *(e.attributes for e in span.events if e.name == DETAILS)):
        if "gen_ai.output.messages" in fields or "gen_ai.input.messages" in fields:
            system = _json(fields.get("gen_ai.system_instructions")) or []
            given = [{"role": "system", "parts": system}] if system else []
            given += _json(fields.get("gen_ai.input.messages")) or []
            made = _json(fields.get("gen_ai.output.messages")) or []
            return _messages(given), _messages(made[:1])  # of several choices the first
    given, made = [], []
    for event in span.events:
        body = _json(event.attributes.get("gen_ai.event.content")) or event.attributes
        if event.name in EARLIER:
            given.append(_earlier(EARLIER[event.name], body))
        elif event.name == CHOICE and not int(body.get("index") or 0):
            message = _json(body.get("message"))
            made.append(
                _earlier("assistant", message if isinstance(message, dict) else {"content": message or body.get("content")})
            )
    return (given, made[:1]) if given or made else None


def _messages(wire: Any) -> list[Raw]:
    if not isinstance(wire, list) or not all(isinstance(m, dict) for m in wire):
        raise BadInput("its messages are not a list of objects")
    return [out for m in wire for out in _parts(m)]


def _parts(message: Raw) -> Iterator[Raw]:
    """A message of parts as ours: text and calls in one, each result of a tool as one of its own."""
    texts, calls, results = [], [], []
    for part in message.get("parts") or ():
        kind = part.get("type")
        if kind == "text":
            texts.append(_text(part.get("content")))
        elif kind == "tool_call":
            calls.append({"name": part.get("name"), "arguments": _json(part.get("arguments")) or {}, "id": part.get("id")})
        elif kind == "tool_call_response":
            answer = part.get("response", part.get("result"))
            results.append({"role": "tool", "content": _text(answer), "tool_call_id": part.get("id")})
        elif kind != "reasoning":  # a model's thoughts are no part of what it said
            raise BadInput(f"a message has a part of type '{kind}', which is neither text nor a tool's")
    yield from results
    if texts or calls or not results:
        role = "assistant" if calls else message.get("role", "")
        yield {"role": role, "content": "\n".join(texts), **({"tool_calls": calls} if calls else {})}


def _earlier(role: str, body: Raw) -> Raw:
    calls = _json(body.get("tool_calls")) or []
    found: Raw = {"role": role, "content": _text(body.get("content"))}
    if calls:
        found["tool_calls"] = [{**(c.get("function") or c), "id": c.get("id")} for c in calls]
        found["tool_calls"] = [{k: v for k, v in c.items() if k in ("name", "arguments", "id")} for c in found["tool_calls"]]
    if role == "tool":
        found["tool_call_id"] = body.get("id")
    return found


def _results(dialogue: list[Raw], spans: list[Span]) -> list[Raw]:
    """What the last calls returned, where the tools' own spans tell."""
    calls = dialogue[-1].get("tool_calls", ())
    known = {
        s.attributes["gen_ai.tool.call.id"]: s.attributes["gen_ai.tool.call.result"]
        for s in spans
        if {"gen_ai.tool.call.id", "gen_ai.tool.call.result"} <= set(s.attributes)
    }
    if not calls or not all(c.get("id") in known for c in calls):
        return []
    return [{"role": "tool", "content": _text(known[c["id"]]), "tool_call_id": c["id"]} for c in calls]


def _verdict(evaluations: list[Event]) -> Raw:
    """What evaluations say, if they say one thing."""
    found: dict[str, str] = {}
    for e in evaluations:
        label = str(e.attributes.get("gen_ai.evaluation.score.label", "")).strip().lower()
        for verdict, words in LABELS.items():
            if label in words:
                found.setdefault(verdict, str(e.attributes.get("gen_ai.evaluation.name") or "unnamed"))
    if len(found) > 1:
        raise BadInput(f"its evaluations disagree: {', '.join(f'{name} has it {v}' for v, name in found.items())}")
    return {"verdict": v, "reviewer": f"evaluation {name}"} if (v := next(iter(found), "")) and (name := found[v]) else {}


def _json(value: Any) -> Any:
    """Spans hold structured values as JSON text where their SDK has no structured attributes."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else canonical_json(value)
