"""The verbs by which an agent works on a database: read, sql, submit.

A ``WorkflowEnv`` mixes this in before ``WorkflowEnv`` and sets ``self.database`` when an episode begins.
"""

from __future__ import annotations

from frontier_tune.sdk.code import CodeLimits, RunsCode
from frontier_tune.sdk.database.session import DatabaseSession, show
from frontier_tune.sdk.tools import ToolError, tool


class DatabaseTools(RunsCode):
    """Tools on ``self.database``. Each returns a short observation; mistakes come back as ``error: ...``."""

    code_packages = ()
    code_limits = CodeLimits(wall_s=15.0, memory_mb=256, disk_mb=32, file_mb=16)
    database: DatabaseSession

    @tool
    def read(self, where: str) -> str:
        """Look at a table: how many rows it has, its columns, its first row.

        Args:
            where: A table.
        """
        return self.database.read(where, self.code if self.database.statements else None)

    @tool
    def sql(self, statement: str) -> str:
        """Run one SQL statement (SQLite) on the database.

        Args:
            statement: Asks or changes; a change stays.
        """
        outcome = self.database.run(statement, self.code)
        if outcome.error is not None:
            raise ToolError(outcome.error)
        if not outcome.columns:
            return f"{outcome.changes} rows changed"
        count = f"{len(outcome.rows)} rows" + (" and more" if outcome.truncated else "")
        return "\n".join([count, "|".join(outcome.columns), *("|".join(map(show, row)) for row in outcome.rows)])

    @tool(ends=True)
    def submit(self) -> str:
        """Hand the work in; it is graded as it stands."""
        return "submitted"
