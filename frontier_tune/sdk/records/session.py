"""Records that are being worked on: looked at and written through few verbs, with observations like those on workbooks.

A *place* is a table (``Requests``), a record by its key (``R4821``) or a field of one (``R4821!State``); keys are of one table.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from frontier_tune.sdk.records.store import Record, RecordStore
from frontier_tune.sdk.tools import ToolError

MAX_WRITTEN = 200  # characters of a field
MAX_FOUND = 8  # records that a search shows
SEALED = "sealed"


class RecordSession:
    """A store as an agent works on it. ``sealed`` names fields whose content is shown only to who asks for just that field."""

    def __init__(self, store: RecordStore, sealed: Collection[str] = ()) -> None:
        self.store, self.sealed = store, frozenset(sealed)

    def overview(self) -> str:
        """``Requests 5; Staff 8``: each table with the number of its records."""
        return "; ".join(f"{table} {len(self.store.keys(table))}" for table in self.store.tables())

    def locate(self, key: str) -> tuple[str, str, Record]:
        """Table, key and content of a record. Raises ToolError where there is none."""
        key = key.strip()
        for table in self.store.tables():
            record = self.store.get(table, key)
            if record is not None:
                return table, key, record
        raise ToolError(f"no record {key[:40]}; tables: {self.overview()}")

    def place(self, where: str) -> tuple[str, str, Record, str]:
        """Table, key, record and field's own spelling of ``R4821!State``. Raises ToolError."""
        key, bar, name = where.partition("!")
        if not bar:
            raise ToolError(f"name a field, such as {where.strip()[:40]}!State")
        table, key, record = self.locate(key)
        for field in record:
            if field.casefold() == name.strip().casefold():
                return table, key, record, field
        raise ToolError(f"no field {name.strip()[:40]} in {key}; fields: {', '.join(record)}")

    def read(self, where: str) -> str:
        """A table's size, fields and first record; a record; or one field, sealed ones included."""
        if "!" in where:
            _, key, record, field = self.place(where)
            return f"{key}!{field} is {_show(record[field])}"
        for table in self.store.tables():
            if table.casefold() == where.strip().casefold():
                keys = self.store.keys(table)
                lines = [f"{table} {len(keys)}"]
                if keys:
                    record = self.store.get(table, keys[0]) or {}
                    lines += [f"Number: {keys[0]}", *self._fields(record)]
                return "\n".join(lines)
        table, key, record = self.locate(where)
        return "\n".join((f"{table} {key}", *self._fields(record)))

    def find(self, text: str, field: str) -> str:
        """How many records hold ``text`` in some open field (case and spacing aside), and the first few as ``field|key``."""
        wanted = _plain(text)
        if not wanted:
            raise ToolError("look for something")
        lines = []
        for table in self.store.tables():
            for key in self.store.keys(table):
                record = self.store.get(table, key) or {}
                if any(wanted in _plain(_show(v)) for name, v in record.items() if name not in self.sealed):
                    lines.append(f"{_show(record.get(field))}|{key}")
        if not lines:
            raise ToolError(f"nothing holds {text.strip()[:40]}")
        return "\n".join((f"{len(lines)} found", f"{field}|Number", *lines[:MAX_FOUND]))

    def write(self, where: str, value: str) -> str:
        """Write one field of a record that is there."""
        table, key, record, field = self.place(where)
        value = value.strip()
        if len(value) > MAX_WRITTEN or "\n" in value:
            raise ToolError(f"a field holds one line of at most {MAX_WRITTEN} characters")
        self.store.put(table, key, record | {field: value})
        return f"{key}!{field} is {value}"

    def _fields(self, record: Record) -> list[str]:
        """Each field beside its value: what a value is of must not have to be counted out."""
        return [f"{field}: {SEALED if field in self.sealed else _show(value)}".rstrip() for field, value in record.items()]


def _show(value: Any) -> str:
    return "" if value is None else str(value)


def _plain(text: str) -> str:
    return "".join(text.casefold().split())
