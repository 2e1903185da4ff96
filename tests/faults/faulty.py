"""The toy workflow, broken at one place: whoever says ``green`` meets ``fault``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from frontier_tune.contracts import Message, Task
from frontier_tune.sdk.env import Limits, Split, WorkflowEnv
from frontier_tune.sdk.rubric import Grade
from frontier_tune.sdk.tools import tool


class Faulty(WorkflowEnv):
    name = "faulty"
    limits = Limits(turns=2)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        return [Task("word", split, {"number": i}) for i in range(n)]

    def begin(self, task: Task) -> Sequence[Message]:
        self.hit = False
        return [Message("user", f"reply with a word for {task.data['number']}")]

    @tool
    def say(self, word: str) -> str:
        """Say a word.

        Args:
            word: The word.
        """
        self.hit |= word == "green"
        found: Any = {"type": math.nan, "huge": "x" * 3_000_000}.get(self.fault, "done") if self.hit else "done"
        return found

    def grade(self) -> Grade:
        if self.hit and self.fault == "raise":
            raise ZeroDivisionError("no rows to divide by")
        reward = {"nan": math.nan, "inf": math.inf}.get(self.fault, 0.5) if self.hit else 0.5
        part = math.nan if self.hit and self.fault == "component" else 1.0
        return Grade(reward, False, {"word": part})
