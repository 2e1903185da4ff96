"""Real, virtual and mock tools: where writes go, what is refused, what recordings answer."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.sdk import Grade, Message, Task, ToolError, WorkflowEnv, tool
from frontier_tune.sdk.recordings import Recording, record
from frontier_tune.sdk.records import JsonStore, MemoryStore, store_digest
from frontier_tune.sdk.tools import ToolDeclarationError
from frontier_tune.sdk.watch import watching

TASK = Task("t", "train", {"n": 1})


class Shop(WorkflowEnv):
    name = "shop"
    recordings = "shop.json"

    def __init__(self, file: Path) -> None:
        self.store = self.attach_store("shop", JsonStore(file))
        self.asked = 0

    def tasks(self, split, n, seed):  # type: ignore[no-untyped-def]
        return [TASK]

    def begin(self, task: Task) -> list[Message]:
        return [Message("user", "go")]

    def _order(self, item: str) -> str:
        record = self.store.get("stock", item)
        if record is None:
            raise ToolError(f"no {item}")
        self.store.put("stock", item, {"left": record["left"] - 1})
        return f"{item} {self.store.get('stock', item)['left']}"  # type: ignore[index]

    @tool(effect="virtual")
    def order(self, item: str) -> str:
        """Order.

        Args:
            item: What.
        """
        return self._order(item)

    @tool(effect="real")
    def order_now(self, item: str) -> str:
        """Order in truth.

        Args:
            item: What.
        """
        return self._order(item)

    @tool(effect="mock")
    def price(self, item: str) -> str:
        """Ask the supplier.

        Args:
            item: What.
        """
        self.asked += 1
        if item == "moon":
            raise ToolError("not for sale")
        return f"{item} costs {self.asked}"

    @tool(ends=True)
    def submit(self) -> str:
        """End."""
        return "ended"

    def grade(self) -> Grade:
        return Grade(0.0, False)


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stock.json"
    path.write_text(json.dumps({"stock": {"lamp": {"left": 3}}}))
    return path


def answers(env: Shop, *calls: str) -> list[str]:
    env.reset(options={"task": TASK})
    said = []
    for call in calls:
        messages, *_, info = env.step(call)
        said.append(messages[0].content if messages else f"{info['failure']['kind']}: {info['failure']['detail']}")
    return said


def test_virtual_writes_are_seen_by_later_reads_and_never_by_production(file: Path) -> None:
    env, before = Shop(file), file.read_bytes()
    assert answers(env, "order lamp", "order lamp", "order moon") == ["lamp 2", "lamp 1", "error: no moon"]
    assert file.read_bytes() == before
    assert answers(env, "order lamp") == ["lamp 2"]  # the next episode sees production again


def test_real_writes_need_leave_and_reach_production(file: Path) -> None:
    env, before = Shop(file), file.read_bytes()
    (said,) = answers(env, "order_now lamp")
    assert said.startswith("real-write-refused: 'order_now'") and file.read_bytes() == before
    assert env.effects.of_tools == {"order": "virtual", "order_now": "real", "price": "mock", "submit": "own"}
    env.effects.allow_real_writes(["order_now"])
    assert answers(env, "order_now lamp", "order lamp") == ["lamp 2", "lamp 1"]
    assert json.loads(file.read_text()) == {"stock": {"lamp": {"left": 2}}}
    for name, why in (("order", "is virtual, not real"), ("ordr", "is no tool of it")):
        with pytest.raises(BadInput, match=why):
            env.effects.allow_real_writes([name])


def test_recorded_once_answered_without_the_body(file: Path, tmp_path: Path) -> None:
    env = Shop(file)
    env.recordings = str(tmp_path / "shop.json")  # type: ignore[misc]
    with pytest.raises(BadInput, match=r"recordings\.record"):
        env.effects.prepare(())
    assert record(env, [(TASK, ["price lamp", "price lamp", "price moon", "submit"])], env.recordings) == 3
    env = Shop(file)
    env.recordings = str(tmp_path / "shop.json")  # type: ignore[misc]
    env.effects.prepare(())
    said = answers(env, "price lamp", "price moon", "price moon", "price lamp", "price lamp")
    assert said[:4] == ["lamp costs 1", "error: not for sale", "error: not for sale", "lamp costs 2"]
    assert said[4].startswith("no-recording: mock 'price'") and "this is call 3" in said[4]
    assert answers(env, "price lamp") == ["lamp costs 1"] and env.asked == 0  # counted anew, and the body never ran
    assert "never recorded" in answers(env, "price star")[0]


def test_otherwise_is_for_calls_nobody_recorded(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": 1, "otherwise": {"price": {"answer": "unknown", "error": True}}}))
    assert Recording.load(path).answer("price", {"item": "x"}).error
    wrong = '{"format": 1, "calls": [{"tool": "price", "arguments": {}, "answer": 3}]}'
    for text, why in [
        ("{", "can't be read"),
        ('{"format": 2}', "format 1"),
        ('{"format": 1, "cals": []}', "'cals'"),
        (wrong, "not recorded as"),
    ]:
        path.write_text(text)
        with pytest.raises(BadInput, match=why):
            Recording.load(path)


def test_nothing_recorded_is_refused(file: Path, tmp_path: Path) -> None:
    env = Shop(file)
    with pytest.raises(BadInput, match="no mock tool"):
        record(env, [(TASK, ["order lamp", "submit"])], tmp_path / "r.json")
    with pytest.raises(BadInput, match="real-write-refused"):
        record(env, [(TASK, ["order_now lamp"])], tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(ToolDeclarationError, match="effect is one of own, real, virtual, mock"):
        tool(effect="virtuel")(Shop._order)  # type: ignore[arg-type]


def test_watch_sees_writes_and_processes_but_no_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3
    import subprocess

    (tmp_path / "a").write_text("x")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with watching() as seen:
        (tmp_path / "a").read_text()
        (tmp_path / "temporary" / "b").write_text("own")
        sqlite3.connect(":memory:").close()
        sqlite3.connect(f"file:{tmp_path}/a?mode=ro", uri=True).close()
    assert seen == []
    with watching() as seen:
        (tmp_path / "c").write_text("x")
        (tmp_path / "c").unlink()
        sqlite3.connect(tmp_path / "d").close()
        subprocess.run(["true"], check=True)
    kinds = [event.partition(" ")[0] for event in seen]
    assert kinds[:3] == ["open", "os.remove", "sqlite3.connect"] and "subprocess.Popen" in kinds
    (tmp_path / "e").write_text("nobody watches")


def test_a_json_store_keeps_its_order_and_loses_no_write(file: Path) -> None:
    one, other = JsonStore(file), JsonStore(file)
    one.put("stock", "bulb", {"left": 1, "by": "Ana"})
    other.put("stock", "apple", {"left": 2})  # it was read before the bulb was written
    assert one.keys("stock") == other.keys("stock") == JsonStore(file).keys("stock") == ["lamp", "bulb", "apple"]
    assert list(JsonStore(file).get("stock", "bulb") or ()) == ["left", "by"]
    with pytest.raises(TypeError):
        one.put("stock", "lamp", {"left": {1}})
    assert one.get("stock", "lamp") == other.get("stock", "lamp") == {"left": 3}
    one.delete("stock", "nothing")
    other.delete("stock", "lamp")
    assert one.get("stock", "lamp") is None and one.keys("stock") == ["bulb", "apple"]


def test_a_write_waits_for_another_one(file: Path) -> None:
    other = threading.Thread(target=lambda: JsonStore(file).put("stock", "bulb", {"left": 1}))

    class Slow(JsonStore):
        def _write(self, tables: dict[str, dict[str, Any]]) -> None:
            other.start()
            other.join(0.5)  # as far as it gets between our reading and our writing
            super()._write(tables)

    Slow(file).put("stock", "apple", {"left": 2})
    other.join(60)
    assert JsonStore(file).keys("stock") == ["lamp", "apple", "bulb"]


def test_digest_does_not_depend_on_order(file: Path) -> None:
    a, b = MemoryStore({"stock": {"lamp": {"left": 3}}}), JsonStore(file)
    a.put("stock", "x", {"left": 1})
    b.delete("stock", "lamp")
    b.put("stock", "x", {"left": 1})
    assert store_digest(a) != store_digest(b)
    b.put("stock", "lamp", {"left": 3})
    assert a.keys("stock") != b.keys("stock") and store_digest(a) == store_digest(b)
    file.write_text("[]")
    with pytest.raises(BadInput, match="no record store"):
        JsonStore(file)
