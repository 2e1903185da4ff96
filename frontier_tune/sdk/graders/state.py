"""Comparing states: flat mappings from an address (a cell, a row's key, a ticket's field) to a JSON value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from frontier_tune.contracts import content_hash

State = Mapping[str, Any]


@dataclass(frozen=True)
class StateDiff:
    """Addresses by what happened to them, sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def touched(self) -> frozenset[str]:
        return frozenset((*self.added, *self.removed, *self.changed))


def state_diff(before: State, after: State) -> StateDiff:
    """What differs. Values are compared with their types: 1, 1.0, True and "1" are four values."""
    changed = (k for k in before.keys() & after.keys() if not _same(before[k], after[k]))
    return StateDiff(
        tuple(sorted(after.keys() - before.keys())), tuple(sorted(before.keys() - after.keys())), tuple(sorted(changed))
    )


def only_changed(before: State, after: State, allowed: Collection[str]) -> bool:
    """Whether nothing outside ``allowed`` was added, removed or changed: no collateral damage."""
    return state_diff(before, after).touched <= set(allowed)


def locked_digest(state: State, unlocked: Collection[str] = ()) -> str:
    """SHA-256 of everything but ``unlocked``: equal before and after where the locked part was left alone."""
    return content_hash({k: v for k, v in state.items() if k not in unlocked})


def share_equal(actual: State, expected: State, equal: Callable[[Any, Any], bool] | None = None) -> float:
    """Share of ``expected``'s addresses whose value in ``actual`` is equal (partial credit). Raises ValueError if it is empty."""
    if not expected:
        raise ValueError("share_equal: nothing is expected; every answer would be right")
    compare = equal or _same
    return sum(k in actual and compare(actual[k], v) for k, v in expected.items()) / len(expected)


def changes_made(after: State, changes: State, equal: Callable[[Any, Any], bool] | None = None) -> float:
    """Share of the wanted ``changes`` (address -> value, None: gone) that ``after`` shows. Raises ValueError if none are wanted.

    With ``only_changed(before, after, changes)`` it grades a state without saying how it was reached.
    """
    gone = {k for k, v in changes.items() if v is None}
    kept = {k: v for k, v in changes.items() if k not in gone}
    if not gone:
        return share_equal(after, kept, equal)
    done = sum(k not in after for k in gone) + (share_equal(after, kept, equal) * len(kept) if kept else 0)
    return done / len(changes)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)
