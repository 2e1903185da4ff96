"""Copies and open workbooks, kept between episodes: building them costs more than playing on them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

from envs.invoice_matching.copies import Copy, build
from envs.invoice_matching.plan import Plan, make_plan
from frontier_tune.sdk.workbook.session import Cell, WorkbookSession

Key = tuple[str, int, str]  # kind, seed, family

make = lru_cache(maxsize=1024)(make_plan)


@lru_cache(maxsize=512)
def copy_of(key: Key, number: int) -> Copy:
    """Copy ``number`` of a task."""
    return build(make(*key), number)


@dataclass
class Opened:
    """A workbook that is being worked on. Whoever took it has it alone until it is given back."""

    key: tuple[Key, int]
    cells: list[Cell]
    session: WorkbookSession


class Workbooks:
    """At most ``capacity`` idle sessions; those given back longest ago go first. Used by one thread."""

    def __init__(self, capacity: int = 192) -> None:
        self.capacity = capacity
        self._idle: OrderedDict[tuple[Key, int], list[Opened]] = OrderedDict()
        self._count = 0

    def take(self, plan: Plan, number: int) -> Opened:
        """A pristine session on copy ``number`` of the plan's workbook."""
        key = (plan.kind.name, plan.seed, plan.family.name), number
        if idle := self._idle.get(key):
            self._count -= 1
            opened = idle.pop()
            if not idle:
                del self._idle[key]
            return opened
        copy = copy_of(*key)
        book = copy.workbook()
        return Opened(key, copy.cells(book), WorkbookSession(book))

    def give(self, opened: Opened) -> None:
        """Hand a session back; its edits are taken back first."""
        opened.session.restore()
        self._idle.setdefault(opened.key, []).append(opened)
        self._idle.move_to_end(opened.key)
        self._count += 1
        while self._count > self.capacity:
            oldest, sessions = next(iter(self._idle.items()))
            sessions.pop()
            self._count -= 1
            if not sessions:
                del self._idle[oldest]
