"""Records that are being worked on: looked at and written through few verbs, with observations like those on workbooks.

A *place* is a table (``Requests``), a record by its key (``R4821``) or a field of one (``R4821!State``); keys are of one table.
Instead of a key stands ``it``, the record that was read or found last, or a field that holds one: ``it!Sender!Lead`` is the lead
of whoever sent it. Such *references* stand for what they name wherever a person or a value is asked for: nobody has to copy what
they refer to, which small models do badly, and which leads through the model what it need not know.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from frontier_tune.sdk.records.store import Record, RecordStore
from frontier_tune.sdk.tools import ToolError

MAX_WRITTEN = 200  # characters of a field
MAX_FOUND = 8  # records that a search shows
SEALED = "sealed"
IT = "it"


class RecordSession:
    """A store as an agent works on it. ``sealed`` names fields whose content is shown only to who asks for just that field."""

    def __init__(self, store: RecordStore, sealed: Collection[str] = ()) -> None:
        self.store, self.sealed = store, frozenset(sealed)
        self.it: str | None = None  # key of the record that was looked at last

    def overview(self) -> str:
        """``Requests 5; Staff 8``: each table with the number of its records."""
        return "; ".join(f"{table} {len(self.store.keys(table))}" for table in self.store.tables())

    def locate(self, where: str) -> tuple[str, str, Record]:
        """Table, key and content of the record that a key, ``it`` or a field names. Raises ToolError where there is none."""
        root, *links = where.split("!")
        key = root.strip()
        if key.casefold() == IT:
            if self.it is None:
                raise ToolError("it is the record that was read or found last: there is none yet")
            key = self.it
        found = self._record(key)
        for link in links:
            field = _field(found, link)
            if field in self.sealed:  # or an error would tell what it holds
                raise ToolError(f"{field} of {found[1]} is sealed: nothing is found by it")
            found = self._record(_show(found[2][field]))
        return found

    def place(self, where: str) -> tuple[str, str, Record, str]:
        """Table, key, record and field's own spelling of ``R4821!State``. Raises ToolError."""
        holder, bar, name = where.rpartition("!")
        if not bar:
            raise ToolError(f"name a field, such as {where.strip()[:40]}!State")
        found = self.locate(holder)
        return *found, _field(found, name)

    def refer(self, text: str) -> str:
        """What ``text`` stands for: a field's content where it names one, a key where it is ``it``; else it is as it is.

        Raises ToolError where it begins with a record, and there is no such field.
        """
        root, bar, _ = text.strip().partition("!")
        if not bar and root.casefold() == IT and self.it is not None:
            return self.it
        if not bar or not (root.strip().casefold() == IT or any(self._get(root.strip()))):
            return text.strip()
        _, _, record, field = self.place(text)
        return _show(record[field])

    def refer_all(self, text: str) -> str:
        """``text`` with what its items, separated by commas, stand for."""
        items = [item.strip() for item in text.split(",")]
        meant = [self.refer(item) for item in items]
        return text.strip() if meant == items else ", ".join(meant)

    def _get(self, key: str) -> list[tuple[str, str, Record]]:
        found = ((table, key, self.store.get(table, key)) for table in self.store.tables())
        return [(table, key, record) for table, key, record in found if record is not None]

    def _record(self, key: str) -> tuple[str, str, Record]:
        key = key.strip()
        for found in self._get(key):
            return found
        raise ToolError(f"no record {key[:40]}; tables: {self.overview()}")

    def read(self, where: str) -> str:
        """A table's size, fields and first record; a record; or one field, sealed ones included, and the record that it names."""
        if "!" in where:
            _, key, record, field = self.place(where)
            self.it = self._root(where)
            shown = f"{key}!{field} is {_show(record[field])}"
            named = [] if field in self.sealed else self._get(_show(record[field]))
            return "\n".join((shown, *(self._page(*found) for found in named[:1])))
        for table in self.store.tables():
            if table.casefold() == where.strip().casefold():
                keys = self.store.keys(table)
                lines = [f"{table} {len(keys)}"]
                if keys:
                    record = self.store.get(table, keys[0]) or {}
                    lines += [f"Number: {keys[0]}", *self._fields(record)]
                return "\n".join(lines)
        found = self.locate(where)
        self.it = found[1]
        return self._page(*found)

    def find(self, text: str, field: str, also: str = "") -> str:
        """How many records hold ``text`` in some open field (case and spacing aside), and the first few as ``field|key``.

        ``also``: what they must hold in an open field, too. ``it`` is then the record that was found, where it is one.
        """
        wanted, too = _plain(text), _plain(also)
        if not wanted:
            raise ToolError("look for something")
        lines = []
        for table in self.store.tables():
            for key in self.store.keys(table):
                record = self.store.get(table, key) or {}
                held = [_plain(_show(v)) for name, v in record.items() if name not in self.sealed]
                if any(wanted in value for value in held) and any(too in value for value in held):
                    lines.append(f"{_show(record.get(field))}|{key}")
                    self.it = key
        if len(lines) > 1:
            self.it = None  # which of them would be a guess
        if not lines:
            raise ToolError(f"nothing holds {' and '.join(t.strip()[:40] for t in (text, also) if t.strip())}")
        return "\n".join((f"{len(lines)} found", f"{field}|Number", *lines[:MAX_FOUND]))

    def write(self, where: str, value: str) -> str:
        """Write one field of a record that is there; references in ``value`` are what they stand for."""
        table, key, record, field = self.place(where)
        value = self.refer_all(value)
        if len(value) > MAX_WRITTEN or "\n" in value:
            raise ToolError(f"a field holds one line of at most {MAX_WRITTEN} characters")
        self.store.put(table, key, record | {field: value})
        return f"{key}!{field} is {value}"

    def _root(self, where: str) -> str:
        """The record that a field's path begins with: reading on from ``it`` leaves it what it was."""
        return self.locate(where.partition("!")[0])[1]

    def _page(self, table: str, key: str, record: Record) -> str:
        return "\n".join((f"{table} {key}", *self._fields(record)))

    def _fields(self, record: Record) -> list[str]:
        """Each field beside its value: what a value is of must not have to be counted out."""
        return [f"{field}: {SEALED if field in self.sealed else _show(value)}".rstrip() for field, value in record.items()]


def _field(found: tuple[str, str, Record], name: str) -> str:
    """A field's own spelling. Raises ToolError where the record has none such."""
    _, key, record = found
    for field in record:
        if field.casefold() == name.strip().casefold():
            return field
    raise ToolError(f"no field {name.strip()[:40]} in {key}; fields: {', '.join(record)}")


def _show(value: Any) -> str:
    return "" if value is None else str(value)


def _plain(text: str) -> str:
    return "".join(text.casefold().split())
