"""What an environment may break for one member of a group: left out and counted, never a reward of 0, and the others stay."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from frontier_tune.contracts import Blame, Task
from frontier_tune.orchestration.batch import Batch, collect
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.retry import Retry
from tests.faults import standin


def played(root: Path, fault: str) -> tuple[Batch, list[int]]:
    recipe = standin.recipe_of(root, environment={"path": "tests.faults.faulty:Faulty", "options": {"fault": fault}})
    environments = {"workflow": (recipe.environment.path, {"fault": fault})}
    episodes = standin.Episodes("", recipe, str(root), environments, None, None)  # type: ignore[arg-type]
    episodes._side = standin.Sampler()  # type: ignore[assignment]
    again: list[int] = []
    try:
        specs = GroupPlan([Task("word", "train", {"number": n}) for n in range(4)], 0, 4, 5).step(0)
        handle: object = standin.Local(episodes)
        lost = lambda specs, attempt: again.append(len(specs))  # noqa: E731
        return collect(handle, specs, lambda: None, retry=Retry.of(recipe), lost=lost), again  # type: ignore[arg-type]
    finally:
        episodes.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "no rows to divide by"),
        ("nan", "finite reward"),
        ("inf", "finite reward"),
        ("component", "no JSON"),
        ("type", "returned float, not text"),
    ],
)
def test_a_member_that_is_not_graded_is_left_out_and_the_group_goes_on(tmp_path: Path, fault: str, words: str) -> None:
    batch, again = played(tmp_path, fault)
    hit = [t for t in batch.trajectories if any("green" in m.content for m in t.messages if m.role == "assistant")]
    assert hit and len(hit) < len(batch.trajectories)
    assert again == [len(hit)]  # tried once more, and given up: it will always be so
    assert all(t.failure and t.failure.blame is Blame.ENVIRONMENT and words in t.failure.detail for t in hit), hit[0].failure
    assert batch.masked == len(hit) and batch.retried == len(hit)
    others = [t for t in batch.trajectories if t not in hit]
    assert batch.trainable == others and all(t.failure is None and math.isfinite(t.reward) for t in others)


def test_an_observation_that_no_context_holds_ends_the_episode_and_nobody_else(tmp_path: Path) -> None:
    batch, again = played(tmp_path, "huge")
    long = [t for t in batch.trajectories if len(t.tokens) > 10_000]
    assert not again and batch.masked == 0
    assert all(t.truncated and not t.success for t in long)
    assert all(t.turns == 2 for t in batch.trajectories if t not in long)
