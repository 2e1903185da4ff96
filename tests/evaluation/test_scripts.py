"""Playing scripts: transcripts, episodes that others' failures ended, patience with what hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from frontier_tune.contracts import Blame, Task
from frontier_tune.evaluation.scripts import HUNG, NOT_PLAYED, Episode, ask, play
from frontier_tune.sandbox import EnvironmentPool

DEFECTS = Path(__file__).parent / "defects"
TASKS = [Task("quote", "train", {"number": 2 * k}) for k in range(6)]


@pytest.fixture(scope="module")
def pool() -> Iterator[EnvironmentPool]:
    with EnvironmentPool("defective:Hangs", DEFECTS, step_timeout_s=2.0) as pool:
        yield pool


def golden(pool: EnvironmentPool, task: Task) -> Episode:
    return Episode(task, tuple(pool.golden(task)), "golden")


def test_an_episode_is_kept_whole(pool: EnvironmentPool) -> None:
    solved, unsolved = play(pool, [golden(pool, TASKS[0]), Episode(TASKS[0], ("quote 1",))])
    assert (solved.success, solved.reward, solved.turns) == (True, 1.0, 3)
    assert solved.components == {"submitted": 1.0, "close": 1.0, "exact": 1.0}
    assert solved.prompt.startswith("Quote ") and solved.text.splitlines()[-1] == "handed in"
    assert (unsolved.graded, unsolved.success, unsolved.turns) == (True, False, 1), "cut off: graded, no success"
    again = play(pool, [Episode(TASKS[0], ("quote 1",)), golden(pool, TASKS[0])])
    assert [p.transcript for p in again] == [unsolved.transcript, solved.transcript]


def test_what_another_episode_ended_is_played_again(pool: EnvironmentPool) -> None:
    hung, *others = play(pool, [Episode(TASKS[0], ("refresh",)), *(golden(pool, t) for t in TASKS)])
    assert hung.failure is not None and (hung.failure.kind, hung.failure.blame) == (HUNG, Blame.ENVIRONMENT)
    assert [p.success for p in others] == [True] * len(TASKS) and not hung.success and not hung.components
    assert any(p.attempts > 1 for p in others)


def test_patience_ends(pool: EnvironmentPool) -> None:
    played = play(pool, [Episode(t, ("refresh",)) for t in TASKS], patience=1)
    kinds = [p.failure.kind for p in played if p.failure]
    assert len(kinds) == len(TASKS) and kinds.count(HUNG) <= 2 and set(kinds) == {HUNG, NOT_PLAYED}


def test_questions_come_back_in_order(pool: EnvironmentPool) -> None:
    answers = ask(pool, "golden", [{"task": t.to_json()} for t in TASKS])
    assert [a["calls"] for a in answers if isinstance(a, dict)] == [pool.golden(t) for t in TASKS]
