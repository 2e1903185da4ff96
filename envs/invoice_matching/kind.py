"""What one kind of task is: its prompt, the conventions behind it, its golden answers and the call that gives them."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

from envs.invoice_matching.books import Books, Line
from envs.invoice_matching.conventions import Company
from envs.invoice_matching.names import TableName

APART = 2
Answers = tuple[Any, ...]  # one for each line of the books, in their order
Names = Mapping[str, TableName]  # by role


class Kind(abc.ABC):
    """``conventions``: the company's fields that decide the answer. ``reads``: roles of the tables and sheets to be looked at,
    first the one with the answer column; ``answer``: that column's role. ``flags``: answers are 0 or 1. ``lines``: bounds of the
    number of order lines; ``parts``: how many receipts one of them may have."""

    name: ClassVar[str]
    prompt: ClassVar[str]
    conventions: ClassVar[tuple[str, ...]]
    reads: ClassVar[tuple[str, ...]]
    answer: ClassVar[str]
    in_workbook: ClassVar[bool] = False
    flags: ClassVar[bool] = False
    lines: ClassVar[tuple[int, int]] = (24, 40)
    parts: ClassVar[tuple[int, ...]] = (1, 1, 2, 3)

    @abc.abstractmethod
    def answers(self, company: Company, books: Books) -> Answers:
        """What the answer column has to hold, by exact arithmetic."""

    @abc.abstractmethod
    def call(self, company: Company, names: Names) -> str:
        """The deciding call of the golden program."""

    def fits(self, line: Line) -> bool:
        """Whether no answer of any company hangs on the last bit of a float here."""
        return True

    def told_apart(self, books: Books, company: Company) -> bool:
        """Whether any two alternatives of the conventions differ on ``APART`` lines, and none gives one answer to all."""
        found = [self.answers(other, books) for other in company.alternatives(self.conventions)]
        if any(len(set(answers)) == 1 for answers in found):
            return False
        return all(sum(a != b for a, b in zip(one, other)) >= APART for one, other in combinations(found, 2))


class DatabaseKind(Kind):
    """Settled by one UPDATE of the invoices, which runs again on other months' books."""

    @abc.abstractmethod
    def assignment(self, company: Company, names: Names) -> str:
        """What follows SET: the column, its value, and which rows."""

    def call(self, company: Company, names: Names) -> str:
        return f"sql UPDATE {names['invoices'].name} SET {self.assignment(company, names)}"

    def column(self, names: Names) -> str:
        return names["invoices"].columns[self.answer]


class WorkbookKind(Kind):
    """Settled by one formula filled down a column of a sheet."""

    in_workbook = True
    columns: ClassVar[tuple[str, ...]]  # roles of the sheet's columns besides the answer

    @abc.abstractmethod
    def formula(self, company: Company, names: Names) -> str:
        """The formula to fill down, without its leading sign."""

    def call(self, company: Company, names: Names) -> str:
        sheet = names[self.reads[0]]
        return f"fill {sheet.name} | {sheet.columns[self.answer]} | ={self.formula(company, names)}"


def lookup(names: Names, table: str, what: str) -> str:
    """A scalar subquery: ``what`` of ``table`` for the invoice's own order. Keys go by other names in every table."""
    keys = names[table].columns["key"], names["invoices"].columns["key"]
    return f"(SELECT {what} FROM {names[table].name} WHERE {keys[0]}={keys[1]})"


def rounded(company: Company, numerator: int, denominator: int = 1) -> float:
    """``numerator / denominator`` thousandths, rounded to cents as the company does (Excel's functions: halves and up away from
    zero, down towards it), in whole units. Exact but for the division at the end."""
    size, unit = abs(numerator), 10 * denominator
    cents = {"ROUND": (2 * size + unit) // (2 * unit), "ROUNDDOWN": size // unit, "ROUNDUP": -(-size // unit)}[company.rounding]
    return (cents if numerator >= 0 else -cents) / 100


def flagged(lines: Sequence[bool]) -> Answers:
    return tuple(int(line) for line in lines)
