"""An environment whose agent writes Python and SQL: double a number in a text file, or in a database."""

import sqlite3
import tempfile
from pathlib import Path

from frontier_tune.sdk import CodeLimits, Grade, Message, RunsCode, Task, WorkflowEnv, tool
from frontier_tune.sdk.env import Split

GRADER = """
import json
expected = int(open("files/value.txt").read()) * 2
try:
    given = int(open("artifacts/out.txt").read())
except (OSError, ValueError):
    given = None
json.dump({"reward": float(given == expected)}, open("verdict.json", "w"))
"""


class SpreadsheetCode(RunsCode, WorkflowEnv):
    name = "spreadsheet_code"
    code_packages = ()
    code_limits = CodeLimits(wall_s=60.0, memory_mb=256)

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        first = seed * 1000 + (500 if split == "heldout" else 0)
        return [Task("double", split, {"value": first + i}) for i in range(n)]

    def begin(self, task: Task) -> list[Message]:
        self.files = {"value.txt": str(task.data["value"]).encode()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.sqlite"
            connection = sqlite3.connect(path)
            connection.execute("create table numbers (value integer)")
            connection.execute("insert into numbers values (?)", (task.data["value"],))
            connection.commit()
            connection.close()
            self.database = path.read_bytes()
        return [Message("user", "write twice the number in value.txt to out.txt")]

    @tool
    def python(self, code: str) -> str:
        """Run a script.

        Args:
            code: Python.
        """
        outcome = self.code.run_python(code, self.files, ["out.txt"])
        self.files |= outcome.files
        return outcome.observation()

    @tool
    def sql(self, query: str) -> str:
        """Ask the table numbers.

        Args:
            query: one SQL statement.
        """
        outcome = self.code.run_sql(query, self.database)
        return outcome.error or str(outcome.rows)

    @tool(ends=True)
    def submit(self) -> str:
        """Hand in."""
        return "done"

    def grade(self) -> Grade:
        given = {name: content for name, content in self.files.items() if name == "out.txt"}
        verdict = self.code.grade(GRADER, given, {"value.txt": str(self.task.data["value"]).encode()})
        return Grade(verdict["reward"], verdict["reward"] == 1.0, {})

    def golden(self, task: Task) -> list[str]:
        return ["python open('out.txt', 'w').write(str(int(open('value.txt').read()) * 2))", "submit"]
