"""What happens to a SQLite database inside the sandbox. Standard library alone: its text runs there as a script of its own.

``ask.json`` names database files and statements; each statement gets a connection of its own, so that nothing but the file goes
from one to the next. ``answer.json`` says of each database what the last statement gave, and on demand what is different now.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from typing import Any

BUDGET = 10_000_000  # steps of SQLite's virtual machine that one statement may take: half a second or so, but the same everywhere
STEPS = 100_000
FORBIDDEN = {"random", "randomblob", "current_date", "current_time", "current_timestamp", "load_extension", "fts3_tokenizer"}
# Functions of date and time, and how many arguments they need not to mean now; arguments by which they read a clock or a zone.
CLOCK = {"now", "subsec", "subsecond", "localtime", "utc"}
LEAST = {"date": 1, "time": 1, "datetime": 1, "julianday": 1, "unixepoch": 1, "strftime": 2, "timediff": 2}
PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list"}


def run(connection: sqlite3.Connection, statement: str, max_rows: int, most: int) -> dict[str, Any]:
    """Carry out one statement. ``max_rows`` rows at most are given, and ``most`` characters of them."""
    answer: dict[str, Any] = {"columns": [], "rows": [], "truncated": False, "changes": 0, "error": None}
    left = [BUDGET // STEPS]

    def spend() -> int:
        left[0] -= 1
        return int(left[0] <= 0)

    connection.set_progress_handler(spend, STEPS)
    connection.set_authorizer(_authorize)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    refused: list[str] = []
    _stop_clocks(connection, refused)
    try:
        cursor = connection.execute(statement)
        answer["columns"] = [column[0] for column in cursor.description or ()]
        for row in cursor:
            plain = [_plain(value) for value in row]
            most -= sum(len(str(value)) for value in plain)
            if len(answer["rows"]) >= max_rows or most < 0:
                answer["truncated"] = True
                break
            answer["rows"].append(plain)
        answer["changes"] = connection.total_changes
    except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError, ValueError) as e:
        answer["error"] = "took too long" if str(e) == "interrupted" else refused[0] if refused else str(e)
    finally:
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
    return answer


def views(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Of each table, in the order in which they were made: name, number of rows, column names, first row."""
    found = []
    for name in _tables(connection):
        cursor = connection.execute(f"SELECT * FROM {quoted(name)} LIMIT 1")
        first = cursor.fetchone()
        count = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()[0]
        columns = [column[0] for column in cursor.description]
        found.append({"name": name, "count": count, "columns": columns, "first": [_plain(v) for v in first or ()]})
    return found


def state(connection: sqlite3.Connection, most: int) -> dict[str, Any]:
    """``Table/rowid/column`` -> value of every cell, ``schema/kind name`` -> SQL of everything that is declared.

    A table with more than ``most`` rows shows only that it has them.
    """
    cells = _schema(connection)
    for name in _tables(connection):
        cells |= _cells(name, *_rows(connection, name, most))
    return cells


def changes(before: sqlite3.Connection, after: sqlite3.Connection, most: int) -> dict[str, Any]:
    """Of the state of ``before``, what differs in ``after``: ``changed`` (added ones, too) -> value there, and ``removed``.

    1 and 1.0 are equal here, as they are in SQL; "1" is not.
    """
    old, new = _schema(before), _schema(after)
    for name in dict.fromkeys((*_tables(before), *_tables(after))):
        sides = [_rows(c, name, most) if f"schema/table {name}" in s else None for c, s in ((before, old), (after, new))]
        if sides[0] != sides[1]:  # a table that was left alone is compared in one go
            old |= _cells(name, *sides[0]) if sides[0] else {}
            new |= _cells(name, *sides[1]) if sides[1] else {}
    changed = {k: v for k, v in new.items() if k not in old or v != old[k]}
    return {"changed": changed, "removed": [k for k in old if k not in new]}


def _schema(connection: sqlite3.Connection) -> dict[str, Any]:
    return {f"schema/{name}": sql for name, sql in connection.execute("SELECT type || ' ' || name, sql FROM sqlite_schema")}


def _rows(connection: sqlite3.Connection, name: str, most: int) -> tuple[list[str], list[tuple[Any, ...]] | None]:
    """Columns and rows of a table, the row's id first; None instead of more than ``most`` rows."""
    try:
        cursor = connection.execute(f"SELECT rowid, * FROM {quoted(name)} LIMIT {most + 1}")
    except sqlite3.OperationalError:  # made by the agent WITHOUT ROWID: that it is there is enough
        return [], []
    rows = cursor.fetchall()
    return [column[0] for column in cursor.description][1:], rows if len(rows) <= most else None


def _cells(name: str, columns: list[str], rows: list[tuple[Any, ...]] | None) -> dict[str, Any]:
    if rows is None:
        return {f"{name}/too many rows": True}
    return {f"{name}/{row[0]}/{column}": _plain(value) for row in rows for column, value in zip(columns, row[1:])}


def quoted(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    return [name for (name,) in rows]


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_CREATE_VTABLE):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() not in PRAGMAS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FORBIDDEN:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _stop_clocks(connection: sqlite3.Connection, refused: list[str]) -> None:
    """Let the functions of date and time compute, but not tell what time it is; why goes to ``refused``."""
    plain = sqlite3.connect(":memory:")

    def calculating(name: str) -> Callable[..., Any]:
        def function(*values: Any) -> Any:
            told = [_as_sqlite_reads(v) for v in values]
            clock = next((v for v in told if isinstance(v, str) and v.lower() in CLOCK), None)
            if clock is not None or len(values) < LEAST[name]:
                refused.append(f"not authorized: {name}({clock or ''}) differs from run to run")
                raise ValueError
            return plain.execute(f"SELECT {name}({', '.join('?' * len(values))})", values).fetchone()[0]

        return function

    known = {row[0] for row in plain.execute("SELECT name FROM pragma_function_list")}
    for name in LEAST.keys() & known:
        connection.create_function(name, -1, calculating(name), deterministic=True)


def _as_sqlite_reads(value: Any) -> Any:
    """Text as the functions of date and time see it: a blob's bytes are text to them, and all text ends at a NUL."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text.partition("\0")[0] if isinstance(text, str) else text


def _plain(value: Any) -> Any:
    """A value that JSON has a word for: blobs as SQL writes them, infinities as text."""
    if isinstance(value, bytes):
        return "x'" + value.hex() + "'"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _open(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, isolation_level=None)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")  # SQLite keeps as text whatever is cast to it
    return connection


def main() -> None:
    with open("ask.json") as f:
        ask = json.load(f)
    answers = []
    for name in ask["databases"]:
        with open(name, "rb") as f:
            original = f.read()
        told: dict[str, Any] = {"columns": [], "rows": [], "truncated": False, "changes": 0, "error": None}
        for statement in ask["statements"]:
            connection = _open(name)
            told = run(connection, statement, ask["max_rows"], ask["most"])
            connection.close()
            if told["error"] is not None:
                break
        connection = _open(name)
        told["views"] = views(connection) if "views" in ask["show"] else None
        if "changes" in ask["show"]:
            before = sqlite3.connect(":memory:")
            before.deserialize(original)
            told |= changes(before, connection, ask["most_rows"])
            before.close()
        connection.close()
        answers.append(told)
    with open("answer.json", "w") as f:
        json.dump(answers, f)


if __name__ == "__main__":
    main()
