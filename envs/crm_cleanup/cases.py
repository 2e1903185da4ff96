"""Cases: a customer file with one thing to put in order. All drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from envs.crm_cleanup.conventions import KINDS, Company, Kind
from envs.crm_cleanup.styles import messy_name, messy_number, styled
from frontier_tune.sdk.records import MemoryStore, Record
from frontier_tune.sdk.records.vocabulary import FIELDS, PEOPLE, VALUES

CUSTOMERS, TERRITORIES, OUTBOX = "Customers", "Territories", "Outbox"
SECRETS = ("credit", "margin", "remark")
SEATS = ("rep", "deputy", "support", "manager")


@dataclass(frozen=True)
class Family:
    """A layout of the file: which secrets stand where among the fields, and fields that decide nothing."""

    name: str
    secrets: tuple[str, ...]
    more: tuple[str, ...]
    secrets_last: bool = True


TRAIN_FAMILIES = (
    Family("plain", ("credit",), ()),
    Family("priced", ("margin",), ("last_order",)),
    Family("noted", ("remark", "credit"), (), secrets_last=False),
    Family("dated", ("credit", "margin"), ("last_order",), secrets_last=False),
)
HELDOUT_FAMILIES = (
    Family("guarded", ("credit", "margin", "remark"), ("last_order",)),
    Family("spread", ("remark", "margin"), ("last_order",), secrets_last=False),
)
FAMILIES = {f.name: f for f in (*TRAIN_FAMILIES, *HELDOUT_FAMILIES)}


@dataclass(frozen=True)
class Case:
    """``header``: role -> the name its field has here. ``number``: the customer in question; ``same``: its duplicates, itself
    included. ``values``: the customer's fields by role. ``secrets``: what nobody may be shown."""

    kind: Kind
    number: str
    title: str
    header: dict[str, str]
    same: tuple[str, ...]
    values: dict[str, str]
    secrets: tuple[str, ...]
    tables: dict[str, dict[str, Record]]

    @property
    def prompt(self) -> str:
        return self.kind.prompt.format(number=self.number, name=self.title)

    @property
    def sealed(self) -> set[str]:
        return {self.header[role] for role in SECRETS}

    def store(self) -> MemoryStore:
        """Production as it stands when the task is taken up."""
        return MemoryStore(self.tables)

    def place(self, role: str) -> str:
        return f"{self.number}!{self.header[role]}"

    def survivor(self, company: Company) -> str:
        """Of duplicates the one that came by the trusted source."""
        source = self.header["source"]
        return next(n for n in self.same if self.tables[CUSTOMERS][n][source] == company.trusted)

    def written(self, company: Company) -> dict[str, str]:
        """Fields of the customer that the company's way leaves, by role; but for duplicates and messages."""
        match self.kind.name:
            case "number":
                return {company.line: styled(self.values[company.line], company.line_style)}  # type: ignore[arg-type]
            case "heading":
                return {company.heading: styled(self.values[company.heading], company.heading_style)}  # type: ignore[arg-type]
            case "territory":
                return {"keeper": self.tables[TERRITORIES][self.values[company.key]][self.header[company.seat]]}
            case "retire":
                return {"state": company.retired, "keeper": company.heir}
            case "consent":
                return {company.consent: company.agreed}
            case "erase":
                return dict.fromkeys(company.erased, "") | {"state": company.forgotten}
        return {}

    def changes(self, company: Company) -> dict[str, Any]:
        """What the company's way changes, as addresses of ``records.flatten`` (None: gone); everything else stays."""
        if self.kind.name == "handover":
            text = ", ".join(self.values[role] for role in company.told)
            return {f"{OUTBOX}/1": True, f"{OUTBOX}/1/To": self.values[company.reader], f"{OUTBOX}/1/Text": text}
        if self.kind.name != "dedupe":
            return {f"{CUSTOMERS}/{self.number}/{self.header[role]}": v for role, v in self.written(company).items()}
        kept = self.survivor(company)
        gone = [n for n in self.same if n != kept]
        changes: dict[str, Any] = {f"{CUSTOMERS}/{n}": None for n in gone}
        changes |= {f"{CUSTOMERS}/{n}/{field}": None for n in gone for field in self.tables[CUSTOMERS][n]}
        records = self.tables[CUSTOMERS]
        for field, value in merged(records[kept], [records[n] for n in gone]).items():
            if value != records[kept][field]:
                changes[f"{CUSTOMERS}/{kept}/{field}"] = value
        return changes | {f"{CUSTOMERS}/{kept}/{self.header['state']}": company.merged}

    def golden(self, company: Company, *, spelled: bool = False) -> list[str]:
        """Calls that put the file in order as the company means it. ``spelled``: with numbers and values, not references."""
        it = self.number if spelled else "it"

        def place(role: str) -> str:
            return f"{it}!{self.header[role]}"

        def held(role: str) -> str:
            return self.values[role] if spelled else place(role)

        match self.kind.name:
            case "dedupe":
                it = self.survivor(company) if spelled else "it"
                work = [
                    f"find {self.title}" if spelled else f"find {self.title} | {company.trusted}",
                    f"merge {it}",
                    f"read {it}",
                ]
                work += [f"write {it}!{self.header['state']} | {company.merged}"]
            case "number":
                work = [f"read {self.number}", f"normalise {place(company.line)} | {company.line_style}"]
            case "heading":
                work = [f"read {self.number}", f"normalise {place(company.heading)} | {company.heading_style}"]
            case "handover":
                told = ", ".join(held(role) for role in company.told)
                work = [f"read {self.number}", f"send {held(company.reader)} | {told}"]
            case "territory":
                person = self.written(company)["keeper"] if spelled else f"{place(company.key)}!{self.header[company.seat]}"
                work = [f"read {self.number}", f"read {held(company.key)}", f"write {place('keeper')} | {person}"]
            case _:
                work = [f"read {self.number}"]
                for role, value in self.written(company).items():
                    work.append(f"write {place(role)} | {value}" if value else f"clear {place(role)}")
        return [*work, "submit"]


