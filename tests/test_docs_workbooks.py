"""docs/workbooks.md: its example runs, and the limits that it states are those that hold."""

from __future__ import annotations

import re
from pathlib import Path

from frontier_tune.sdk.workbook import formula_text, session
from frontier_tune.sdk.workbook.functions import AGREED
from frontier_tune.sdk.workbook.package import PackageLimits
from tests.sdk.workbook.conftest import make_book


def test_the_example_runs_and_the_limits_are_as_stated(root: Path) -> None:
    page = (root / "docs" / "workbooks.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.S)
    assert example is not None
    book = make_book()
    book.create_sheet("Summary")["A1"] = "Net"
    names = {"book": book}
    exec(example[1], names)
    assert book["Summary"]["B7"].value == "=SUM(Sales!$E$4:$E$7)"
    limits = PackageLimits()
    stated = [
        f"{len(AGREED)} functions",
        f"{session.MAX_CELLS_READ} cells, {session.MAX_SHOWN} characters",
        f"more than {formula_text.LARGE:,} cells",
        f"{limits.file_bytes // 2**20} MiB",
        f"| {limits.parts:,} |",
        f"{limits.unpacked_bytes // 2**20} MiB",
        f"| {limits.cells:,} |",
        f"| {limits.areas:,} |",
        *formula_text.UNBOUNDED,
        *(name for name in formula_text.VOLATILE if not name.startswith("RAND")),
    ]
    assert [line for line in stated if line not in page] == []
