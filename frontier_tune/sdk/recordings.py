"""Recorded answers of mock tools: one JSON file, written from real calls and looked up call by call.

``{"format": 1, "calls": [{"tool", "arguments", "answer", "error"}, ...], "otherwise": {tool: {"answer", "error"}}}``. The n-th
time that an episode makes one call it gets the n-th answer recorded for it; a call that was always answered alike may be made
any number of times. ``otherwise`` is written by hand: what a tool says to calls nobody recorded. Without it they are a loud
failure.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, Blame, EpisodeFailed, Failure, Task, canonical_json

if TYPE_CHECKING:
    from frontier_tune.sdk.env import WorkflowEnv

FORMAT = 1
NO_RECORDING = "no-recording"


@dataclass(frozen=True)
class Answer:
    """What a tool returned; ``error``: it raised ToolError with this message."""

    text: str
    error: bool = False


class Recording:
    """Answers by call. ``begin`` starts an episode's count of repeated calls."""

    def __init__(self, calls: Iterable[Mapping[str, Any]], otherwise: Mapping[str, Mapping[str, Any]], where: str) -> None:
        self.where = where
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        for call in calls:
            self._answers[_key(call["tool"], call["arguments"])].append(_answer(call))
        self._otherwise = {tool: _answer(answer) for tool, answer in otherwise.items()}
        self._made: Counter[str] = Counter()

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read a recording. Raises BadInput where the file is missing or is none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise BadInput(f"{path}: can't be read as a recording: {e}; make one with sdk.recordings.record") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BadInput(f'{path}: no recording of format {FORMAT}; it begins with {{"format": {FORMAT}, "calls": [...]}}')
        unknown = data.keys() - {"format", "calls", "otherwise"}
        if unknown:
            raise BadInput(f"{path}: unknown key '{sorted(unknown)[0]}'; known: format, calls, otherwise")
        try:
            return cls(data.get("calls", ()), data.get("otherwise", {}), str(path))
        except (KeyError, TypeError, AttributeError) as e:
            raise BadInput(
                f"{path}: a call is not recorded as tool, arguments (object), answer (text) and error: {e!r}"
            ) from None

    def begin(self) -> None:
        self._made.clear()

    def answer(self, tool: str, arguments: Mapping[str, Any]) -> Answer:
        """The answer recorded for this call. Raises EpisodeFailed (``no-recording``, blame environment) where there is none."""
        key = _key(tool, arguments)
        known, n = self._answers.get(key, []), self._made[key]
        self._made[key] += 1
        if n < len(known):
            return known[n]
        if known and len(set(known)) == 1:
            return known[0]
        if tool in self._otherwise:
            return self._otherwise[tool]
        seen = f"recorded {len(known)} times with different answers, this is call {n + 1}" if known else "never recorded"
        how = f"record it, or give '{tool}' an answer under \"otherwise\""
        detail = f"mock '{tool}' {canonical_json(dict(arguments))[:200]}: {seen} in {self.where}; {how}"
        raise EpisodeFailed(Failure(NO_RECORDING, Blame.ENVIRONMENT, detail))


def record(env: WorkflowEnv, episodes: Iterable[tuple[Task, Iterable[str]]], path: str | Path) -> int:
    """Play ``episodes`` (a task, then calls) with the mock tools' own bodies, which are real calls, and write what they say.

    Returns the number of calls recorded. The file holds what production answered: look through it before it is shared. Raises
    BadInput where an episode fails or no mock tool was called; then nothing is written.
    """
    calls: list[dict[str, Any]] = []
    env.effects.record_to(calls)
    try:
        for task, script in episodes:
            _, info = env.reset(options={"task": task})
            for call in script:
                if info["failure"]:
                    break
                *_, terminated, truncated, info = env.step(call)
                if terminated or truncated:
                    break
            if info["failure"]:
                raise BadInput(f"record: task {task.hash} fails: {info['failure']['kind']}: {info['failure']['detail']}")
    finally:
        env.effects.record_to(None)
    if not calls:
        raise BadInput(f"record: no mock tool of '{env.name}' was called; declare one with @tool(effect='mock') and call it")
    text = json.dumps({"format": FORMAT, "calls": calls, "otherwise": {}}, indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
    return len(calls)


def _key(tool: str, arguments: Mapping[str, Any]) -> str:
    return canonical_json([tool, dict(arguments)])


def _answer(row: Mapping[str, Any]) -> Answer:
    if not isinstance(row["answer"], str):
        raise TypeError(f"answer {row['answer']!r} is no text")
    return Answer(row["answer"], bool(row.get("error", False)))
