"""events.jsonl: what happened to a run, with the time. The ledger beside it holds what came of the groups, and no time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FILE = "events.jsonl"


class Events:
    """Appends one line an event: ``time`` (Unix), ``event`` and what goes with it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, event: str, **what: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps({"time": time.time(), "event": event, **what}, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All events; a line that a crash cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def began(path: Path) -> float | None:
    """When the run was started first (Unix time), however often it was resumed since; None where it is new."""
    return next((e["time"] for e in read(path) if e["event"] == "started"), None)
