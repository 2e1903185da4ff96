"""A toy workflow for tests: reach a number by adding, then submit."""

from typing import Literal

from frontier_tune.sdk import Component, Grade, Limits, Message, Rubric, Task, ToolError, WorkflowEnv, tool


class CountUp(WorkflowEnv):
    name = "count_up"
    version = "3"
    limits = Limits(turns=4)
    rubric = Rubric(
        [
            Component("exact", 0.75, lambda env: env.total == env.task.data["target"], required=True),
            Component("near", 0.25, lambda env: abs(env.total - env.task.data["target"]) <= 2),
        ]
    )

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def tasks(self, split: Literal["train", "heldout"], n: int, seed: int) -> list[Task]:
        first = seed % 1000 + (0 if split == "train" else 10_000)
        return [Task("count", split, {"target": first + i}, family=split) for i in range(n)]

    def begin(self, task: Task) -> list[Message]:
        self.total = self.start
        return [Message("user", f"reach {task.data['target']}")]

    @tool
    def add(self, amount: int) -> str:
        """Add to the total.

        Args:
            amount: How much.
        """
        if amount < 0:
            raise ToolError("only upwards")
        self.total += amount
        return f"total {self.total}"

    @tool(ends=True)
    def submit(self) -> str:
        """Hand in."""
        return "thank you"

    def grade(self) -> Grade:
        return self.rubric.score(self)

    def golden(self, task: Task) -> list[str]:
        return [f"add {task.data['target'] - self.start}", "submit"]
