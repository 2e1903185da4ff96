"""Evaluations: what the infrastructure failed is played again, and too few graded episodes are no result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Blame, EpisodeSpec, Failure, LimitReached, Message, Task, Trajectory
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.measure import Measure
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.recipe import Recipe
from frontier_tune.reporting import episodes as reporting
from tests.orchestration.test_batch import Episodes, infrastructure, played

TASKS = [Task("k", "heldout", {"n": n}) for n in range(8)]


def measure(tmp_path: Path, episodes: Episodes) -> Measure:
    ready: Any = SimpleNamespace(recipe=Recipe(), heldout=TASKS, general=[])
    crew: Any = SimpleNamespace(episodes=episodes)
    return Measure(ready, RunDir(tmp_path), crew, every=lambda: None, note=lambda text: None)


def test_episodes_that_the_infrastructure_failed_are_played_again(tmp_path: Path) -> None:
    """One episode that takes its worker down fails all others there: they must not leave the denominator."""

    def once(spec: EpisodeSpec, attempt: int) -> Trajectory:
        return played(spec, 1.0) if attempt % 2 or spec.group == 0 else infrastructure(spec)

    side = measure(tmp_path, Episodes(once)).side("base")
    assert (side.greedy.n, side.greedy.success, side.greedy.failures) == (8, 1.0, {})


def test_the_recipe_says_how_often(tmp_path: Path) -> None:
    tried: Any = measure(tmp_path, Episodes(lambda spec, attempt: infrastructure(spec) if spec.group else played(spec)))
    tried.ready.recipe = recipes.parse({"reliability": {"infrastructure_tries": 4, "backoff_s": 0}})
    with pytest.raises(LimitReached):
        tried.side("base")
    assert len(tried.crew.episodes.calls) == 4


def test_a_policy_that_was_trained_on_is_never_shown_with_episodes_of_before(tmp_path: Path) -> None:
    """A finished run was extended; its second evaluation is cut off by a process that died, and goes on."""

    class Dies(Episodes):
        def submit(self, method: str, specs: Sequence[EpisodeSpec], where: str) -> list[Trajectory]:
            if specs[0].temperature:
                raise ActorDied("gone")
            return super().submit(method, specs, where)

    def better(spec: EpisodeSpec, attempt: int) -> Trajectory:
        return played(spec, 1.0)

    before = measure(tmp_path, Episodes(lambda spec, attempt: played(spec))).side("tuned")
    assert before.greedy.success == before.sampled.success == 0
    with pytest.raises(ActorDied):
        measure(tmp_path, Dies(better)).side("tuned")
    episodes = Episodes(better)
    after = measure(tmp_path, episodes).side("tuned", reuse=True)
    assert after.greedy.success == after.sampled.success == 1.0 and len(episodes.calls) == 1


def test_episodes_with_line_separators_in_them_are_taken_over(tmp_path: Path) -> None:
    """Text that was pasted from a PDF holds them often; a row of the file ends at a newline alone."""

    def said(spec: EpisodeSpec, attempt: int) -> Trajectory:
        return replace(played(spec, 1.0), messages=[Message("tool", "a\u2028b\x85c")])

    measure(tmp_path, Episodes(said)).side("base")
    episodes = Episodes(said)
    again = measure(tmp_path, episodes).side("base", reuse=True)
    assert again.greedy.success == 1.0 and not episodes.calls
    assert "\u2028" in (tmp_path / "evaluation" / "base-greedy.jsonl").read_text(encoding="utf-8")
    assert reporting.read(tmp_path / "evaluation" / "base-greedy.jsonl")[0]["messages"][0]["content"] == "a\u2028b\x85c"


def test_a_success_among_survivors_is_no_result(tmp_path: Path) -> None:
    def broken(spec: EpisodeSpec, attempt: int) -> Trajectory:
        return played(spec, 1.0, Failure("step-timeout", Blame.ENVIRONMENT) if spec.group < 4 else None)

    with pytest.raises(LimitReached, match="50% of 8 episodes were not graded.*step-timeout"):
        measure(tmp_path, Episodes(broken)).side("tuned")
    assert not (tmp_path / "evaluation").exists()
