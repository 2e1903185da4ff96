"""Structured references: what Excel's tables would give, as plain A1."""

import pytest

from frontier_tune.sdk import ToolError
from frontier_tune.sdk.workbook.references import Table, compile_formula

SALES = Table("Sales", 3, {"Ref": 1, "Gross sales": 2, "Net": 3}, (4, 5, 7))
RATES = Table("FX table", 1, {"Ccy": 1, "Final rate": 28}, (2, 3))
EMPTY = Table("Empty", 1, {"Ccy": 1, "Rate": 2}, ())


def table_of(name: str) -> Table:
    for table in (SALES, RATES, EMPTY):
        if table.sheet.casefold() == name.casefold():
            return table
    raise ToolError(f"no sheet {name}")


@pytest.mark.parametrize(
    ("formula", "at_five"),
    [
        ("=[@Gross sales]*2", "=B5*2"),
        ("=[@gross SALES]", "=B5"),
        ("=[@ Gross sales ]", "=B5"),
        ("=SUM(Sales[Net])", "=SUM(Sales!$C$4:$C$7)"),
        ("=SUM([Net])", "=SUM(Sales!$C$4:$C$7)"),
        ("=XLOOKUP([@Ref],FX table[Ccy],FX table[Final rate])", "=XLOOKUP(A5,'FX table'!$A$2:$A$3,'FX table'!$AB$2:$AB$3)"),
        ("='FX table'[Ccy]", "='FX table'!$A$2:$A$3"),
        ('=IF([@Ref]="[@Net]",1,2)', '=IF(A5="[@Net]",1,2)'),
        ('="a""[b]"&[@Net]', '="a""[b]"&C5'),
        ("=1+2", "=1+2"),
    ],
)
def test_references_become_addresses(formula: str, at_five: str) -> None:
    assert compile_formula(formula, SALES, table_of).at(5) == at_five


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("=[@Tax]", "no column Tax in Sales"),
        ("=Sales[Tax]", "no column Tax in Sales"),
        ("=Purchases[Tax]", "no sheet Purchases"),
        ("=Sales[@Net]", "inside the filled table"),
        ("=[@Net", "a bracket does not close"),
        ("=Net]", "a bracket does not close"),
        ("=[]", "a bracket does not close"),
        ("=SUM(Empty[Rate])", "no data rows in Empty"),
    ],
)
def test_mistakes_say_what_is_wrong(formula: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        compile_formula(formula, SALES, table_of)


def test_without_a_table_of_its_own() -> None:
    with pytest.raises(ToolError, match="inside the filled table"):
        compile_formula("=[@Net]", None, table_of)
    with pytest.raises(ToolError, match="name the sheet"):
        compile_formula("=[Net]", None, table_of)


@pytest.mark.parametrize(
    ("formula", "relative"),
    [
        ("=B4*2", True),
        ("=b4*2", True),
        ("=$B4", True),
        ("=$B$4", False),
        ("=LOG10(2)", False),
        ('="B4"', False),
        ("=[@Net]", False),
    ],
)
def test_relative_addresses_are_noticed(formula: str, relative: bool) -> None:
    assert compile_formula(formula, SALES, table_of).relative is relative
