"""The four verbs by which an agent works on a workbook: read, fill, write, submit.

A ``WorkflowEnv`` on workbooks mixes this in and sets ``self.session`` when an episode begins.
"""

from __future__ import annotations

from frontier_tune.sdk.tools import tool
from frontier_tune.sdk.workbook.session import WorkbookSession


class WorkbookTools:
    """Tools on ``self.session``. Each returns a short observation; mistakes come back as ``error: ...``."""

    session: WorkbookSession

    @tool
    def read(self, where: str) -> str:
        """Look at a sheet's table (its header and first row) or at a range.

        Args:
            where: A sheet, or a range such as ``Sales!A1:D9``.
        """
        return self.session.read(where)

    @tool
    def fill(self, sheet: str, column: str, formula: str) -> str:
        """Fill a formula down a column of a sheet's table, one cell for each data row.

        Args:
            sheet: The sheet.
            column: The header of the column to fill.
            formula: Starts with ``=``. ``[@Header]`` is that column in the same row, ``Sheet[Header]`` a whole column.
        """
        return self.session.fill(sheet, column, formula)

    @tool
    def write(self, cell: str, value: str) -> str:
        """Write a number, a text or a formula into one cell.

        Args:
            cell: The cell with its sheet, such as ``Summary!B7``.
            value: What to write; a formula starts with ``=``.
        """
        return self.session.write(cell, value)

    @tool(ends=True)
    def submit(self) -> str:
        """Hand the workbook in; it is graded as it stands."""
        return "submitted"
