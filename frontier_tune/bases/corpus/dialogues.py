"""Dialogues: a workbook, one to three questions on it, each answered by real tool calls.

The observations come from the session.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from frontier_tune.bases.corpus import records
from frontier_tune.bases.corpus.drills import make_drill
from frontier_tune.bases.corpus.questions import EXPLICIT, PRACTICE
from frontier_tune.bases.corpus.sheets import make_scene
from frontier_tune.contracts import Message
from frontier_tune.sdk.workbook.session import WorkbookSession


@dataclass(frozen=True)
class Dialogue:
    """``source`` is the program that wrote it (each has a data sheet); ``choices`` the alternatives taken, for counting."""

    source: str
    messages: tuple[Message, ...]
    questions: tuple[str, ...]
    choices: tuple[str, ...]


def run_call(session: WorkbookSession, call: str) -> str:
    """Carry out one compact call of the corpus and return the observation."""
    verb, _, rest = call.partition(" ")
    arguments = rest.split(" | ")
    if verb == "read":
        return session.read(*arguments)
    if verb == "fill":
        return session.fill(*arguments)
    return session.write(*arguments)


def _rng(*parts: object) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big"))


def drill(seed: int, index: int) -> Dialogue:
    """Drill number ``index`` of the corpus of ``seed``."""
    return Dialogue("drill", make_drill(_rng("drill", seed, index)), ("drill",), ())


def record_drill(seed: int, index: int) -> Dialogue:
    """Drill on records number ``index`` of the corpus of ``seed``."""
    return Dialogue("record_drill", records.drill(_rng("record_drill", seed, index)), ("record_drill",), ())


def record_dialogue(seed: int, index: int) -> Dialogue:
    """Explicit dialogue on records number ``index`` of the corpus of ``seed``."""
    question, messages = records.explicit(_rng("record", seed, index))
    return Dialogue("record_explicit", messages, (question,), ())


def make_dialogue(seed: int, index: int, practice_share: float = 0.5) -> Dialogue:
    """Dialogue number ``index`` of the corpus of ``seed``: a pure function of the two."""
    rng = _rng(seed, index)
    practice = rng.random() < practice_share
    first = rng.choice(PRACTICE if practice else EXPLICIT)
    scene = make_scene(rng, first.tables)
    asked = [first]
    fitting = [q for q in (*PRACTICE, *EXPLICIT) if q.name != first.name and set(q.tables) <= set(scene.sheets)]
    for _ in range(rng.choice((0, 0, 1, 2))):
        if fitting:
            asked.append(fitting.pop(rng.randrange(len(fitting))))
    messages: list[Message] = []
    choices = []
    for n, question in enumerate(asked):
        answer = question.ask(rng, scene)
        messages.append(Message("user", scene.opening(answer.prompt) if n == 0 else answer.prompt))
        for call in (*(f"read {sheet}" for sheet in answer.reads), answer.call):
            messages.append(Message("assistant", call))
            messages.append(Message("tool", run_call(scene.session, call)))
        messages.append(Message("assistant", "submit"))
        choices.append(f"{question.name}: {answer.choice}" if answer.choice else "")
    return Dialogue(
        "practice" if practice else "explicit", tuple(messages), tuple(q.name for q in asked), tuple(filter(None, choices))
    )
