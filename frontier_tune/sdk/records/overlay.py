"""The overlay behind virtual tools: reads pass through to production, writes stay here and are seen by later reads."""

from __future__ import annotations

from collections.abc import Callable

from frontier_tune.sdk.records.store import Record, RecordStore, copied
from frontier_tune.sdk.tools import Effect


class Overlay:
    """A RecordStore over another one, which it never writes to. ``reset`` forgets every write.

    What production changes meanwhile shows through, but for records that were written here.
    """

    def __init__(self, production: RecordStore) -> None:
        self._production = production
        self._written: dict[tuple[str, str], Record | None] = {}  # None: deleted here

    @property
    def written(self) -> dict[tuple[str, str], Record | None]:
        """What differs from production by intent: (table, key) -> record, None where it was deleted."""
        return {where: None if record is None else copied(record) for where, record in self._written.items()}

    def reset(self) -> None:
        self._written.clear()

    def tables(self) -> list[str]:
        new = (table for (table, _), record in self._written.items() if record is not None)
        return list(dict.fromkeys((*self._production.tables(), *new)))

    def keys(self, table: str) -> list[str]:
        mine = {key: record for (where, key), record in self._written.items() if where == table}
        keys = dict.fromkeys((*self._production.keys(table), *mine))
        return [key for key in keys if key not in mine or mine[key] is not None]

    def get(self, table: str, key: str) -> Record | None:
        if (table, key) in self._written:
            record = self._written[table, key]
            return None if record is None else copied(record)
        record = self._production.get(table, key)
        return None if record is None else copied(record)  # a store that hands out its own records must not be changed by ours

    def put(self, table: str, key: str, record: Record) -> None:
        self._written[table, key] = copied(record)

    def delete(self, table: str, key: str) -> None:
        if self.get(table, key) is not None:
            self._written[table, key] = None


class StoreView:
    """A store as tools see it: production itself while a real tool runs, the episode's overlay otherwise.

    So a tool is written once, and its declared effect says where its writes go. ``running`` tells the effect of what runs now.
    """

    def __init__(self, production: RecordStore, running: Callable[[], Effect]) -> None:
        self.overlay = Overlay(production)
        self._production, self._running = production, running

    @property
    def _store(self) -> RecordStore:
        return self._production if self._running() == "real" else self.overlay

    def reset(self) -> None:
        """Begin an episode: nothing is written yet."""
        self.overlay.reset()

    def tables(self) -> list[str]:
        return list(self._store.tables())

    def keys(self, table: str) -> list[str]:
        return list(self._store.keys(table))

    def get(self, table: str, key: str) -> Record | None:
        return self._store.get(table, key)

    def put(self, table: str, key: str, record: Record) -> None:
        self._store.put(table, key, record)

    def delete(self, table: str, key: str) -> None:
        self._store.delete(table, key)
