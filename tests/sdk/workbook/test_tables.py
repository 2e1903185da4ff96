"""Tables are found where the layouts put them, in every family."""

import random

import pytest
from openpyxl import Workbook

from frontier_tune.sdk.workbook.layouts import FAMILIES, HELDOUT_FAMILIES, TRAIN_FAMILIES, SheetSpec, lay_out
from frontier_tune.sdk.workbook.tables import find_table
from frontier_tune.sdk.workbook.vocabulary import COLUMNS, SHEETS, VALUES

HEADERS = ["Doc no", "Client", "Billed", "Refunds", "Net"]


def rows(rng: random.Random, n: int) -> list[list[object]]:
    return [
        [f"R{i}", rng.choice(VALUES["customer"]), rng.random(), rng.random() if rng.random() < 0.9 else None, None]
        for i in range(n)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(12))
def test_the_table_is_found_as_it_was_laid_out(family: str, seed: int) -> None:
    rng = random.Random(seed)
    values = rows(rng, rng.randint(2, 60))
    book = lay_out([SheetSpec("Sales", HEADERS, values, ["Billed"])], FAMILIES[family], random.Random(seed))
    table = find_table(book["Sales"])
    assert table and list(table.columns) == HEADERS
    found = [[book["Sales"].cell(r, c).value for c in table.columns.values()] for r in table.rows]
    assert found == values


@pytest.mark.parametrize("family", FAMILIES)
def test_the_structure_does_not_depend_on_values(family: str) -> None:
    books = [
        lay_out([SheetSpec("S", HEADERS, rows(random.Random(s), 30), [])], FAMILIES[family], random.Random(9)) for s in (1, 2)
    ]
    a, b = (find_table(book["S"]) for book in books)
    assert a == b and books[0]["S"].dimensions == books[1]["S"].dimensions


def test_no_family_is_on_both_sides() -> None:
    assert not {f.name for f in TRAIN_FAMILIES} & {f.name for f in HELDOUT_FAMILIES}
    assert len(FAMILIES) == len(TRAIN_FAMILIES) + len(HELDOUT_FAMILIES)


def test_a_stray_cell_far_out_costs_nothing() -> None:
    book = Workbook()
    sheet = book.active
    for row in (["Key", "Value"], ["a", 1], ["b", 2]):
        sheet.append(row)
    sheet.cell(1_048_576, 16_384).value = "lost"
    table = find_table(sheet)
    assert table and table.rows == (2, 3) and len(sheet._cells) == 7


@pytest.mark.parametrize("cells", [[], [[1, 2]], [["only"]], [["=A1", "=B1"]], [[None, "a", None, "b"]]])
def test_no_table(cells: list[list[object]]) -> None:
    book = Workbook()
    for row in cells:
        book.active.append(row)
    assert find_table(book.active) is None


def test_a_name_stands_for_one_role() -> None:
    names = [name.casefold() for role in COLUMNS.values() for name in role]
    assert len(names) == len(set(names))
    sheets = [name.casefold() for role in SHEETS.values() for name in role]
    assert len(sheets) == len(set(sheets))
