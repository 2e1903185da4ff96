"""What a kind of task is: which tables it needs, what it asks for, how its values are drawn, and the formula that solves it."""

from __future__ import annotations

import abc
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from envs.month_end_close.conventions import Company

Row = dict[str, Any]


@dataclass(frozen=True)
class TableName:
    """A table as its workbook names it: the sheet, and the header of each role in the order of the columns."""

    role: str
    sheet: str
    headers: dict[str, str]

    def own(self, role: str) -> str:
        """The reference to a column in the formula's own row."""
        return f"[@{self.headers[role]}]"

    def whole(self, role: str) -> str:
        """The reference to a whole column."""
        return f"{self.sheet}[{self.headers[role]}]"


class Kind(abc.ABC):
    """``conventions``: the company's fields that decide the answer. ``whole``: answers are whole numbers, close means exact.

    ``rows``, ``source_rows``: bounds (inclusive) of the tables' data rows. ``grows``: a hidden copy gets rows inserted into the
    source.
    """

    name: ClassVar[str]
    prompt: ClassVar[str]
    conventions: ClassVar[tuple[str, ...]]
    target: ClassVar[str]
    answer: ClassVar[str]
    source: ClassVar[str] = ""
    rows: ClassVar[tuple[int, int]] = (20, 60)
    source_rows: ClassVar[tuple[int, int]] = (0, 0)
    grows: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    @abc.abstractmethod
    def columns(self, rng: random.Random) -> list[str]:
        """Roles of the target table's columns, the answer's not among them."""

    def source_columns(self, rng: random.Random) -> list[str]:
        """Roles of the source table's columns."""
        return []

    def counts(self, rng: random.Random) -> tuple[int, int]:
        """Data rows of target and source."""
        return rng.randint(*self.rows), rng.randint(*self.source_rows)

    @abc.abstractmethod
    def draw(self, rng: random.Random, n: int, m: int) -> tuple[list[Row], list[Row]]:
        """Values of the columns that matter: ``n`` rows of the target and ``m`` of the source, clear of ties in rounding."""

    @abc.abstractmethod
    def formula(self, company: Company, target: TableName, source: TableName | None) -> str:
        """The formula to fill down."""


def some(rng: random.Random, *roles: str, chance: float = 0.6) -> list[str]:
    """Each of the optional ``roles`` or not."""
    return [role for role in roles if rng.random() < chance]
