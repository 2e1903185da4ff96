"""What the samplers of a fleet (samplers.py) are at: their places, and what each client has in flight. Called with its lock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frontier_tune.contracts import Request


@dataclass(eq=False)
class Slot:
    """A place in the fleet. ``actor`` serves once it is ``up``; ``born`` is what its start returns, begun at ``since``."""

    number: int
    actor: Any = None
    born: Any = None
    up: bool = False
    host: str = ""
    node: str = ""
    load: int = 0
    passes: int = 0
    deaths: int = 0
    since: float = 0.0
    not_before: float = 0.0


@dataclass
class Lane:
    """What one client has in flight: request -> (itself, version, slot, actor); calls -> (slot, actor, since, it polls).

    ``over``: the client is gone.
    """

    due: list[tuple[Request, int | None]] = field(default_factory=list)
    flight: dict[str, tuple[Request, int | None, Slot, Any]] = field(default_factory=dict)
    calls: dict[Any, tuple[Slot, Any, float, bool]] = field(default_factory=dict)
    over: bool = False

    def reclaim(self) -> None:
        """What was with those that died is due again."""
        self.calls = {ref: call for ref, call in self.calls.items() if call[0].actor is call[1]}
        gone = [name for name, (_, _, slot, actor) in self.flight.items() if slot.actor is not actor]
        self.due = [self.flight.pop(name)[:2] for name in gone] + self.due

    def take(self, name: str) -> bool:
        """A request has come back. False where nobody waits for it."""
        found = self.flight.pop(name, None)
        if found is None:
            return False
        slot, actor = found[2:]
        slot.load -= slot.actor is actor  # else it has died since: its successor's load is its own
        return True

    def end(self) -> None:
        """Nobody comes for it any more. Who is in the middle of ``exchange`` has what it looked at, and finds nothing more."""
        for _, _, slot, actor in self.flight.values():
            slot.load -= slot.actor is actor
        self.due, self.flight, self.calls, self.over = [], {}, {}, True
