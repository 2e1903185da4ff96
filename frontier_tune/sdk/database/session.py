"""A database that is being worked on. Statements that a model wrote run in the sandbox alone, and what they leave is read there:
the process of the environment opens no database file but those that the environment made itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from frontier_tune.sdk.code import CodeRunner, SqlOutcome
from frontier_tune.sdk.database import script
from frontier_tune.sdk.tools import ToolError

_SCRIPT = Path(script.__file__).read_text()
MAX_ROWS_SHOWN = 20
MAX_SHOWN = 200  # characters of one value
MAX_CHARACTERS = 4000  # of all values of one answer
MAX_ROWS_COMPARED = 10_000  # of each table


@dataclass(frozen=True)
class Replayed:
    """A database after an episode's statements were done again on it.

    ``before`` is the flat state of the file as it was (see ``state_of``); ``changed``: what was added or has another value now,
    with that value; ``removed``: what is gone. ``error``: what a statement that once worked was refused for here, else empty.
    """

    before: Mapping[str, Any]
    changed: Mapping[str, Any]
    removed: frozenset[str]
    error: str = ""

    @property
    def touched(self) -> frozenset[str]:
        """Every address that was added, changed or removed."""
        return self.removed | self.changed.keys()

    @property
    def state(self) -> dict[str, Any]:
        """The whole state afterwards, for the graders of ``graders.state``."""
        return {k: v for k, v in self.before.items() if k not in self.removed} | dict(self.changed)

    def get(self, address: str) -> Any:
        """What an address holds now; None where nothing is."""
        return None if address in self.removed else self.changed.get(address, self.before.get(address))


class DatabaseSession:
    """One open database; ``content`` is the bytes of its file, made by the environment (see ``make_database``).

    ``statements``: those that changed something, in order, to be done again on another copy.
    """

    def __init__(self, content: bytes) -> None:
        self.original = self.content = content
        self.statements: list[str] = []

    def overview(self) -> str:
        """``Orders 40 rows; Receipts 61 rows``: the tables as the environment made them."""
        return "; ".join(f"{v['name']} {v['count']} rows" for v in _views(self.original))

    def has(self, table: str) -> bool:
        """Whether the environment made a table of that name."""
        return any(v["name"].casefold() == table.strip().casefold() for v in _views(self.original))

    def read(self, table: str, code: CodeRunner | None) -> str:
        """A table's size, its column names and its first row, with ``|`` between values. Raises ToolError for an unknown one.

        ``code`` is not used before the first change.
        """
        views = _views(self.original)
        if self.statements:
            answer = self._ask(_need(code), [], [self.content], ["views"])[0][0]
            if answer["error"] is not None:
                raise ToolError(answer["error"])
            views = answer["views"]
        found = next((v for v in views if v["name"].casefold() == table.strip().casefold()), None)
        if found is None:
            raise ToolError(f"no table {table.strip()}; tables: {', '.join(v['name'] for v in views)}")
        lines = [f"{found['name']} {found['count']} rows", "|".join(found["columns"])]
        return "\n".join([*lines, "|".join(map(show, found["first"]))] if found["first"] else lines)

    def run(self, statement: str, code: CodeRunner) -> SqlOutcome:
        """One statement of the agent's. What it changes stays; one that fails changes nothing."""
        answers, contents = self._ask(code, [statement], [self.content], [], keep=True)
        answer = answers[0]
        if answer["error"] is None and contents[0] != self.content:
            self.content = contents[0]
            self.statements.append(statement)
        rows = tuple(tuple(row) for row in answer["rows"])
        return SqlOutcome(tuple(answer["columns"]), rows, answer["truncated"], answer["changes"], answer["error"])

    def replay(self, copies: Sequence[bytes], code: CodeRunner) -> list[Replayed]:
        """Do this session's changes again on ``copies`` (pristine files): what each holds then. One run of the sandbox."""
        answers, _ = self._ask(code, self.statements, copies, ["changes"])
        return [Replayed(state_of(c), a["changed"], frozenset(a["removed"]), a["error"] or "") for c, a in zip(copies, answers)]

    def _ask(
        self, code: CodeRunner, statements: Sequence[str], databases: Sequence[bytes], show: Sequence[str], keep: bool = False
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        names = [f"copy{i}.sqlite" for i in range(len(databases))]
        ask = {"statements": list(statements), "databases": names, "show": list(show), "max_rows": MAX_ROWS_SHOWN}
        ask |= {"most": MAX_CHARACTERS, "most_rows": MAX_ROWS_COMPARED}
        files = dict(zip(names, databases)) | {"ask.json": json.dumps(ask).encode()}
        outcome = code.run_python(_SCRIPT, files, ["answer.json", *(names if keep else [])])
        if not {"answer.json", *(names if keep else [])} <= set(outcome.files):  # a limit of the sandbox
            told = f"the statement was ended: {outcome.killed_by or outcome.stderr.strip()[-200:] or 'too large'}"
            failed = {"columns": [], "rows": [], "truncated": False, "changes": 0, "error": told, "views": []}
            return [failed | {"changed": {}, "removed": list(state_of(self.original))} for _ in databases], list(databases)
        return json.loads(outcome.files["answer.json"]), [outcome.files[n] for n in names] if keep else []


def make_database(tables: Mapping[str, tuple[Mapping[str, str], Iterable[Sequence[Any]]]]) -> bytes:
    """The bytes of a SQLite file. ``tables``: name -> (column name -> declaration such as ``INTEGER PRIMARY KEY``, rows)."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("BEGIN")
        for name, (columns, rows) in tables.items():
            declared = ", ".join(f"{script.quoted(c)} {kind}" for c, kind in columns.items())
            connection.execute(f"CREATE TABLE {script.quoted(name)} ({declared})")
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {script.quoted(name)} VALUES ({marks})", rows)
        connection.execute("COMMIT")
        return bytes(connection.serialize())
    finally:
        connection.close()


@lru_cache(maxsize=96)
def state_of(content: bytes) -> Mapping[str, Any]:
    """The flat state of a file that the environment made itself; never call it with what an agent's statements left.

    Raises ValueError for a table of more than ``MAX_ROWS_COMPARED`` rows: what an agent changes there would not be seen.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(content)
        long = next((v["name"] for v in script.views(connection) if v["count"] > MAX_ROWS_COMPARED), None)
        if long is not None:
            raise ValueError(f"the table {long} has more than {MAX_ROWS_COMPARED} rows, which is more than replays compare")
        return MappingProxyType(script.state(connection, MAX_ROWS_COMPARED))
    finally:
        connection.close()


def show(value: Any) -> str:
    """A value as observations show it: nothing for NULL, numbers with at most 11 significant digits."""
    if value is None:
        return ""
    text = f"{value:.11g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


@lru_cache(maxsize=1024)
def _views(content: bytes) -> list[dict[str, Any]]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(content)
        return script.views(connection)
    finally:
        connection.close()


def _need(code: CodeRunner | None) -> CodeRunner:
    if code is None:
        raise ValueError("a database that was changed is read in the sandbox: give read() the environment's code")
    return code
