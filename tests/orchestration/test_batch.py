"""Failures are masked out of baselines and counted, infrastructure's are retried once, and no episode is lost in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from frontier_tune.algorithms.grpo import GRPO
from frontier_tune.contracts import Blame, EpisodeSpec, Failure, Task, Trajectory
from frontier_tune.orchestration.batch import Batch, collect
from frontier_tune.orchestration.retry import Retry

TASKS = [Task("k", "train", {"n": n}) for n in range(2)]
SPECS = [EpisodeSpec(TASKS[g], g, m, seed=10 * g + m) for g in range(2) for m in range(3)]


def played(spec: EpisodeSpec, reward: float = 0.0, failure: Failure | None = None) -> Trajectory:
    return Trajectory(
        spec,
        tokens=[1, 2, 3],
        mask=[False, True, True],
        logprobs=[0.0] * 3,
        versions=[-1, 1, 1],
        reward=reward,
        success=reward == 1,
        failure=failure,
    )


class Episodes:
    """Stands in for the actor's handle: ``play`` is decided by a function of (spec, attempt)."""

    def __init__(self, play: Callable[[EpisodeSpec, int], Trajectory | None]) -> None:
        self.play, self.calls = play, list[Sequence[EpisodeSpec]]()

    def submit(self, method: str, specs: Sequence[EpisodeSpec], where: str) -> list[Trajectory]:
        self.calls.append(specs)
        return [t for s in reversed(specs) if (t := self.play(s, len(self.calls) - 1))]

    def wait(self, ref: Any, every: Callable[[], None]) -> Any:
        every()
        return ref


def infrastructure(spec: EpisodeSpec) -> Trajectory:
    return played(spec, failure=Failure("sampler-error", Blame.INFRASTRUCTURE))


def test_trajectories_come_in_the_order_of_the_plan() -> None:
    batch = collect(Episodes(lambda s, _: played(s, s.seed)), SPECS, every=lambda: None)  # type: ignore[arg-type]
    assert [t.spec for t in batch.trajectories] == SPECS


def test_infrastructure_failures_are_played_once_more_with_the_same_spec() -> None:
    episodes = Episodes(lambda s, attempt: infrastructure(s) if s.seed == 11 and attempt == 0 else played(s))
    batch = collect(episodes, SPECS, every=lambda: None)  # type: ignore[arg-type]
    assert [list(c) for c in episodes.calls[1:]] == [[SPECS[4]]]
    assert (batch.retried, batch.masked) == (1, 0)
    assert (batch.tokens_sampled, batch.tokens_retried, batch.tokens_spent) == (12, 2, 14)  # the try that failed sampled, too


def test_a_batch_that_is_replayed_whole_counts_what_was_thrown_away() -> None:
    episodes = Episodes(lambda s, attempt: infrastructure(s) if s.seed == 11 and attempt == 0 else played(s))
    batch = collect(episodes, SPECS, lambda: None, retry=Retry(whole=True))  # type: ignore[arg-type]
    assert [list(c) for c in episodes.calls] == [SPECS, SPECS]
    assert (batch.tokens_sampled, batch.tokens_retried, batch.tries) == (12, 12, {})


def test_a_second_failure_is_masked_and_counted() -> None:
    batch = collect(Episodes(lambda s, _: infrastructure(s) if s.seed == 11 else played(s)), SPECS, every=lambda: None)  # type: ignore[arg-type]
    assert (batch.retried, batch.masked, len(batch.trainable)) == (1, 1, 5)
    assert batch.failure_share == pytest.approx(1 / 6)
    assert "sampler-error" in batch.worst_failure()


def test_environment_failures_are_not_retried_and_agents_own_ones_are_scored() -> None:
    blames = {0: Blame.ENVIRONMENT, 1: Blame.AGENT}
    episodes = Episodes(lambda s, _: played(s, failure=Failure("x", blames[s.seed]) if s.seed in blames else None))
    batch = collect(episodes, SPECS, every=lambda: None)  # type: ignore[arg-type]
    assert len(episodes.calls) == 1
    assert [t.spec.seed for t in batch.trajectories if t not in batch.trainable] == [0]
    assert batch.metrics(1.0)["failures"] == {"environment": 1, "infrastructure": 0, "agent": 1}


def test_a_masked_failure_leaves_its_group_s_baseline() -> None:
    rewards = [1.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    trajectories = [played(s, r) for s, r in zip(SPECS, rewards, strict=True)]
    trajectories[2].failure = Failure("worker-died", Blame.INFRASTRUCTURE)
    batch = Batch(trajectories, 3)
    assert batch.groups_used == 0.5 and batch.informative_groups == [trajectories[:3]]
    assert batch.has_signal(GRPO())
    trajectories[0].failure = Failure("worker-died", Blame.INFRASTRUCTURE)
    assert batch.groups_used == 0.0  # one member alone has nothing to be compared with


def test_equal_rewards_carry_no_signal_unless_the_loss_has_other_terms() -> None:
    batch = Batch([played(s, 0.3) for s in SPECS], 3)
    assert not batch.has_signal(GRPO())
    assert batch.has_signal(GRPO(kl_coefficient=0.1))


def test_a_lost_episode_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="never came back"):
        collect(Episodes(lambda s, _: None if s.seed == 2 else played(s)), SPECS, every=lambda: None)  # type: ignore[arg-type]


def test_metrics_have_the_documented_keys() -> None:
    row = Batch([played(s, float(s.member == 0)) for s in SPECS], 3).metrics(seconds=2.0)
    assert row["success"] == pytest.approx(1 / 3) and row["reward"] == pytest.approx(1 / 3)
    assert row["tokens_sampled"] == 12 and row["tokens_per_second"] == 6
    assert row["success_ci95"][0] <= row["success"] <= row["success_ci95"][1]
    assert {"episodes", "groups_used", "length_mean", "length_max", "turns", "truncated", "retried"} <= row.keys()
