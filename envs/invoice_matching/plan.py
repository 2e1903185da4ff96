"""The structure of one task: names, columns, sizes. All copies of its database and workbook share it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from envs.invoice_matching.kind import Kind, WorkbookKind
from envs.invoice_matching.kinds import KINDS
from envs.invoice_matching.names import COLUMNS, FAMILY, HEADERS, SHEETS, TABLES, Family, TableName, draw_name

# Columns of each table: those that have to be there, and those that may.
_TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "orders": (("key", "ordered", "order_price"), ("supplier", "owner", "ordered_on")),
    "receipts": (("key", "received", "accepted", "received_on"), ("status", "owner")),
    "invoices": (
        ("number", "key", "supplier", "reference", "invoice_date", "posting_date", "billed", "price", "amount"),
        ("freight", "tax"),
    ),
}
_OPTIONAL_HEADERS = ("supplier", "owner", "memo")


@dataclass(frozen=True)
class Plan:
    """``names``: tables and sheets by role, in the order in which they stand. ``parts``: receipts of each line."""

    kind: Kind
    seed: int
    family: Family
    names: dict[str, TableName]
    parts: tuple[int, ...]

    @property
    def prompt(self) -> str:
        target = self.target
        return self.kind.prompt.format(column=target.columns[self.kind.answer], table=target.name, sheet=target.name)

    @property
    def target(self) -> TableName:
        return self.names[self.kind.reads[0]]

    @property
    def tables(self) -> list[TableName]:
        return [name for role, name in self.names.items() if role in TABLES]

    @property
    def sheets(self) -> list[TableName]:
        return [name for role, name in self.names.items() if role in SHEETS]

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that structure never depends on values."""
        return random.Random(f"invoice_matching/{self.seed}/{purpose}")


def make_plan(kind_name: str, seed: int, family_name: str) -> Plan:
    """The structure that ``seed`` gives a task of this kind in a family."""
    kind, family = KINDS[kind_name], FAMILY[family_name]
    rng = random.Random(f"invoice_matching/{seed}/structure")
    taken: set[str] = set()
    keys: set[str] = set()  # one name of the key for each table: no query has to say whose it means
    names = {role: _table(rng, role, kind, family, taken, keys) for role in rng.sample(list(TABLES), len(TABLES))}
    if isinstance(kind, WorkbookKind):
        sheets = {role: _sheet(rng, role, kind, taken) for role in kind.reads}
        if rng.random() < 0.5:
            sheets["other"] = TableName("other", draw_name(rng, SHEETS["other"], taken), _headers(rng, ["owner", "memo"]))
        names |= {role: sheets[role] for role in rng.sample(list(sheets), len(sheets))}
    n = rng.randint(*kind.lines)
    return Plan(kind, seed, family, names, tuple(rng.choice(kind.parts) for _ in range(n)))


def _table(rng: random.Random, role: str, kind: Kind, family: Family, taken: set[str], keys: set[str]) -> TableName:
    needed, optional = _TABLES[role]
    answer = [kind.answer] if role == kind.reads[0] else ["hold"] if role == "invoices" else []
    roles = [*needed, *(r for r in optional if rng.random() < 0.5), *answer]
    rng.shuffle(roles)
    own: set[str] = set()
    columns = {}
    for r in roles:
        columns[r] = draw_name(rng, COLUMNS[r], keys if r == "key" else own)
    return TableName(role, family.table(draw_name(rng, TABLES[role], taken)), columns)


def _sheet(rng: random.Random, role: str, kind: WorkbookKind, taken: set[str]) -> TableName:
    if role == "goods_in":
        roles = ["key", "value", "status", "received"]
    else:
        extra = [r for r in _OPTIONAL_HEADERS if r not in kind.columns and rng.random() < 0.4]
        roles = [*kind.columns, *extra, kind.answer]
    head, *rest = roles
    rng.shuffle(rest)
    return TableName(role, draw_name(rng, SHEETS[role], taken), _headers(rng, [head, *rest]))


def _headers(rng: random.Random, roles: list[str]) -> dict[str, str]:
    own: set[str] = set()
    return {role: draw_name(rng, HEADERS[role], own) for role in roles}
