"""Task files: tasks that somebody wrote down, or exported, one a line, for an author who has no generator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, Task, content_hash
from frontier_tune.sdk.env import Split

_SPLITS: tuple[Split, ...] = ("train", "heldout")
_KEYS = {"kind", "data", "family", "split"}


class TaskFile:
    """Tasks of a JSON-lines file: ``{"kind": "refund", "data": {...}}`` a line; ``family`` and ``split`` where they are known.

    Where no line names a ``split``, the content decides: by a hash of the task, or of its family where it has one, about
    ``heldout`` of them (a share) are held out. So a line that is added moves no other one, and no task or family is in both.

    Raises BadInput, with the line: no JSON, missing or unknown keys, a task that another line has, splits on some lines alone, a
    family on both sides, a split without tasks.
    """

    def __init__(self, path: str | Path, heldout: float = 0.2) -> None:
        self.path = Path(path)
        if not 0 < heldout < 1:
            raise BadInput(f"{self.path.name}: heldout is a share between 0 and 1, not {heldout!r}")
        self._heldout = heldout
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 may stand within a task
        except (OSError, UnicodeDecodeError) as e:
            raise BadInput(f"task file {self.path}: it can't be read: {e}") from None
        rows = [(number, self._row(number, line)) for number, line in enumerate(lines, 1) if line.strip()]
        named = sum("split" in row for _, row in rows)
        if 0 < named < len(rows):
            number = next(n for n, row in rows if "split" not in row)
            raise BadInput(f"{self._at(number)}: it names no split and other lines do; name one on every line, or on none")
        self.tasks: dict[Split, list[Task]] = {"train": [], "heldout": []}
        self._sort(rows)
        empty = next((split for split in _SPLITS if not self.tasks[split]), None)
        if empty is not None:
            raise BadInput(f"task file {self.path}: of its {len(rows)} tasks none is in '{empty}'; add some, or name splits")

    def draw(self, split: Split, n: int, seed: int) -> list[Task]:
        """``n`` distinct tasks of a split in an order drawn from ``seed``; all of them where there are fewer.

        The first of a longer set are the shorter set of the same seed. Raises BadInput for no split.
        """
        if split not in self.tasks:
            raise BadInput(f"task file {self.path}: no split '{split}'; there are {', '.join(_SPLITS)}")
        tasks = list(self.tasks[split])
        random.Random(f"task file/{split}/{seed}").shuffle(tasks)
        return tasks[:n]

    def _row(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as e:
            raise BadInput(f"{self._at(number)}: no JSON: {e}") from None
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or not isinstance(row.get("data"), dict):
            raise BadInput(f'{self._at(number)}: a task is {{"kind": text, "data": {{...}}}}, this is {line[:60]}')
        if unknown := set(row) - _KEYS:
            known = ", ".join(sorted(_KEYS))
            raise BadInput(
                f"{self._at(number)}: unknown keys {', '.join(sorted(unknown))}; known: {known}; the rest goes into data"
            )
        if not isinstance(row.get("family", ""), str) or ("split" in row and row["split"] not in _SPLITS):
            raise BadInput(f"{self._at(number)}: 'family' is text, 'split' one of {', '.join(_SPLITS)}")
        return row

    def _sort(self, rows: list[tuple[int, dict[str, Any]]]) -> None:
        seen: dict[str, int] = {}
        families: dict[str, tuple[Split, int]] = {}
        for number, row in rows:
            family = row.get("family", "")
            task = Task(row["kind"], "train", row["data"], family)
            split: Split = row.get("split") or self._split(f"family/{family}" if family else task.hash)
            if task.hash in seen:
                raise BadInput(f"{self._at(number)}: the same task as line {seen[task.hash]}; a task is there once")
            seen[task.hash] = number
            other, first = families.setdefault(family, (split, number))
            if family and other != split:
                raise BadInput(
                    f"{self._at(number)}: the family '{family}' is in '{other}' since line {first}; the splits would leak"
                )
            self.tasks[split].append(Task(task.kind, split, task.data, family))

    def _split(self, identity: str) -> Split:
        share = int(content_hash(identity)[:13], 16) / 16**13
        return "heldout" if share < self._heldout else "train"

    def _at(self, number: int) -> str:
        return f"{self.path.name}:{number}"
