"""What traces become: demonstrations, preference pairs and proposed tasks, each with origin and licence, as JSON rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from frontier_tune.contracts import Message, Task
from frontier_tune.sdk.grammar import ToolCall
from frontier_tune.traces.dialogue import Turn, said_json, said_of
from frontier_tune.traces.schema import Origin


@dataclass(frozen=True)
class Made:
    """Where a row comes from. ``origin`` made what is learned; ``others`` what else of the row a model sees in training."""

    trace: str
    origin: Origin
    license: str
    reviewer: str
    others: tuple[Origin, ...] = ()
    task: Task | None = None
    replayed: bool = False

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (self.origin, *(o for o in self.others if o != self.origin))

    def to_json(self) -> dict[str, Any]:
        return {
            "trace": self.trace,
            "origin": self.origin.model_dump(mode="json"),
            "others": [o.model_dump(mode="json") for o in self.others],
            "license": self.license,
            "reviewer": self.reviewer,
            "task": self.task.to_json() if self.task else None,
            "replayed": self.replayed,
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Made:
        task = Task(**data["task"]) if data["task"] else None
        others = tuple(Origin(**o) for o in data["others"])
        return cls(data["trace"], Origin(**data["origin"]), data["license"], data["reviewer"], others, task, data["replayed"])


@dataclass(frozen=True)
class Demonstration:
    """A dialogue in which the turns of ``learn`` are to be learned; the last turn is one of them."""

    id: str
    opening: tuple[Message, ...]
    turns: tuple[Turn, ...]
    learn: tuple[bool, ...]
    made: Made

    def to_json(self) -> dict[str, Any]:
        turns = [t.to_json() | {"learn": learn} for t, learn in zip(self.turns, self.learn, strict=True)]
        return {"id": self.id, "opening": _messages(self.opening), "turns": turns, **self.made.to_json()}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Demonstration:
        learn = tuple(bool(t["learn"]) for t in data["turns"])
        return cls(data["id"], _opening(data), _turns(data), learn, Made.of(data))


@dataclass(frozen=True)
class Pair:
    """What a reviewer preferred to what was done, after ``opening`` and ``turns``."""

    id: str
    opening: tuple[Message, ...]
    turns: tuple[Turn, ...]
    chosen: ToolCall
    rejected: ToolCall | str
    made: Made

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "opening": _messages(self.opening),
            "turns": [t.to_json() for t in self.turns],
            "chosen": said_json(self.chosen),
            "rejected": said_json(self.rejected),
            **self.made.to_json(),
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Pair:
        chosen = said_of(data["chosen"])
        assert isinstance(chosen, ToolCall)
        return cls(data["id"], _opening(data), _turns(data), chosen, said_of(data["rejected"]), Made.of(data))


@dataclass(frozen=True)
class Proposal:
    """A task that was worked on. ``task`` is None where the trace does not say it in the environment's terms: a person has to."""

    id: str
    task: Task | None
    opening: tuple[Message, ...]
    traces: tuple[str, ...]
    origin: Origin
    license: str
    status: str = "proposed"
    by: str = ""
    at: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "status": self.status,
            "by": self.by,
            "at": self.at,
            "task": self.task.to_json() if self.task else None,
            "opening": _messages(self.opening),
            "traces": list(self.traces),
            "origin": self.origin.model_dump(mode="json"),
            "license": self.license,
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Proposal:
        task = Task(**data["task"]) if data["task"] else None
        plain = {k: data[k] for k in ("id", "license", "status", "by", "at")}
        return cls(task=task, opening=_opening(data), traces=tuple(data["traces"]), origin=Origin(**data["origin"]), **plain)


def origins(rows: Sequence[Demonstration | Pair]) -> Iterator[dict[str, Any]]:
    """Every origin with its licence and reviewers, and of how many rows: what the run's record lists."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        for origin in row.made.origins:
            entry = found.setdefault(
                (origin.kind, origin.name, row.made.license),
                {**origin.model_dump(mode="json"), "license": row.made.license, "rows": 0, "reviewers": set()},
            )
            entry["rows"] += 1
            entry["reviewers"].add(row.made.reviewer)
    for key in sorted(found):
        yield found[key] | {"reviewers": sorted(found[key]["reviewers"])}


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [asdict(m) for m in messages]


def _opening(data: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(**m) for m in data["opening"])


def _turns(data: dict[str, Any]) -> tuple[Turn, ...]:
    turns = []
    for t in data["turns"]:
        said = said_of(t)
        call, text = (None, said) if isinstance(said, str) else (said, "")
        turns.append(Turn(call, tuple(Message(**m) for m in t["answer"]), text))
    return tuple(turns)
