"""Canaries through a real EnvironmentPool: a sound grader pays none, a broken one is found out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from frontier_tune.contracts import BadInput, Blame, Failure
from frontier_tune.evaluation.canaries import BLIND, play_scripts, run_canaries
from frontier_tune.evaluation.evaluate import EvaluationError
from frontier_tune.sandbox import EnvironmentPool

ENVIRONMENT = dedent('''
    """Add up two numbers. Kind 'half' has the answer 7 in half of its tasks, so that guessing pays there."""
    from frontier_tune.contracts import Message, Task
    from frontier_tune.sdk import Grade, WorkflowEnv, tool


    class Sums(WorkflowEnv):
        name = "sums"

        def __init__(self, broken: bool = False):
            self.broken = broken

        def tasks(self, split, n, seed):
            base = 0 if split == "train" else 1000
            return [Task("half" if i % 2 else "sum", split, {"a": base + i, "b": i % 7, "seven": i % 4 == 1}) for i in range(n)]

        def begin(self, task):
            self.answer = None
            return [Message("user", f"add {task.data['a']} and {task.data['b']}")]

        def right(self, task):
            return 7 if task.kind == "half" and task.data["seven"] else task.data["a"] + task.data["b"]

        @tool
        def say(self, number: int) -> str:
            """Say a number.

            Args:
                number: The number.
            """
            if number == 666:
                raise RuntimeError("the grader's own fault")
            self.answer = number
            return "ok"

        @tool(ends=True)
        def submit(self) -> str:
            """Hand in."""
            return "done"

        def grade(self):
            won = self.answer == self.right(self.task) or (self.broken and self.answer is None)
            return Grade(float(won), won, {"answer": float(won)})

        def golden(self, task):
            return [f"say {self.right(task)}", "submit"]

        def canary_scripts(self, task):
            return {"constant_filler": ["say 0", "submit"], "never submits": [f"say {self.right(task)}"]}


    class Unsolved(Sums):
        def golden(self, task):
            raise NotImplementedError("nobody knows")


    class Broken(Sums):
        def golden(self, task):
            raise KeyError("NotImplementedError")


    ENVIRONMENT = Sums
''')


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    (root / "canary_sums").mkdir()
    (root / "canary_sums/__init__.py").write_text(ENVIRONMENT)
    return root


@pytest.fixture(scope="module")
def pool(workspace: Path) -> Iterator[EnvironmentPool]:
    with EnvironmentPool("canary_sums", workspace) as pool:
        yield pool


def test_a_sound_grader_pays_no_canary_but_shows_what_guessing_is_worth(pool: EnvironmentPool) -> None:
    scores = run_canaries(pool, pool.tasks("heldout", 40, 0), pool.tasks("train", 40, 0), max_turns=4)
    assert scores.to_json()["canaries"] == {
        "no_op": 0.0,
        "early_submitter": 0.0,
        "constant_filler": 0.0,
        "never submits": 0.0,
        BLIND: 10 / 40,
    }
    assert scores.by_kind[BLIND]["half"].success == 0.5 and scores.by_kind[BLIND]["sum"].success == 0.0
    assert scores.scripts["half"] == ("say 7", "submit")
    assert scores.to_json()["canaries_by_kind"]["no_op"]["sum"]["n"] == 20


def test_a_grader_that_pays_for_nothing_is_found_out(workspace: Path) -> None:
    with EnvironmentPool("canary_sums", workspace, {"broken": True}) as pool:
        scores = run_canaries(pool, pool.tasks("heldout", 8, 0), pool.tasks("train", 8, 0), max_turns=4)
    assert scores.to_json()["canaries"]["early_submitter"] == 1.0
    assert scores.to_json()["canaries"]["no_op"] == 0.0, "an episode that is cut off is never a success"


def test_the_golden_program_passes_so_that_zeros_mean_something(pool: EnvironmentPool) -> None:
    tasks = pool.tasks("heldout", 10, 0)
    assert play_scripts(pool, [(t, tuple(pool.golden(t))) for t in tasks], max_turns=4) == [True] * 10


def test_an_episode_that_failed_is_no_zero(pool: EnvironmentPool) -> None:
    tasks = pool.tasks("heldout", 2, 0)
    crashed, fine = play_scripts(pool, [(tasks[0], ("say 666",)), (tasks[1], ("submit",))], max_turns=4)
    assert isinstance(crashed, Failure) and fine is False


def test_what_was_not_graded_is_told_beside_the_shares(pool: EnvironmentPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent at 0 % of the one episode that was graded shows nothing about the grader."""
    tasks = pool.tasks("heldout", 4, 0)
    failure = Failure("step-raised", Blame.ENVIRONMENT)
    monkeypatch.setattr(
        "frontier_tune.evaluation.canaries.play_scripts", lambda pool, plan, max_turns: [failure, *[False] * (len(plan) - 1)]
    )
    found = run_canaries(pool, tasks, tasks, max_turns=4).to_json()
    assert found["canaries"]["no_op"] == 0.0 and found["canaries_n"]["no_op"] == 3
    assert found["canary_failures"]["no_op: environment:step-raised"] == 1


def test_an_environment_without_a_golden_program_has_no_blind_script(workspace: Path) -> None:
    with EnvironmentPool("canary_sums:Unsolved", workspace) as pool:
        scores = run_canaries(pool, pool.tasks("heldout", 4, 0), pool.tasks("train", 4, 0), max_turns=4)
    assert set(scores.to_json()["canaries"]) == {"no_op", "constant_filler", "never submits"}


def test_an_error_that_only_mentions_it_is_an_error(workspace: Path) -> None:
    with EnvironmentPool("canary_sums:Broken", workspace) as pool, pytest.raises(EvaluationError, match="golden-raised"):
        run_canaries(pool, pool.tasks("heldout", 4, 0), pool.tasks("train", 4, 0), max_turns=4)


def test_an_ungradable_canary_and_an_empty_set_are_loud(pool: EnvironmentPool, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = pool.tasks("heldout", 2, 0)
    with pytest.raises(BadInput, match="empty"):
        run_canaries(pool, [], tasks, max_turns=4)
    monkeypatch.setattr(
        "frontier_tune.evaluation.canaries.play_scripts", lambda pool, plan, max_turns: [Failure("x", "environment")] * len(plan)
    )
    with pytest.raises(EvaluationError, match="'no_op'|'constant_filler' was never graded"):
        run_canaries(pool, tasks, tasks, max_turns=4)
