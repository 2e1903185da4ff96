"""Record stores: tables of records by key. A CRM, a ticket desk or a key-value store behind one small protocol."""

from __future__ import annotations

import copy
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from frontier_tune.contracts import BadInput, content_hash

Record = dict[str, Any]
Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]


class RecordStore(Protocol):
    """What a store offers. A record is JSON by field; a key-value store has records of one field.

    ``get`` gives a copy: changing it changes nothing in the store.
    """

    def tables(self) -> Sequence[str]:
        """Names of the tables, in a fixed order."""
        ...

    def keys(self, table: str) -> Sequence[str]:
        """Keys of a table's records, in a fixed order; none for a table that is not there."""
        ...

    def get(self, table: str, key: str) -> Record | None:
        """The record, or None."""
        ...

    def put(self, table: str, key: str, record: Record) -> None:
        """Write a whole record, new or not."""
        ...

    def delete(self, table: str, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        ...


class MemoryStore:
    """A store in this process's memory. What is handed in is copied."""

    def __init__(self, tables: Tables | None = None) -> None:
        self._tables: dict[str, dict[str, Record]] = {
            table: {key: copied(record) for key, record in records.items()} for table, records in (tables or {}).items()
        }

    def tables(self) -> list[str]:
        return list(self._now())

    def keys(self, table: str) -> list[str]:
        return list(self._now().get(table, ()))

    def get(self, table: str, key: str) -> Record | None:
        record = self._now().get(table, {}).get(key)
        return None if record is None else copied(record)

    def put(self, table: str, key: str, record: Record) -> None:
        self._tables.setdefault(table, {})[key] = copied(record)

    def delete(self, table: str, key: str) -> None:
        self._tables.get(table, {}).pop(key, None)

    def _now(self) -> dict[str, dict[str, Record]]:
        return self._tables


class JsonStore(MemoryStore):
    """A store in one JSON file, ``{table: {key: record}}``, written whole at every change (atomically; for small ones).

    Several processes may work on one file: each sees what the others have written, and writes are done one after the other
    (``file.lock`` beside it). Raises BadInput where the file is missing or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._read()

    def put(self, table: str, key: str, record: Record) -> None:
        with self._alone():
            tables = self._now()
            self._write({**tables, table: {**tables.get(table, {}), key: copied(record)}})

    def delete(self, table: str, key: str) -> None:
        with self._alone():
            tables = self._now()
            if key in tables.get(table, {}):
                self._write({**tables, table: {k: r for k, r in tables[table].items() if k != key}})

    def _now(self) -> dict[str, dict[str, Record]]:
        if _stamp(self.path) != self._seen:
            self._read()
        return self._tables

    def _read(self) -> None:
        try:
            seen = _stamp(self.path)  # before it is read: what is written meanwhile is read again
            tables = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise BadInput(f"{self.path}: can't be read as a record store: {e}") from None
        fits = isinstance(tables, dict) and all(isinstance(t, dict) for t in tables.values())
        if not fits or not all(isinstance(r, dict) for t in tables.values() for r in t.values()):
            raise BadInput(f'{self.path}: no record store; it holds {{"table": {{"key": {{"field": value}}}}}}')
        self._tables, self._seen = tables, seen

    def _write(self, tables: dict[str, dict[str, Record]]) -> None:
        """What can't be written changes nothing, in memory neither."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(tables, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        seen = _stamp(temporary)
        os.replace(temporary, self.path)
        self._tables, self._seen = tables, seen

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.path.with_name(self.path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def copied(record: Mapping[str, Any]) -> Record:
    """A record that shares nothing mutable with ``record``."""
    flat = all(value is None or isinstance(value, str | int | float) for value in record.values())
    return dict(record) if flat else copy.deepcopy(dict(record))


def flatten(store: RecordStore) -> dict[str, Any]:
    """A store as one state for the graders: ``Table/key/Field`` -> value, and ``Table/key`` -> True for each record."""
    state: dict[str, Any] = {}
    for table in store.tables():
        for key in store.keys(table):
            state[f"{table}/{key}"] = True
            state |= {f"{table}/{key}/{field}": value for field, value in (store.get(table, key) or {}).items()}
    return state


def store_digest(store: RecordStore) -> str:
    """SHA-256 of all that a store holds, whatever the order of its keys."""
    return content_hash({table: {key: store.get(table, key) for key in store.keys(table)} for table in store.tables()})
