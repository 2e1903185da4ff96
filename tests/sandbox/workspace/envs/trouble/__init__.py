"""An environment that misbehaves on demand, for tests of the worker pool."""

import os
import subprocess
import sys
import time
from typing import Literal

from frontier_tune.sdk import Grade, Message, Task, WorkflowEnv, tool

print("printed while importing")


class Trouble(WorkflowEnv):
    name = "trouble"

    def tasks(self, split: Literal["train", "heldout"], n: int, seed: int) -> list[Task]:
        return [Task("t", split, {"i": 0})] * n

    def begin(self, task: Task) -> list[Message]:
        print("printed at begin")
        return [Message("user", "go")]

    @tool
    def echo(self, text: str) -> str:
        """Say it back, and print it.

        Args:
            text: What.
        """
        print(text)
        os.system("echo from a child")
        return text + sys.stdin.read()

    @tool
    def hang(self) -> str:
        """Never return."""
        while True:
            time.sleep(1)

    @tool
    def spawn(self, path: str) -> str:
        """Start a child and one that leaves the process group, write their pids down, and hang.

        Args:
            path: Where the pids go.
        """
        children = [subprocess.Popen(["sleep", "600"], start_new_session=away) for away in (False, True)]
        with open(path, "w") as f:
            f.write(" ".join(str(c.pid) for c in children))
        return self.hang()

    @tool
    def die(self, code: int) -> str:
        """End the process.

        Args:
            code: Exit status.
        """
        os._exit(code)

    @tool
    def garble(self) -> str:
        """Write rubbish to every descriptor."""
        for fd in range(3, 20):
            try:
                os.write(fd, b"rubbish\n")
            except OSError:
                continue
        return "done"

    @tool
    def large(self, characters: int) -> str:
        """A long observation.

        Args:
            characters: How many.
        """
        return "x" * characters

    def grade(self) -> Grade:
        return Grade(0.0, False)
