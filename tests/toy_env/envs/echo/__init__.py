"""A workflow of one word: reply with the asked one. The reward is the share of the reply that is the word."""

from __future__ import annotations

import itertools
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
        self.fault, self.duplicate, self.leak, self.size = fault, duplicate, leak, size

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        draw = random.Random(seed)
        side = "train" if self.leak else split
        numbers = [0] * n if self.duplicate else draw.sample(range(self.size), min(n, self.size))
        if self.leak:
            numbers = list(range(n))
        return [Task("word", split, {"word": COLOURS[k % len(COLOURS)], "number": k, "side": side}) for k in numbers]

    def begin(self, task: Task) -> Sequence[Message]:
        if self.fault == "begin":
            raise OSError("workbook close.xlsx can't be read")
        self.said = ""
        return [Message("user", f"the word is {task.data['word']} {task.data['number']} reply with the word wanted")]

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

    def grade(self) -> Grade:
        word = self.task.data["word"]
        said = " ".join(s.text for s in self.trace)
        share = said.count(word) * len(word) / max(1, len(said))
        spread = len(set(itertools.chain(said))) / 64  # random text of an untrained base must not all score the same
        success = self.said == word
        return Grade(1.0 if success else min(0.9, share + 0.1 * spread), success, {"word": share})

    def golden(self, task: Task) -> list[str]:
        return [f"say {task.data['word']}"]
