"""Checklists within one component of a rubric: many small things that a text or a state should show."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Context = TypeVar("Context")


@dataclass(frozen=True)
class Item(Generic[Context]):
    """One thing to check. ``weight``: of the others' sum. ``needed``: without it the whole list is worth nothing."""

    name: str
    holds: Callable[[Context], bool]
    weight: float = 1.0
    needed: bool = False


class Checklist(Generic[Context]):
    """Callable: the share of weight that holds, in [0, 1], as a rubric's component wants it.

    Raises ValueError where it is empty, names repeat or a weight is not above 0 and finite.
    """

    def __init__(self, items: Sequence[Item[Context]]) -> None:
        self.items = tuple(items)
        names = [item.name for item in self.items]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"checklist: items need names, each once; these are: {', '.join(names) or 'none'}")
        if any(not 0 < item.weight < math.inf for item in self.items):
            raise ValueError("checklist: weights are above 0 and finite; leave out what does not count")

    def __call__(self, context: Context) -> float:
        missed = self.missed(context)
        if any(item.needed and item.name in missed for item in self.items):
            return 0.0
        if not missed:
            return 1.0
        held = math.fsum(item.weight for item in self.items if item.name not in missed)
        return held / math.fsum(item.weight for item in self.items)

    def missed(self, context: Context) -> list[str]:
        """Names of the items that don't hold, in order."""
        return [item.name for item in self.items if not item.holds(context)]


def mentions(text: str, phrase: str) -> bool:
    """Whether ``text`` holds ``phrase`` as whole words, case, spacing and Unicode forms aside.

    By itself it is paid for by whoever mentions everything: set it beside what must not be mentioned, or a limit of length.
    """
    wanted = _plain(phrase)
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", _plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
