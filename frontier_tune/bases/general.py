"""The general suite: explicit spreadsheet tasks that a base can do and a tuned model must not forget.

Layout families and seeds are the held-out ones, which no corpus uses. A task is done when the workbook, recalculated, equals the
reference's in every cell.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Literal

from frontier_tune.bases.corpus.dialogues import run_call
from frontier_tune.bases.corpus.questions import EXPLICIT, Answer
from frontier_tune.bases.corpus.sheets import Scene, make_scene
from frontier_tune.contracts import Message, Task
from frontier_tune.sdk.env import Limits, WorkflowEnv
from frontier_tune.sdk.rubric import Component, Grade, Rubric
from frontier_tune.sdk.workbook.layouts import HELDOUT_FAMILIES, TRAIN_FAMILIES
from frontier_tune.sdk.workbook.session import WorkbookSession, show
from frontier_tune.sdk.workbook.tools import WorkbookTools

_QUESTIONS = {q.name: [p for p in EXPLICIT if p.name == q.name] for q in EXPLICIT}


def _rng(*parts: object) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big"))


class GeneralSpreadsheet(WorkflowEnv, WorkbookTools):
    """Explicit tasks on workbooks: nothing about them is a company's own."""

    name = "general_spreadsheet"
    version = "1"
    limits = Limits(turns=8)

    def tasks(self, split: Literal["train", "heldout"], n: int, seed: int) -> list[Task]:
        """``n`` tasks, the kinds in turn."""
        kinds = list(_QUESTIONS)
        return [
            Task(kinds[i % len(kinds)], split, {"general": split, "seed": seed, "index": i, "kind": kinds[i % len(kinds)]})
            for i in range(n)
        ]

    def _scene(self, task: Task) -> tuple[Scene, Answer]:
        data = task.data
        rng = _rng("general", data["general"], data["seed"], data["index"])
        question = rng.choice(_QUESTIONS[data["kind"]])
        families = TRAIN_FAMILIES if data["general"] == "train" else HELDOUT_FAMILIES
        scene = make_scene(rng, question.tables, families)
        return scene, question.ask(rng, scene)

    def begin(self, task: Task) -> Sequence[Message]:
        scene, answer = self._scene(task)
        self.session = scene.session
        return [Message("user", scene.opening(answer.prompt))]

    def golden(self, task: Task) -> list[str]:
        _, answer = self._scene(task)
        return [*(f"read {sheet}" for sheet in answer.reads), answer.call, "submit"]

    def grade(self) -> Grade:
        scene, answer = self._scene(self.task)
        reference = scene.session
        run_call(reference, answer.call)
        submitted = any(step.call is not None and step.call.name == "submit" for step in self.trace)
        return _RUBRIC.score((self.session, reference, submitted))


Context = tuple[WorkbookSession, WorkbookSession, bool]


def _submitted(context: Context) -> bool:
    return context[2]


def _untouched(context: Context) -> bool:
    """No cell was edited that the reference leaves alone."""
    done, reference, _ = context
    return set(done.changed) <= set(reference.changed)


def _exact(context: Context) -> float:
    """Share of the reference's cells that hold its value, by a formula where it has one."""
    done, reference, _ = context
    right = 0
    for (sheet, row, column), content in reference.changed.items():
        mine = done.changed.get((sheet, row, column))
        is_formula = isinstance(content, str) and content.startswith("=")
        if mine is None or is_formula != (isinstance(mine, str) and mine.startswith("=")):
            continue
        right += _equal(done.engine.value(sheet, row, column), reference.engine.value(sheet, row, column))
    return right / len(reference.changed)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int):
        return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))
    return show(a) == show(b)


_RUBRIC = Rubric[Context](
    [
        Component("submitted", 0.1, _submitted, required=True),
        Component("untouched", 0.1, _untouched, required=True),
        Component("exact", 0.8, _exact, required=True),
    ]
)
