"""The audit of a ledger: was every planned group trained on exactly once, or dropped for a stated reason?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from frontier_tune.contracts import BadInput
from frontier_tune.orchestration import ledger
from frontier_tune.recipe import Recipe


@dataclass(frozen=True)
class Audit:
    """``open``: groups under way, of a run that isn't at its end. ``dropped``: groups by reason. ``kinds``: groups by plan."""

    rows: int = 0
    groups: int = 0
    trained: int = 0
    again: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Every planned group has exactly one end."""
        return not self.problems and not self.open

    def __str__(self) -> str:
        parts = [f"{self.groups:,} groups issued", f"{self.trained:,} trained"]
        parts += [f"{n:,} dropped ({reason})" for reason, n in sorted(self.dropped.items())]
        parts += [f"{len(self.open):,} under way"] if self.open else []
        parts += [f"{self.again:,} played again"] if self.again else []
        return ", ".join(parts) + ("; " + "; ".join(self.problems) if self.problems else "; the chain verifies")


def audit(path: Path, planned: Collection[str] | None = None) -> Audit:
    """Read ``ledger.jsonl`` at ``path``. ``planned``: names of groups that must have been issued (see ``planned_groups``).

    Never raises for what the file holds: what is wrong is in ``problems``, the row named.
    """
    states: dict[str, str] = {}
    reasons, kinds = Counter[str](), Counter[str]()
    problems: list[str] = []
    rows = again = 0
    try:
        for mark, row in ledger.read(path):
            rows = mark.rows
            new = row["group"] not in states
            wrong = ledger.advance(states, row)
            if wrong:
                problems.append(f"row {rows}: {wrong}")
            if row["event"] == "issued":
                kinds[row["kind"]] += new
                again += not new
            elif row["event"] == "dropped":
                reasons[row["reason"]] += 1
    except BadInput as e:
        problems.append(str(e))
    except (KeyError, TypeError) as e:
        problems.append(f"row {rows} lacks {e}")
    ends = Counter(states.values())
    missing = sorted(set(planned or ()) - set(states), key=_order)
    if missing:
        problems.append(f"{len(missing)} planned groups were never issued, the first: {missing[0]}")
    open_ = sorted((g for g, s in states.items() if s in ("issued", "finished")), key=_order)
    return Audit(rows, len(states), ends["trained"], again, dict(reasons), dict(kinds), open_, problems)


def planned_groups(recipe: Recipe, steps: int) -> list[str]:
    """Names of the groups that ``steps`` steps of ``recipe`` plan: the workflow's, then those rehearsed."""
    each = recipe.algorithm.groups_per_step + recipe.algorithm.rehearsal_groups
    return [ledger.key(step, group) for step in range(1, steps + 1) for group in range(each)]


def _order(group: str) -> tuple[int, ...]:
    return tuple(int(part) for part in group.split(".") if part.isdigit())
