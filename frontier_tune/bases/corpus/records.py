"""Dialogues on records (desks, customer files) whose prompts say everything: which field, which person, which word.

They teach what practice alone can't: where companies differ by a coin, a base does as well by naming any field of a record as the
one that is meant. What a field holds is referred to, never copied. Observations of reads, searches and writes come from the SDK's
own session.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from frontier_tune.contracts import Message
from frontier_tune.sdk.records import MemoryStore, Record
from frontier_tune.sdk.records.session import RecordSession
from frontier_tune.sdk.records.vocabulary import FIELDS, PEOPLE, VALUES

_WORDS = tuple(dict.fromkeys(value for values in VALUES.values() for value in values))
_DECIDES = (
    "lead",
    "head",
    "partner",
    "controller",
    "payroll",
    "counsel",
    "council",
    "doctor",
    "rep",
    "deputy",
    "support",
    "manager",
)
_PERSONS = (*_DECIDES, "owner", "keeper")
_PLAIN = tuple(role for role in FIELDS if role not in _PERSONS)
_TABLES = (("Requests", "R"), ("Customers", "C"))


@dataclass(frozen=True)
class File:
    """A small file of records. ``key`` is the record that is asked about, ``header`` its fields by role, ``empty`` the roles that
    lack a value; ``staff`` is the record of the person in the field of role ``holder``, and ``link`` leads to one more record."""

    session: RecordSession
    key: str
    header: dict[str, str]
    empty: tuple[str, ...]
    holder: str
    staff: dict[str, str]
    link: str

    @property
    def overview(self) -> str:
        return self.session.overview()

    def value(self, role: str) -> str:
        return str(self.session.locate(self.key)[2][self.header[role]])

    def filled(self) -> list[str]:
        return [role for role in self.header if role not in self.empty]

    def persons(self) -> list[str]:
        return [role for role in self.header if role in _PERSONS]


def make_file(rng: random.Random) -> File:
    """A file drawn from ``rng``: two to five records, the staff record of a person, the record that a link leads to."""
    header = {role: rng.choice(names) for role, names in FIELDS.items()}
    table, letter = rng.choice(_TABLES)
    link = rng.choice(("region", "industry", "segment"))
    plain = [role for role in _PLAIN if role != link]
    roles = [*rng.sample(_PERSONS, rng.randint(1, 3)), *rng.sample(plain, rng.randint(4, 6)), link]
    rng.shuffle(roles)
    empty = tuple(rng.sample([r for r in roles if r in plain], 2))
    keys = [f"{letter}{n}" for n in rng.sample(range(1000, 10_000), rng.randint(2, 5))]
    people = rng.sample(PEOPLE, len(PEOPLE))
    records: dict[str, Record] = {}
    for key in keys:
        own = iter(rng.sample(people, len(roles)))
        records[key] = {header[r]: "" if r in empty else next(own) if r in _PERSONS else _value(rng, r) for r in roles}
    key = keys[0]
    holder = next(r for r in roles if r in _PERSONS)
    person = str(records[key][header[holder]])
    others = [p for p in people if p != person]
    seats = rng.sample(_DECIDES, rng.randint(3, 5))
    staff = {header[r]: p for r, p in zip(seats, others, strict=False)}
    staff |= {header[r]: _value(rng, r) for r in rng.sample(("unit", "site", "badge", "birthday"), rng.randint(0, 2))}
    shuffled = dict(rng.sample(list(staff.items()), len(staff)))
    there = {header[r]: p for r, p in zip(rng.sample(_DECIDES[-4:], 4), rng.sample(PEOPLE, 4), strict=True)}
    tables = {
        table: dict(rng.sample(list(records.items()), len(records))),
        "Staff": {person: shuffled},
        "Territories": {str(records[key][header[link]]): there},
    }
    return File(RecordSession(MemoryStore(tables)), key, {r: header[r] for r in roles}, empty, holder, shuffled, link)


def _value(rng: random.Random, role: str) -> str:
    if role in VALUES:
        return rng.choice(VALUES[role])
    if role in ("received", "birthday", "last_order"):
        return f"{rng.randint(1960, 2025)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if role in ("badge", "tax", "receipt", "project", "room", "credit", "margin", "remark"):
        return f"{rng.choice('BKPTV')}{rng.randint(100, 999)}"
    return rng.choice(_WORDS)


Turn = tuple[str, str]  # a call and what it comes to
Answered = tuple[str, list[Turn], str]  # prompt, turns, and the tables as they lie there


def _read(file: File, where: str) -> Turn:
    return f"read {where}", file.session.read(where)


def _write(file: File, role: str, value: str) -> Turn:
    where = f"it!{file.header[role]}"
    return f"write {where} | {value}", file.session.write(where, value)


def _told(file: File, verb: str, person: str, about: str, answer: str) -> Turn:
    """A word with whoever ``person`` refers to."""
    return f"{verb} {person} | {about}", f"{file.session.refer(person)}: {answer}"


def set_field(rng: random.Random, file: File) -> Answered:
    role, word = rng.choice(list(file.header)), rng.choice(_WORDS + PEOPLE)
    prompt = f"Set {file.header[role]} of {file.key} to {word}."
    return prompt, [_read(file, file.key), _write(file, role, word)], file.overview


def copy_field(rng: random.Random, file: File) -> Answered:
    source, target = rng.choice(file.filled()), rng.choice(file.empty)
    prompt = f"Copy {file.header[source]} of {file.key} into {file.header[target]}."
    return prompt, [_read(file, file.key), _write(file, target, f"it!{file.header[source]}")], file.overview


def clear_fields(rng: random.Random, file: File) -> Answered:
    roles = rng.sample(file.filled(), 2)
    turns = [_read(file, file.key)]
    for role in roles:
        where = f"it!{file.header[role]}"
        turns.append((f"clear {where}", file.session.write(where, "")))
    return f"Clear {file.header[roles[0]]} and {file.header[roles[1]]} of {file.key}.", turns, file.overview


def ask_person(rng: random.Random, file: File) -> Answered:
    role, wanted = rng.choice(file.persons()), rng.choice(file.empty)
    turns = [_read(file, file.key)]
    answer = f"{_value(rng, wanted)}, I have filled it in"
    turns.append(_told(file, "ask", f"it!{file.header[role]}", file.header[wanted], answer))
    return f"Ask {file.header[role]} of {file.key} for {file.header[wanted]}.", turns, file.overview


def request_decision(rng: random.Random, file: File) -> Answered:
    """Of somebody whom the record of a person of the record names."""
    holder = f"it!{file.header[file.holder]}"
    field = rng.choice([name for name, value in file.staff.items() if value in PEOPLE])
    other = rng.choice([p for p in PEOPLE if p != file.staff[field]])
    turns = [_read(file, file.key), _read(file, holder)]
    person = f"{holder}!{field}"
    if rng.random() < 0.4:
        why = rng.choice(("I am away", "I am concerned in it"))
        turns.append(_told(file, "request", person, "it", f"{why}, request {other}"))
        person = other
    ways = (("approved", rng.choice(_WORDS)), ("refused", rng.choice(_WORDS)))
    said, word = rng.choice(ways)
    turns.append(_told(file, "request", person, "it", said))
    target = rng.choice(list(file.header))
    prompt = f"Request {field} of {file.header[file.holder]} of {file.key} to decide on it. Set {file.header[target]} to "
    prompt += ", ".join(f"{word} if {said}" for said, word in ways) + "."
    return prompt, [*turns, _write(file, target, word)], file.overview


def send_fields(rng: random.Random, file: File) -> Answered:
    role = rng.choice(file.persons())
    told = [f"it!{file.header[r]}" for r in rng.sample([r for r in file.filled() if r != role], 2)]
    person = f"it!{file.header[role]}"
    turns = [_read(file, file.key)]
    turns.append((f"send {person} | {', '.join(told)}", f"sent to {file.session.refer(person)}"))
    first, second = (name.removeprefix("it!") for name in told)
    return f"Send {file.header[role]} of {file.key} its {first} and {second}.", turns, file.overview


def follow_link(rng: random.Random, file: File) -> Answered:
    target, link = rng.choice(file.empty), f"it!{file.header[file.link]}"
    turns = [_read(file, file.key), _read(file, link)]
    field = rng.choice(list(file.session.locate(link)[2]))
    prompt = f"Set {file.header[target]} of {file.key} to {field} of its {file.header[file.link]}."
    return prompt, [*turns, _write(file, target, f"{link}!{field}")], file.overview


def find_record(rng: random.Random, file: File) -> Answered:
    """Of several records that hold a text, the one that came by a source."""
    header = {role: rng.choice(FIELDS[role]) for role in ("name", "source", "town")}
    firm = f"{rng.choice(VALUES['firm'])} {rng.choice(VALUES['trade'])}"
    sources = rng.sample(VALUES["source"], rng.randint(2, 4))
    rows: dict[str, Record] = {
        f"C{n}": {header["name"]: firm, header["source"]: source, header["town"]: rng.choice(VALUES["place"])}
        for n, source in zip(rng.sample(range(1000, 10_000), len(sources)), sources, strict=True)
    }
    session = RecordSession(MemoryStore({"Customers": rows}))
    overview = session.overview()
    key, source = rng.choice([(key, str(row[header["source"]])) for key, row in rows.items()])
    field, word = rng.choice(list(header.values())), rng.choice(_WORDS)
    verb = rng.random() < 0.5
    prompt = f"Of {firm}, {'merge the others into the one' if verb else f'set {field} of the one'} by {source}"
    turns: list[Turn] = [(f"find {firm} | {source}", session.find(firm, header["source"], source))]
    if verb:
        turns.append(("merge it", f"{key} has taken in {', '.join(k for k in rows if k != key)}"))
        return f"{prompt}.", turns, overview
    turns.append((f"write it!{field} | {word}", session.write(f"it!{field}", word)))
    return f"{prompt} to {word}.", turns, overview


Ask = Callable[[random.Random, File], Answered]
QUESTIONS: tuple[Ask, ...] = (
    set_field, copy_field, clear_fields, ask_person, request_decision, send_fields, follow_link, find_record,
)  # fmt: skip


def explicit(rng: random.Random) -> tuple[str, tuple[Message, ...]]:
    """The question's name and a dialogue from prompt to submit."""
    file = make_file(rng)
    question = rng.choice(QUESTIONS)
    prompt, turns, overview = question(rng, file)
    messages = [Message("user", f"{prompt}\nTables: {overview}")]
    for call, said in turns:
        messages += [Message("assistant", call), Message("tool", said)]
    return question.__name__, (*messages, Message("assistant", "submit"))


def drill(rng: random.Random) -> tuple[Message, ...]:
    """Refer to what is named: short records of words that mean nothing, one to three of their fields asked for."""
    names = [name for role in rng.sample(list(FIELDS), rng.randint(3, 9)) for name in (rng.choice(FIELDS[role]),)]
    values = rng.sample(tuple(dict.fromkeys(_WORDS + PEOPLE)), len(names))
    number = f"{rng.choice('RCPT')}{rng.randint(1000, 9999)}"
    asked = rng.sample(range(len(names)), rng.randint(1, 3))
    target = rng.choice(names)
    return (
        Message("user", f"Write {', '.join(names[i] for i in asked)} of {number} to {target}."),
        Message("assistant", f"read {number}"),
        Message("tool", "\n".join((number, *(f"{name}: {value}" for name, value in zip(names, values, strict=True))))),
        Message("assistant", f"write it!{target} | {', '.join(f'it!{names[i]}' for i in asked)}"),
        Message("tool", f"{number}!{target} is {', '.join(values[i] for i in asked)}"),
        Message("assistant", "submit"),
    )
