"""A1 arithmetic against openpyxl's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl.utils import column_index_from_string, get_column_letter, quote_sheetname

from frontier_tune.sdk.workbook import addresses as a1

ROWS, COLUMNS = st.integers(1, a1.MAX_ROW), st.integers(1, a1.MAX_COLUMN)


@given(COLUMNS)
def test_letters_are_openpyxls(column: int) -> None:
    assert a1.letters(column) == get_column_letter(column)
    assert a1.number(a1.letters(column)) == column == column_index_from_string(a1.letters(column))


@given(ROWS, COLUMNS)
def test_a_cell_reads_back(row: int, column: int) -> None:
    assert a1.parse_cell(a1.cell(row, column)) == (row, column)
    assert a1.parse_cell(f" ${a1.letters(column).lower()}${row} ") == (row, column)


@pytest.mark.parametrize("text", ["", "A", "7", "A0", "A1048577", "XFE1", "ABCD1", "A1B", "A-1", "Ä1", "A 1"])
def test_what_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no cell address|outside the sheet"):
        a1.parse_cell(text)


def test_a_range_may_be_given_from_any_corner() -> None:
    assert a1.parse_range("C9:$A$3") == a1.parse_range("A9:C3") == (3, 1, 9, 3)
    assert a1.parse_range("B2") == (2, 2, 2, 2)


@given(st.text(st.characters(exclude_characters="!", exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool))
def test_a_quoted_sheet_reads_back(name: str) -> None:
    if not (name[0] == name[-1] == "'"):  # Excel forbids those
        assert a1.split_sheet(a1.quote_sheet(name) + "!A1") == (name, "A1")
        assert a1.split_sheet(quote_sheetname(name) + "!A1") == (name, "A1")
