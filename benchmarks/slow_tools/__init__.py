"""The toy workflow of the tests behind tools that take their time: every call waits for a log-normal number of seconds."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from envs.echo import Echo  # type: ignore[import-not-found]  # of the workspace that the benchmark makes

from frontier_tune.contracts import Message, Task
from frontier_tune.sdk.tools import tool


class SlowTools(Echo):
    """Beginning a task and saying the word are two calls to somewhere else.

    Args:
        median_s, sigma: of the log-normal waiting time of one call. Draws are independent, and no two runs have the same.
    """

    name = "slow-tools"

    def __init__(self, median_s: float = 0.5, sigma: float = 1.0, company_seed: int = 0) -> None:
        super().__init__(company_seed=company_seed)
        self.median_s, self.sigma = median_s, sigma

    def _wait(self) -> None:
        time.sleep(random.SystemRandom().lognormvariate(math.log(self.median_s), self.sigma))

    def begin(self, task: Task) -> Sequence[Message]:
        self._wait()
        return super().begin(task)

    @tool(ends=True)
    def say(self, word: str) -> str:
        """Say a word; this ends the task.

        Args:
            word: The word.
        """
        self._wait()
        self.said = word
        return "done"
