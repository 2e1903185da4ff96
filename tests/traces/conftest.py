"""The counting workflow in a worker process, traces on it, and tokenizers of both renderings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.sandbox import EnvironmentPool
from frontier_tune.traces import schema
from frontier_tune.traces.replay import HeldOut, Workbench
from frontier_tune.traces.store import Store
from tests.episodes.conftest import CHATML, WORKSPACE, make_tokenizer

MARKERS = ["<|user|>", "<|call|>", "<|tool|>", "<|end|>"]
TOKENIZERS = {
    "compact": lambda: make_tokenizer(MARKERS, "<|end|>"),
    "chat": lambda: make_tokenizer(["<|im_start|>", "<|im_end|>"], "<|im_end|>", CHATML),
}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]}


def raw(target: int = 12, *added: int, **changes: Any) -> dict[str, Any]:
    """A trace that adds ``added`` (default: the target) and submits, as its JSONL row."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"reach {target}"}]
    total = 0
    for amount in added or (target,):
        total += amount
        messages += [call("add", amount=amount), {"role": "tool", "content": f"total {total}"}]
    messages += [call("submit"), {"role": "tool", "content": "thank you"}]
    return {
        "id": f"count-{target}",
        "messages": messages,
        "task": {"kind": "count", "data": {"target": target}, "family": "train"},
        "origin": {"kind": "person", "name": "close team"},
        "license": "LicenseRef-Internal",
        "verdict": "accepted",
        "reviewer": "jane",
    } | changes


@pytest.fixture(scope="session")
def trace() -> Callable[..., schema.Trace]:
    return lambda *args, **changes: schema.parse(raw(*args, **changes), "traces.jsonl:1")


@pytest.fixture(scope="session")
def pool() -> Iterator[EnvironmentPool]:
    with EnvironmentPool("envs/count_up", WORKSPACE, workers=1) as pool:
        yield pool


@pytest.fixture(scope="session")
def bench(pool: EnvironmentPool) -> Workbench:
    return Workbench(pool)


@pytest.fixture(scope="session")
def held_out(pool: EnvironmentPool, bench: Workbench) -> HeldOut:
    return bench.held_out(pool.tasks("heldout", 3, 0))  # reach 10000, 10001, 10002


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path / "traces", "envs/count_up", {})
