"""Episodes read back from a run, and the rule by which a report chooses which of them to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput

Episode = Mapping[str, Any]

RULE = (
    "Chosen by rule, not by eye, from greedy held-out episodes in order of task hash: for up to four task kinds in alphabetical "
    "order the first task that the base failed and the tuned model solved; then the first that the base solved and the tuned "
    "model failed; then the first that both failed."
)


@dataclass(frozen=True)
class Example:
    """One task, played by both. ``opening`` are the messages that both episodes begin with."""

    task: str
    kind: str
    why: str
    opening: list[Mapping[str, str]]
    base: Episode
    tuned: Episode
    base_messages: list[Mapping[str, str]]
    tuned_messages: list[Mapping[str, str]]


def read(path: Path) -> list[dict[str, Any]]:
    """Episodes of a .jsonl file. Raises BadInput with the line where one is not an episode."""
    episodes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # not splitlines: U+2028 ends no row
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = {"task", "kind", "success", "reward", "messages"} - set(row)
        except ValueError as e:
            raise BadInput(f"{path}:{number}: not valid JSON: {e}") from None
        if missing:
            raise BadInput(f"{path}:{number}: not an episode: {', '.join(sorted(missing))} missing")
        episodes.append(row)
    return episodes


def choose(base: Sequence[Episode], tuned: Sequence[Episode], kinds: int = 4) -> list[Example]:
    """At most ``kinds`` + 2 examples, by ``RULE``."""
    after = {e["task"]: e for e in tuned}
    pairs = sorted(((b, after[b["task"]]) for b in base if b["task"] in after), key=lambda p: str(p[0]["task"]))
    chosen: list[tuple[str, Episode, Episode]] = []
    for kind in sorted({b["kind"] for b, _ in pairs}):
        gained = [(b, t) for b, t in pairs if b["kind"] == kind and t["success"] and not b["success"]]
        if gained and len(chosen) < kinds:
            chosen.append(("solved only when tuned", *gained[0]))
    lost = [(b, t) for b, t in pairs if b["success"] and not t["success"]]
    both = [(b, t) for b, t in pairs if not b["success"] and not t["success"]]
    chosen += [("solved only by the base", *p) for p in lost[:1]]
    chosen += [("failed by both", *p) for p in both[:1]]
    return [_example(*c) for c in chosen]


def _example(why: str, base: Episode, tuned: Episode) -> Example:
    before, after = list(base["messages"]), list(tuned["messages"])
    shared = 0
    while shared < min(len(before), len(after)) and before[shared] == after[shared] and before[shared]["role"] != "assistant":
        shared += 1
    return Example(str(base["task"]), str(base["kind"]), why, before[:shared], base, tuned, before[shared:], after[shared:])
