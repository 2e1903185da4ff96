"""OTLP as JSON: spans and log records with their attributes as plain Python values.

A file holds one export request, a list of them, or one a line (what the collector's file exporter writes). The wire form is that
of opentelemetry-proto: ``resourceSpans`` > ``scopeSpans`` > ``spans``, ``resourceLogs`` > ``scopeLogs`` > ``logRecords``;
attributes are lists of ``{"key", "value": {"stringValue" | "intValue" | ...}}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.traces.schema import text_of


@dataclass(frozen=True)
class Event:
    """A span event or a log record. ``attributes`` have the fields of a structured body, too."""

    name: str
    time: int
    attributes: dict[str, Any]
    trace: str = ""
    span: str = ""


@dataclass
class Span:
    trace: str
    id: str
    name: str
    start: int
    attributes: dict[str, Any]
    events: list[Event] = field(default_factory=list)


def load(path: Path) -> tuple[list[Span], list[Event]]:
    """Spans in order of their start, events of their log records attached; and the log records of no span in the file.

    Raises BadInput for a file that is not JSON, or holds no OTLP.
    """
    spans: dict[tuple[str, str], Span] = {}
    records: list[Event] = []
    seen = False
    for where, request in _requests(path):
        if not isinstance(request, dict) or not ({"resourceSpans", "resourceLogs"} & set(request)):
            raise BadInput(f"{where}: no OTLP (neither resourceSpans nor resourceLogs in it)")
        seen = True
        try:
            for span in _spans(request):
                spans[span.trace, span.id] = span
            records += _records(request)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadInput(f"{where}: malformed OTLP ({type(e).__name__}: {e})") from None
    if not seen:
        raise BadInput(f"{path}: is empty")
    loose: list[Event] = []
    for record in records:
        span_of = spans.get((record.trace, record.span))
        (span_of.events if span_of else loose).append(record)
    for one in spans.values():
        one.events.sort(key=lambda e: e.time)
    return sorted(spans.values(), key=lambda s: (s.start, s.id)), loose


def _requests(path: Path) -> Iterator[tuple[str, Any]]:
    text = text_of(path)
    try:
        whole = json.loads(text)
    except ValueError:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as e:
                    raise BadInput(f"{path}:{number}: not valid JSON: {e}") from None
        return
    yield from ((str(path), item) for item in (whole if isinstance(whole, list) else [whole]))


def _spans(request: dict[str, Any]) -> Iterator[Span]:
    for resource in request.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for s in scope.get("spans", ()):
                events = [
                    Event(e.get("name", ""), int(e.get("timeUnixNano", 0)), attributes(e.get("attributes", ())))
                    for e in s.get("events", ())
                ]
                start = int(s.get("startTimeUnixNano", 0))
                yield Span(s["traceId"], s["spanId"], s.get("name", ""), start, attributes(s.get("attributes", ())), events)


def _records(request: dict[str, Any]) -> Iterator[Event]:
    for resource in request.get("resourceLogs", ()):
        for scope in resource.get("scopeLogs", ()):
            for r in scope.get("logRecords", ()):
                found = attributes(r.get("attributes", ()))
                body = value(r["body"]) if r.get("body") else None
                name = r.get("eventName") or found.get("event.name", "")
                time = int(r.get("timeUnixNano") or r.get("observedTimeUnixNano") or 0)
                fields = {**found, **body} if isinstance(body, dict) else found
                yield Event(name, time, fields, r.get("traceId", ""), r.get("spanId", ""))


def attributes(pairs: Any) -> dict[str, Any]:
    return {p["key"]: value(p.get("value", {})) for p in pairs}


def value(wire: dict[str, Any]) -> Any:
    """An AnyValue as Python has it. 64-bit integers come as text in OTLP's JSON."""
    if "arrayValue" in wire:
        return [value(v) for v in wire["arrayValue"].get("values", ())]
    if "kvlistValue" in wire:
        return attributes(wire["kvlistValue"].get("values", ()))
    if "intValue" in wire:
        return int(wire["intValue"])
    return next((wire[k] for k in ("stringValue", "boolValue", "doubleValue", "bytesValue") if k in wire), None)
