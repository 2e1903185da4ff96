"""The overlay against a plain dictionary that takes every write, and against production, which takes none."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from frontier_tune.sdk.records import MemoryStore, Overlay, StoreView, flatten, store_digest
from frontier_tune.sdk.tools import Effect

keys = st.sampled_from("abcd")
records = st.dictionaries(st.sampled_from("xy"), st.integers(0, 3) | st.lists(st.integers(0, 1), max_size=2))
tables = st.dictionaries(st.sampled_from(("s", "t")), st.dictionaries(keys, records))
actions = st.lists(st.tuples(st.sampled_from(("s", "t", "u")), keys, st.none() | records))


@given(tables, actions)
def test_reads_as_if_it_had_been_written_and_production_is_as_it_was(start: Any, steps: Any) -> None:
    production = MemoryStore(start)
    before = store_digest(production)
    overlay, model = Overlay(production), MemoryStore(start)
    for table, key, record in steps:
        for store in (overlay, model):
            store.delete(table, key) if record is None else store.put(table, key, record)
        assert overlay.get(table, key) == model.get(table, key)
    assert {t: set(overlay.keys(t)) for t in "stu"} == {t: set(model.keys(t)) for t in "stu"}
    assert flatten(overlay) == flatten(model)
    assert store_digest(production) == before
    overlay.reset()
    assert flatten(overlay) == flatten(production) and not overlay.written


def test_what_is_handed_out_and_in_is_copied() -> None:
    production = MemoryStore({"t": {"a": {"tags": [1]}}})
    overlay = Overlay(production)
    record: Any = overlay.get("t", "a")
    record["tags"].append(2)
    overlay.put("t", "b", record)
    record["tags"].append(3)
    overlay.written["t", "b"]["tags"].append(4)  # type: ignore[index]
    assert overlay.get("t", "a") == {"tags": [1]} and overlay.get("t", "b") == {"tags": [1, 2]}


def test_a_view_writes_where_the_running_effect_says() -> None:
    production = MemoryStore({"t": {"a": {"x": 1}}})
    running: list[Effect] = ["virtual"]
    view = StoreView(production, lambda: running[-1])
    for effect in ("virtual", "own", "mock"):
        running.append(effect)
        view.put("t", "a", {"x": 2})
        view.delete("t", "a")
        assert view.get("t", "a") is None and production.get("t", "a") == {"x": 1}
    running.append("real")
    assert view.get("t", "a") == {"x": 1}
    view.put("t", "a", {"x": 3})
    assert production.get("t", "a") == {"x": 3}
