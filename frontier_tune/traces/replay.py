"""The environment as traces need it: openings, replays of calls, the golden program, and which tasks are held out.

A trace that names its task is played again, so that what follows each call is what a rollout would have seen there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from frontier_tune.contracts import BadInput, Failure, Message, Task, content_hash
from frontier_tune.sdk.grammar import ToolCall, parse, render_json
from frontier_tune.sdk.tools import Signature
from frontier_tune.traces.dialogue import Turn


class Pool(Protocol):
    """What is used of ``sandbox.EnvironmentPool``."""

    @property
    def description(self) -> dict[str, Any]: ...

    def new_slot(self) -> int: ...

    def submit(self, slot: int, op: str, payload: dict[str, Any] | None = None) -> None: ...

    def poll(self, timeout: float = 0.0) -> list[tuple[int, dict[str, Any] | Failure]]: ...

    def tasks(self, split: str, n: int, seed: int) -> list[Task]: ...

    def golden(self, task: Task) -> list[str]: ...


@dataclass(frozen=True)
class Replayed:
    """``turns`` with the environment's own answers. ``success`` and ``reward`` are those of the end; None while it goes on."""

    opening: tuple[Message, ...]
    turns: tuple[Turn, ...]
    success: bool | None = None
    reward: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """What must not train: hashes, layout families and opening texts of held-out tasks."""

    hashes: frozenset[str] = frozenset()
    families: frozenset[str] = frozenset()
    openings: dict[str, str] = field(default_factory=dict)  # digest of the text -> task hash

    def leak(self, task: Task | None, opening: Sequence[Message]) -> str | None:
        """Which held-out task a trace gives away, in words; None where it gives away none.

        Words tell only where no task is named: a workflow may ask for everything in the same ones.
        """
        if task is not None and task.hash in self.hashes:
            return f"it is of the held-out task {task.hash} ({task.kind})"
        if task is not None and task.family and task.family in self.families:
            return f"its task has the layout family '{task.family}' of a held-out one"
        found = self.openings.get(text_digest(opening)) if task is None else None
        return f"it begins with the words of the held-out task {found} and does not say which task it is of" if found else None


def text_digest(messages: Iterable[Message]) -> str:
    """Identity of what was asked: the user's words, white space aside. An agent's own system prompt does not count."""
    return content_hash([" ".join(m.content.split()) for m in messages if m.role == "user"])


class Workbench:
    """One environment, one episode at a time."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.signatures = {s.name: s for s in map(Signature.from_schema, pool.description["schemas"])}

    def replay(self, task: Task, said: Sequence[ToolCall | str], max_turns: int | None = None) -> Replayed:
        """Begin ``task`` and make the calls. Raises BadInput where the environment fails, or is over before all are made."""
        slot = self.pool.new_slot()
        limit = {"max_turns": max(max_turns or 0, len(said) + 1)}  # a person may have taken more turns than an agent gets
        try:
            begun = self._ask(slot, "reset", {"task": task.to_json(), **limit}, f"task {task.hash} ({task.kind}) can't begin")
            turns: list[Turn] = []
            success = reward = None
            for n, what in enumerate(said):
                if success is not None:
                    raise BadInput(f"turn {n}: the environment's episode is over after turn {n - 1}")
                action = what if isinstance(what, str) else render_json(what)
                result = self._ask(slot, "step", {"action": action}, f"turn {n}")
                text, call = (what, None) if isinstance(what, str) else ("", what)
                turns.append(Turn(call, _messages(result), text))
                if result["terminated"] or result["truncated"]:
                    success, reward = bool(result["info"]["success"]), float(result["reward"])
            return Replayed(_messages(begun), tuple(turns), success, reward)
        finally:
            self.pool.submit(slot, "close")

    def held_out(self, tasks: Sequence[Task]) -> HeldOut:
        """Of tasks that the environment's generator gave for the held-out split."""
        openings = {text_digest(self.replay(t, ()).opening): t.hash for t in tasks}
        return HeldOut(frozenset(t.hash for t in tasks), frozenset(t.family for t in tasks if t.family), openings)

    def golden(self, task: Task) -> list[ToolCall]:
        """The golden program's calls. Raises BadInput where there is none."""
        return [parse(text, self.signatures) for text in self.pool.golden(task)]

    def _ask(self, slot: int, op: str, payload: dict[str, Any], what: str) -> dict[str, Any]:
        self.pool.submit(slot, op, payload)
        while True:
            for found, result in self.pool.poll(1.0):
                if found == slot:
                    if isinstance(result, Failure):
                        raise BadInput(f"{what}: the environment failed: {result.detail or result.kind}")
                    return result


def _messages(result: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(**m) for m in result["messages"])
