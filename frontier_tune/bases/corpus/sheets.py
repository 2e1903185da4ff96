"""Workbooks for the corpus: tables of every role, named, shuffled and laid out at random, with values that mean nothing.

Only the train layout families are used; the held-out ones stay unseen by every base.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from frontier_tune.sdk.workbook.layouts import TRAIN_FAMILIES, Family, SheetSpec, lay_out
from frontier_tune.sdk.workbook.session import WorkbookSession
from frontier_tune.sdk.workbook.vocabulary import COLUMNS, SHEETS, VALUES

TABLES: dict[str, tuple[str, ...]] = {
    "sales": ("reference", "customer", "product", "region", "gross", "returns", "rebates", "freight", "discounts", "net"),
    "ledger": ("reference", "account", "amount", "status", "posting_date", "memo", "owner"),
    "summary": ("account", "owner", "department", "total", "mean", "result"),
    "payments": ("reference", "customer", "currency", "amount", "converted", "owner", "memo"),
    "rates": ("currency", "rate_open", "rate_average", "rate_close", "rate_budget", "memo"),
    "costs": ("account", "department", "actual", "budget", "forecast", "prior", "variance", "owner"),
    "receivables": (
        "reference",
        "customer",
        "invoice_date",
        "delivery_date",
        "due_date",
        "closing_date",
        "open_amount",
        "bucket",
    ),
    "calendar": ("reference", "posting_date", "document_date", "amount", "owner", "quarter"),
    "loans": (
        "reference",
        "customer",
        "opening_balance",
        "closing_balance",
        "average_balance",
        "interest_rate",
        "days",
        "interest",
    ),
    "general": ("product", "quantity", "price", "tax", "fee", "hours", "result", "region"),
}
OPTIONAL = {"product", "region", "customer", "owner", "department", "memo", "reference"}
EMPTY = {"net", "total", "mean", "converted", "variance", "bucket", "quarter", "result"}
DATES = {"invoice_date", "delivery_date", "due_date", "closing_date", "posting_date", "document_date"}
TEXTS = {"account", "region", "customer", "product", "currency", "department", "status", "owner", "memo"}


@dataclass
class Sheet:
    """One table: its sheet's name and the header that each role got."""

    kind: str
    name: str
    header: dict[str, str]

    def numeric(self) -> list[str]:
        """Roles whose column holds numbers."""
        return [r for r in self.header if r not in EMPTY | DATES | TEXTS | {"reference", "interest"}]


@dataclass
class Scene:
    """A workbook with its session and what its tables are."""

    session: WorkbookSession
    sheets: dict[str, Sheet]

    def opening(self, prompt: str) -> str:
        return f"{prompt}\nSheets: {self.session.overview()}"


def make_scene(rng: random.Random, wanted: tuple[str, ...], families: tuple[Family, ...] = TRAIN_FAMILIES) -> Scene:
    """A workbook that holds a table of each wanted kind, and up to three other sheets, laid out after one of ``families``."""
    kinds = list(wanted) + rng.sample([k for k in TABLES if k not in wanted], rng.randint(0, 2))
    names: set[str] = set()
    sheets, specs = {}, []
    for kind in kinds:
        spec, sheet = _table(rng, kind, names, 60 if kind in wanted else 25)
        sheets[kind] = sheet
        specs.append(spec)
    if rng.random() < 0.5:
        name = _unused(rng, SHEETS["other"], names)
        headers = [rng.choice(COLUMNS["owner"]), rng.choice(COLUMNS["memo"]), "Date"]
        rows = [[rng.choice(VALUES["owner"]), rng.choice(VALUES["memo"]), None] for _ in range(rng.randint(2, 9))]
        specs.append(SheetSpec(name, headers, rows))
    rng.shuffle(specs)
    book = lay_out(specs, rng.choice(families), rng)
    return Scene(WorkbookSession(book), sheets)


def _unused(rng: random.Random, options: tuple[str, ...], names: set[str]) -> str:
    name = rng.choice([o for o in options if o not in names])
    names.add(name)
    return name


def _table(rng: random.Random, kind: str, names: set[str], most: int) -> tuple[SheetSpec, Sheet]:
    roles = [r for r in TABLES[kind] if r not in OPTIONAL or rng.random() < 0.6]
    if kind == "summary" and not OPTIONAL & set(roles):
        roles.append("owner")
    rng.shuffle(roles)
    if rng.random() < 0.5:  # the answer column often stands last
        roles.sort(key=lambda r: r in EMPTY)
    name = _unused(rng, SHEETS.get(kind, SHEETS["calendar"]), names)
    taken: set[str] = set()
    header = {}
    for role in roles:
        header[role] = rng.choice([h for h in COLUMNS[role] if h.casefold() not in taken])
        taken.add(header[role].casefold())
    keys = [k for k in ("account", "currency") if k in roles]
    n = len(VALUES[keys[0]]) if kind in ("summary", "rates") else rng.randint(6, most)
    n = rng.randint(4, n) if kind in ("summary", "rates") else n
    closing = date(2024, 1, 1) + timedelta(days=rng.randint(100, 900))
    rows = [[_value(rng, role, kind, i, closing) for role in roles] for i in range(n)]
    if kind == "loans":
        broken = rng.choice(("=ROUND(#REF!*2,2)", "=#REF!*3", "=#REF!+1"))
        at = roles.index("interest")
        for row in rows:
            row[at] = broken
    totals = [header[r] for r in roles if r in ("gross", "amount", "actual", "budget", "open_amount", "quantity")]
    return SheetSpec(name, list(header.values()), rows, totals), Sheet(kind, name, header)


def _value(rng: random.Random, role: str, kind: str, i: int, closing: date) -> Any:
    if role in EMPTY or role == "interest":
        return None
    if role == "closing_date":
        return closing
    if role in DATES:
        return closing - timedelta(days=rng.randint(0, 250))
    if role == "reference":
        return f"{rng.choice('ABKRV')}{rng.randint(100, 9999)}"
    if role in ("account", "currency") and kind in ("summary", "rates"):
        return VALUES[role][i]
    if role in TEXTS:
        return rng.choice(VALUES[role])
    if role.startswith("rate_"):
        return round(rng.uniform(0.5, 2), 4)
    if role == "interest_rate":
        return round(rng.uniform(0.01, 0.09), 4)
    if role in ("days", "quantity", "hours"):
        return rng.randint(1, 120)
    return round(rng.uniform(1, 4000), rng.choice((2, 3, 4)))
