"""Open sessions on built workbooks, kept between episodes: building one costs ten times what taking its edits back costs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from envs.month_end_close.generator import Copy, build
from envs.month_end_close.plan import Plan
from frontier_tune.sdk.workbook.session import WorkbookSession

Key = tuple[str, int, str, int, bool]  # kind, seed, family, copy, grown


@dataclass
class Opened:
    """A copy of a workbook and the session on it. Whoever took it has it alone until it is given back."""

    key: Key
    copy: Copy
    session: WorkbookSession


class SessionPool:
    """At most ``capacity`` idle sessions; those given back longest ago go first. Used by one thread."""

    def __init__(self, capacity: int = 256) -> None:
        self.capacity = capacity
        self._idle: OrderedDict[Key, list[Opened]] = OrderedDict()
        self._count = 0

    def take(self, plan: Plan, copy: int, grown: bool = False) -> Opened:
        """A pristine session on copy number ``copy`` of the plan's workbook: edits of whoever had it before are taken back."""
        key = (plan.kind.name, plan.seed, plan.family, copy, grown)
        idle = self._idle.get(key)
        if idle:
            self._count -= 1
            opened = idle.pop()
            if not idle:
                del self._idle[key]
            opened.session.restore()
            return opened
        built = build(plan, copy, grown)
        return Opened(key, built, WorkbookSession(built.plain))

    def give(self, opened: Opened) -> None:
        """Hand a session back, with its edits: most are never taken again."""
        self._idle.setdefault(opened.key, []).append(opened)
        self._idle.move_to_end(opened.key)
        self._count += 1
        while self._count > self.capacity:
            oldest, sessions = next(iter(self._idle.items()))
            sessions.pop()
            self._count -= 1
            if not sessions:
                del self._idle[oldest]
