"""A small workbook with what real ones have: a title, two sheets, dates, a totals row, a broken formula."""

from __future__ import annotations

from datetime import datetime

import pytest
from openpyxl import Workbook

from frontier_tune.sdk.workbook.session import WorkbookSession


def make_book() -> Workbook:
    book = Workbook()
    sales = book.active
    sales.title = "Sales"
    sales["A1"] = "Month end close"
    rows = [
        ["Ref", "Gross", "Returns", "Booked", "Net"],
        ["A1", 100.5, 1.25, datetime(2024, 1, 31), None],
        ["B2", 200, 2, datetime(2024, 2, 29), None],
        [None, None, None, None, None],
        ["C3", 300.125, 0.1, datetime(2024, 3, 1), "=#REF!*2"],
        ["Total", "=SUM(B4:B7)", None, None, None],
    ]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None:
                sales.cell(3 + i, 1 + j).value = value
    rates = book.create_sheet("FX table")
    for row in (["Ccy", "Final rate"], ["EUR", 1.1], ["GBP", 1.3]):
        rates.append(row)
    return book


@pytest.fixture
def session() -> WorkbookSession:
    return WorkbookSession(make_book())
