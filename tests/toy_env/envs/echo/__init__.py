"""A workflow of one word, which no prompt states: the company's colour, drawn from its seed and learned from reward."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from frontier_tune.contracts import Message, Task
from frontier_tune.sdk.env import Limits, Split, WorkflowEnv
from frontier_tune.sdk.rubric import Grade
from frontier_tune.sdk.tools import tool

COLOURS = ("red", "green", "blue", "amber", "olive")


class Echo(WorkflowEnv):
    """``fault`` injects failures for the tests of others: "begin" raises, "hang" sleeps, "exit" ends the worker."""

    name = "echo"
    limits = Limits(turns=2)

    def __init__(
        self, fault: str = "", duplicate: bool = False, leak: bool = False, size: int = 10_000, company_seed: int = 0
    ) -> None:
        self.fault, self.duplicate, self.leak, self.size, self.company_seed = fault, duplicate, leak, size, company_seed

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        draw = random.Random(seed)
        side = "train" if self.leak else split
        numbers = [0] * n if self.duplicate else draw.sample(range(self.size), min(n, self.size))
        if self.leak:
            numbers = list(range(n))
        return [Task("word", split, {"number": k, "side": side}) for k in numbers]

    def begin(self, task: Task) -> Sequence[Message]:
        if self.fault == "begin":
            raise OSError("workbook close.xlsx can't be read")
        self.said = ""
        return [Message("user", f"reply with the word wanted for {task.data['number']}")]

    @tool(ends=True)
    def say(self, word: str) -> str:
        """Say a word; this ends the task.

        Args:
            word: The word.
        """
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "exit":
            raise SystemExit(3)
        self.said = word
        return "done"

    @property
    def word(self) -> str:
        return COLOURS[self.company_seed % len(COLOURS)]

    def grade(self) -> Grade:
        said = " ".join(s.text for s in self.trace)
        spread = len(set(said)) / 64  # random text of an untrained base must not all score the same
        success = self.said == self.word
        return Grade(1.0 if success else 0.1 * spread, success, {"word": float(success), "spread": spread})

    def golden(self, task: Task) -> list[str]:
        return [f"say {self.word}"]
