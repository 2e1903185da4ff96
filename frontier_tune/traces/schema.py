"""A trace of work as one JSON object: what was said and called, what a reviewer found, who made it, under which licence.

One trace a line of a JSONL file; docs/traces.md lists the fields. OpenTelemetry traces (``otel``) are read into the same form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from frontier_tune.contracts import BadInput, content_hash
from frontier_tune.governance.datasheet import check_license

License = Annotated[str, AfterValidator(check_license)]
Line = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Maker(StrEnum):
    """Who or what produced a trace. A policy decides by it, so *unknown* is no value."""

    PERSON = "person"
    OWN_POLICY = "own_policy"  # the company's own tuned model, or its base
    MODEL = "model"  # a third party's, by name
    PROGRAM = "program"  # code, no model's output in it


class Origin(Strict):
    """``name``: the person or team, the run or adapter, the model as its provider calls it, or the program."""

    kind: Maker
    name: Line

    @classmethod
    def parse(cls, text: str) -> Origin:
        """From ``kind:name``, for example ``person:close team``. Raises BadInput."""
        kind, _, name = text.partition(":")
        if kind not in list(Maker) or not name.strip():
            raise BadInput(f"origin '{text}': write it as kind:name, with a kind of {', '.join(Maker)}")
        return cls(kind=Maker(kind), name=name.strip())


class Call(Strict):
    """A tool call. OpenAI's envelope (``function``, arguments as a JSON string) is read, too."""

    name: Line
    arguments: dict[str, Any] = {}
    id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {k: v for k, v in data.items() if k != "type"}
        function = data.pop("function", None)
        if isinstance(function, dict):
            data |= function
        if isinstance(data.get("arguments"), str):
            try:
                data["arguments"] = json.loads(data["arguments"] or "{}")
            except ValueError as e:
                raise ValueError(f"arguments are not valid JSON: {e}") from None
        return {k: v for k, v in data.items() if v is not None}


class Said(Strict):
    """One message. An assistant's has ``tool_calls``, or text that the environment's grammar reads as a call."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[Call, ...] = ()
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        """OpenAI writes null beside tool calls."""
        return "" if value is None else value

    @model_validator(mode="after")
    def _calls_are_the_assistants(self) -> Said:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role '{self.role}' makes no tool calls")
        return self


class Correction(Strict):
    """What a reviewer would have done instead, at the ``turn``-th call of the trace (counted from 0)."""

    turn: int = Field(ge=0)
    tool_call: Call | None = None
    content: str = ""
    note: str = ""
    origin: Origin | None = Field(None, description="Where it was not the reviewer who wrote it")

    @model_validator(mode="after")
    def _says_something(self) -> Correction:
        if (self.tool_call is None) == (not self.content.strip()):
            raise ValueError("give either tool_call or content: what should have been done instead")
        return self


class TaskData(Strict):
    """The environment's task that was worked on: its ``kind`` and ``data`` as the environment's generator writes them."""

    kind: Line
    data: dict[str, Any]
    family: str = ""


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CORRECTED = "corrected"


class Trace(Strict):
    """``id`` is made from the content where none is given."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: tuple[Said, ...] = Field(min_length=1)
    origin: Origin
    license: License
    task: TaskData | None = None
    verdict: Verdict | None = None
    reviewer: Line | None = None
    corrections: tuple[Correction, ...] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Trace:
        if (self.verdict or self.corrections) and not self.reviewer:
            raise ValueError("reviewer: a verdict or a correction is somebody's; say whose")
        if self.corrections and self.verdict is Verdict.ACCEPTED:
            raise ValueError("verdict: 'accepted', but there are corrections; make it 'corrected' or 'rejected'")
        if self.verdict is Verdict.CORRECTED and not self.corrections:
            raise ValueError("corrections: the verdict is 'corrected', but there are none")
        turns = [c.turn for c in self.corrections]
        if len(set(turns)) < len(turns):
            raise ValueError("corrections: two of one turn")
        return self

    @property
    def content(self) -> str:
        """Identity of what was done, whoever reports it under whichever id: SHA-256 over messages (without ids) and task."""
        said = [
            m.model_dump(mode="json", exclude={"tool_call_id": True, "tool_calls": {"__all__": {"id"}}}) for m in self.messages
        ]
        return content_hash([said, self.task.model_dump(mode="json") if self.task else None])


def parse(data: Any, where: str, origin: Origin | None = None, license: str | None = None) -> Trace:
    """Validate a mapping as a trace; ``origin`` and ``license`` where it has none. Raises BadInput naming every wrong field."""
    if not isinstance(data, dict):
        raise BadInput(f"{where}: a trace is one JSON object, this is {type(data).__name__}")
    data = {k: v for k, v in data.items() if v is not None}
    if data.get("origin") is None and origin is not None:
        data["origin"] = origin.model_dump()
    if data.get("license") is None and license is not None:
        data["license"] = license
    try:
        content_hash(data)
    except ValueError as e:  # Python reads more than JSON has: NaN, Infinity, halves of a character
        raise BadInput(f"{where}: holds what JSON can't ({e})") from None
    if not data.get("id"):
        data["id"] = "trace-" + content_hash(data.get("messages"))[:12]
    try:
        return Trace.model_validate(data)
    except ValidationError as e:
        raise BadInput("\n".join(_line(where, data["id"], x) for x in e.errors())) from None


def _line(where: str, name: Any, error: Any) -> str:
    field, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing" and field in ("origin", "license"):
        message = f"is missing; state it in the trace, or for all with --{field}"
    return f"{where}: trace '{name}': {field + ': ' if field else ''}{message}"


def text_of(path: Path) -> str:
    """The file's text, UTF-8. Raises BadInput where there is none, or it is written otherwise."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise BadInput(f"{path}: is not UTF-8 ({e.reason} at byte {e.start}); convert it") from None


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """``(where, object)`` of each line of a JSONL file. Raises BadInput for a missing file or a line that is not JSON."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as e:
                raise BadInput(f"{path}:{number}: not valid JSON: {e}") from None