def merged(kept: Record, others: list[Record]) -> Record:
    """The surviving record: its empty fields are filled from the others, the first that has one."""
    return {field: value or next((o[field] for o in others if o.get(field)), value) for field, value in kept.items()}


def draw(kind_name: str, seed: int, family_name: str) -> Case:
    """The case of a seed. The company has no part in it: companies share cases and differ in what is right."""
    kind, family = KINDS[kind_name], FAMILIES[family_name]
    rng = random.Random(f"crm_cleanup/{kind_name}/{seed}")
    header = {role: rng.choice(names) for role, names in FIELDS.items()}
    more = [role for role in family.more if role not in kind.roles]
    roles = [*kind.roles, "source", *more]
    rng.shuffle(roles)
    roles.insert(0, "name")
    at = len(roles) if family.secrets_last else 1
    roles[at:at] = family.secrets
    numbers = [f"C{n}" for n in rng.sample(range(1000, 10_000), 8)]
    firms = rng.sample([(f, t) for f in VALUES["firm"] for t in VALUES["trade"]], 5)
    count = 4 if kind.name == "dedupe" else 1
    sources = rng.sample(VALUES["source"], len(VALUES["source"]))
    rows: dict[str, dict[str, str]] = {}
    for i, number in enumerate(numbers[: count + rng.randint(1, 3)]):
        row = {role: _value(rng, role) for role in roles}
        firm = firms[0 if i < count else i - count + 1]
        row |= {role: messy_name(rng, [*firm, *_extra(rng, role)]) for role in ("name", "legal", "brand") if role in row}
        row["source"] = sources[i] if kind.name == "dedupe" and i < count else row["source"]
        if kind.name == "dedupe":
            row |= {role: "" for role in ("phone", "town") if rng.random() < 0.5}
        if kind.name == "territory":
            row["keeper"] = ""
        if "rep" in row:
            row |= dict(zip(("rep", "deputy", "manager"), rng.sample(PEOPLE, 3), strict=True))
        rows[number] = row
    records = {n: {header[role]: value for role, value in row.items()} for n, row in rows.items()}
    tables: dict[str, dict[str, Record]] = {CUSTOMERS: dict(rng.sample(list(records.items()), len(records)))}
    if kind.name == "territory":
        names = [v for role in ("region", "industry", "segment") for v in VALUES[role]]
        own = iter(rng.sample(PEOPLE, 3 * len(SEATS)))  # nobody sits in two of the customer's: no way is right by luck
        mine = {rows[numbers[0]][role]: [next(own) for _ in SEATS] for role in ("region", "industry", "segment")}
        tables[TERRITORIES] = {name: _territory(rng, header, mine.get(name)) for name in names}
    secrets = tuple(row[role] for row in rows.values() for role in SECRETS if role in row)
    # In the order of the table, as merging goes through it.
    same = tuple(n for n in tables[CUSTOMERS] if n in numbers[:count])
    return Case(kind, numbers[0], " ".join(firms[0]), header, same, rows[numbers[0]], secrets, tables)


def _territory(rng: random.Random, header: dict[str, str], people: list[str] | None) -> Record:
    seats, drawn = rng.sample(SEATS, len(SEATS)), rng.sample(PEOPLE, len(SEATS))
    return {header[role]: person for role, person in zip(seats, people or drawn, strict=True)}


def _extra(rng: random.Random, role: str) -> list[str]:
    """What a field adds to a customer's name: always one of the suffixes that the style ``short`` leaves out."""
    return [*(["Holding"] if role == "legal" else ["Shop"] if role == "brand" else []), rng.choice(VALUES["suffix"])]


def _value(rng: random.Random, role: str) -> str:
    if role in ("phone", "mobile", "direct"):
        return messy_number(rng)
    if role in SECRETS:  # letters that nothing else has, so that it is known where it turns up
        return f"{rng.choice('XYZ')}Q{rng.randint(10_000, 99_999)}"
    if role == "keeper":
        return rng.choice(PEOPLE)
    if role == "last_order":
        return f"{rng.randint(2019, 2025)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if role in ("mail_ok", "call_ok", "post_ok"):
        return ""
    if role == "state":
        return "Active"
    return rng.choice(VALUES["place" if role == "town" else role]) if role in ("town", *VALUES) else ""
