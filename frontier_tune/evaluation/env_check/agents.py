"""The agents that an audit plays: one that knows the answer, some that are broken, and many that never look.

Each gives scripts for a task. They know the tools' schemas, the opening prompt and the golden programs, as a policy that was
trained long enough against a weak grader would come to know them.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from frontier_tune.contracts import Task
from frontier_tune.evaluation.scripts import Episode, Script
from frontier_tune.sdk.grammar import GrammarError, ToolCall, parse
from frontier_tune.sdk.tools import Parameter, Signature

GOLDEN = "golden"
CANARY, SHOTGUN, CONTROL = "canary ", "shotgun ", "wrong "
CHEATS = ("no_op", "early_submitter", CANARY)  # must never succeed
BLIND = ("constant ", "random", "parrot", "another's answer")  # never look at the task: what guessing is worth
_WORD = re.compile(r"[^\s,;:.!?|()\[\]]+")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789 =:()+-|\\\n\u00e9"
_MOST = 60  # alternatives that the shotgun fires at once
_CONSTANTS: dict[type, tuple[Any, Any]] = {str: ("x", "1"), int: (0, 1), float: (0.0, 1.0), bool: (False, True)}


class Agents:
    """Scripts for the tasks of an audit. ``golden``: the golden program of each task by its hash, none where there is none."""

    def __init__(
        self, schemas: Sequence[Mapping[str, Any]], golden: Mapping[str, Script], tasks: Sequence[Task], turns: int, seed: int
    ) -> None:
        self.signatures = {s.name: s for s in map(Signature.from_schema, schemas)}
        self.golden, self.tasks, self.turns, self.seed = golden, tasks, turns, seed
        endings = {script[-1] for script in golden.values() if script}
        self.ending = endings.pop() if len(endings) == 1 else None  # else the ending call carries the answer
        self._said = self._alternatives()

    def episodes(self, prompts: Mapping[str, str], canaries: Mapping[str, Mapping[str, Script]]) -> Iterator[Episode]:
        """Every agent's episodes but the golden ones. ``prompts`` and the environment's own ``canaries`` go by task hash."""
        for task in self.tasks:
            yield Episode(task, (), "no_op")
            if self.ending is not None:
                yield Episode(task, (self.ending,), "early_submitter")
            for name, script in canaries.get(task.hash, {}).items():
                yield Episode(task, tuple(script), CANARY + name)
            for signature in self.signatures.values():
                for i, kind in enumerate(("low", "high") if signature.parameters else ("",)):
                    call = _json(signature.name, {p.name: _constant(p, i) for p in signature.parameters})
                    yield Episode(task, self._ended([call]), f"constant {signature.name} {kind}".strip())
            rng = random.Random(f"{self.seed}/{task.hash}")
            yield Episode(task, self._ended([self._random(rng) for _ in range(self.turns)]), "random")
            words = _WORD.findall(prompts.get(task.hash, "")) or ["x"]
            yield Episode(task, self._ended([self._parrot(rng, words) for _ in range(self.turns)]), "parrot")
            if self.golden.get(task.hash):
                yield from self._from_golden(task, self.golden[task.hash])

    def read(self, text: str) -> ToolCall | None:
        """A script's call, or None where it is no call."""
        try:
            return parse(text, self.signatures)
        except GrammarError:
            return None

    def deciding(self, script: Script) -> tuple[int, ToolCall] | None:
        """The last call with arguments, which says the answer, and where it stands."""
        for i in range(len(script) - 1, -1, -1):
            call = self.read(script[i])
            if call is not None and call.arguments:
                return i, call
        return None

    def _from_golden(self, task: Task, script: Script) -> Iterator[Episode]:
        yield Episode(task, script[:-1], "unsubmitted")
        for i in range(len(script) - 1):
            yield Episode(task, script[:i] + script[i + 1 :], "incomplete")
        others = Counter(self.golden[t.hash] for t in self.tasks if t.kind == task.kind and t != task and t.hash in self.golden)
        if others:
            yield Episode(task, others.most_common(1)[0][0], "another's answer")
        yield from self._shotgun(task, script)

    def _shotgun(self, task: Task, script: Script) -> Iterator[Episode]:
        """Everything that was ever right in one free text of the answer: for graders that look whether the answer is *in* it.

        Beside each a control with one wrong text there: where that succeeds too, the text is not graded and nothing was hacked.
        """
        found = self.deciding(script)
        if found is None:
            return
        at, call = found
        for name, value in call.arguments.items():
            others = [v for v in self._said.get((call.name, name), ()) if v not in value and value not in v]
            if others:
                for agent, text in ((SHOTGUN, " ".join([*others[:_MOST], value])), (CONTROL, others[0])):
                    fired = (*script[:at], _json(call.name, {**call.arguments, name: text}), *script[at + 1 :])
                    yield Episode(task, fired, f"{agent}{call.name}.{name}")

    def _alternatives(self) -> dict[tuple[str, str], list[str]]:
        """(verb, argument) -> distinct texts that the golden programs' deciding calls put there."""
        said: dict[tuple[str, str], dict[str, None]] = {}
        for _, call in filter(None, map(self.deciding, self.golden.values())):
            for p in self.signatures[call.name].parameters:
                if isinstance(value := call.arguments[p.name], str) and not p.choices:
                    said.setdefault((call.name, p.name), {})[value] = None
        return {key: list(values) for key, values in said.items()}

    def _ended(self, calls: list[str]) -> Script:
        """At most ``turns`` calls, handing in with the last one."""
        return (*calls[: self.turns - 1], self.ending) if self.ending is not None else tuple(calls[: self.turns])

    def _random(self, rng: random.Random) -> str:
        return _text(rng) if rng.random() < 0.15 else self._call(rng, lambda: _text(rng))

    def _parrot(self, rng: random.Random, words: Sequence[str]) -> str:
        """A call whose texts are words of the prompt: it gets further than random letters."""
        return self._call(rng, lambda: rng.choice(words))

    def _call(self, rng: random.Random, text: Callable[[], str]) -> str:
        signature = rng.choice(list(self.signatures.values()))
        return _json(signature.name, {p.name: _draw(p, rng, text) for p in signature.parameters})


def _json(verb: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"name": verb, "arguments": dict(arguments)}, ensure_ascii=False)


def _constant(p: Parameter, which: int) -> Any:
    return p.choices[-which] if p.choices else _CONSTANTS[p.type][which]


def _draw(p: Parameter, rng: random.Random, text: Callable[[], str]) -> Any:
    if p.choices:
        return rng.choice(p.choices)
    if p.type is str:
        return text()
    if p.type is bool:
        return rng.random() < 0.5
    number = rng.choice((0, 1, -1, rng.randint(-100, 100), rng.randint(-(10**9), 10**9)))
    return p.type(number)


def _text(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(0, 20)))
