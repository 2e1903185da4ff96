"""The loop on small stand-ins: what it refuses to learn from, and what it has written when it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Blame, EpisodeSpec, Failure, GateFailed, LimitReached, Trajectory
from frontier_tune.learning.learner import TrainingDiverged
from frontier_tune.orchestration import checkpoint
from frontier_tune.orchestration.audit import audit, planned_groups
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.loop import Loop
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.stop import Stopped
from frontier_tune.reporting import metrics
from tests.orchestration.test_batch import TASKS, Episodes, played

RECIPE = recipes.parse({"run": {"steps": 4, "eval_every": 1}, "algorithm": {"groups_per_step": 2, "group_size": 3}})


def loop(
    tmp_path: Path,
    play: Callable[[EpisodeSpec, int], Trajectory],
    rows: list[dict[str, Any]],
    probe: Any = None,
    state: LoopState | None = None,
) -> Loop:
    """Rewards are equal throughout, so that no step calls for the learner but to save."""
    crew: Any = SimpleNamespace(episodes=Episodes(play), learner=SimpleNamespace(save=lambda directory: None))
    stop: Any = SimpleNamespace(check=lambda: None)
    gate: Any = None
    plan = GroupPlan(TASKS, 0, 2, 3)
    return Loop(RECIPE, RunDir(tmp_path), crew, plan, None, gate, state or LoopState(version=1), rows.append, stop, probe)


@pytest.mark.parametrize("other", [0, 2, 1_000_000_001])  # an older one, one that nobody has synced, a canary
def test_tokens_of_another_policy_are_not_learned_from(tmp_path: Path, other: int) -> None:
    def stale(spec: EpisodeSpec, attempt: int) -> Trajectory:
        trajectory = played(spec)
        if spec.group == 1:
            trajectory.versions = [-1, 1, other]
        return trajectory

    with pytest.raises(GateFailed, match=rf"versions \[{other}\], but 1 was synced last"):
        loop(tmp_path, stale, []).train()


def test_a_step_whose_probe_is_stopped_keeps_its_row(tmp_path: Path) -> None:
    def stopped(step: int) -> dict[str, Any]:
        if step == 2:
            raise Stopped(2)
        return {"success": 0.5}

    rows: list[dict[str, Any]] = []
    running = loop(tmp_path, lambda spec, attempt: played(spec), rows, stopped)
    with pytest.raises(Stopped):
        running.train()
    assert running.state.step == 2
    assert [(r["step"], "probe" in r) for r in rows] == [(1, True), (2, False)]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize(
    ("limit", "words", "steps"), [({"max_tokens": 20}, "run.max_tokens is 20", 2), ({"max_hours": 1e-12}, "run.max_hours", 1)]
)
def test_a_used_up_budget_stops_the_run_saved(tmp_path: Path, limit: dict[str, Any], words: str, steps: int) -> None:
    """Every episode samples two tokens: twelve a step."""
    running = loop(tmp_path, lambda spec, attempt: played(spec), [])
    running.recipe = recipes.parse({"run": {"steps": 4, **limit}, "algorithm": {"groups_per_step": 2, "group_size": 3}})
    with pytest.raises(LimitReached, match=words):
        running.train()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{steps:06d}"]


def test_tokens_of_tries_that_were_thrown_away_use_the_budget_up(tmp_path: Path) -> None:
    """Twelve a step, and four more in the first: two episodes fail there once, after they were sampled."""
    rows: list[dict[str, Any]] = []

    def failing(spec: EpisodeSpec, attempt: int) -> Trajectory:
        broken = Failure("sampler-error", Blame.INFRASTRUCTURE) if attempt == 0 and spec.member == 0 else None
        return played(spec, failure=broken)

    running = loop(tmp_path, failing, rows)
    limit = {"steps": 4, "max_tokens": 28}
    running.recipe = recipes.parse({"run": limit, "algorithm": {"groups_per_step": 2, "group_size": 3}})
    with pytest.raises(LimitReached, match="28 tokens sampled, run.max_tokens is 28"):
        running.train()
    assert [r.get("retried_tokens") for r in rows] == [4, None]
    assert running.state.tokens_sampled == sum(metrics.tokens(r) for r in rows) == 28


def test_too_many_failures_stop_the_run_before_it_learns_from_them(tmp_path: Path) -> None:
    def failing(spec: EpisodeSpec, attempt: int) -> Trajectory:
        broken = Failure("step-timeout", Blame.ENVIRONMENT, "a macro that never ends") if spec.member else None
        return played(spec, failure=broken)

    rows: list[dict[str, Any]] = []
    with pytest.raises(LimitReached, match=r"67%.*step-timeout.*never ends"):
        loop(tmp_path, failing, rows).train()
    assert not rows
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000"]


def test_the_run_ends_early_where_its_goal_is_reached(tmp_path: Path) -> None:
    running = loop(tmp_path, lambda spec, attempt: played(spec, 1.0), [])
    running.recipe = recipes.parse(
        {"run": {"steps": 50, "stop_at_success": 0.9}, "algorithm": {"groups_per_step": 2, "group_size": 3}}
    )
    assert running.train().step == 5


def test_rehearsed_groups_are_played_counted_and_kept_apart(tmp_path: Path) -> None:
    """General tasks count as tokens and episodes, but not as the workflow's success."""
    rows: list[dict[str, Any]] = []
    running = loop(tmp_path, lambda spec, attempt: played(spec, reward=float(spec.group >= 2)), rows)
    running.rehearsal = GroupPlan(TASKS, 1, 1, 3, first_group=2)
    running.probe = None
    running.train()
    assert [(r["success"], r["rehearsal_success"]) for r in rows] == [(0.0, 1.0)] * 4
    assert running.state.episodes == 4 * (6 + 3)
    assert running.state.tokens_sampled == sum(r["tokens_sampled"] + r["rehearsal_tokens"] for r in rows)


def test_a_diverged_update_saves_nothing(tmp_path: Path) -> None:
    """It ends in the middle of a step: what the learner holds is no state that the plan of groups knows."""

    def diverges(batches: Any, done: int) -> None:
        raise TrainingDiverged("not finite")

    running = loop(tmp_path, lambda spec, attempt: played(spec, reward=float(spec.member)), [])
    running.crew.learner.learn = diverges  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged):
        running.train()
    assert not (tmp_path / "checkpoints").exists()


def test_groups_of_a_step_without_an_update_are_not_called_trained(tmp_path: Path) -> None:
    running = loop(tmp_path, lambda spec, attempt: played(spec, reward=float(spec.member)), [])
    running.crew.learner.learn = lambda batches, done: {"updates": 0}  # type: ignore[method-assign]
    running._hand_over = dict  # type: ignore[method-assign]
    running._step()
    found = audit(running.ledger.path)
    assert (found.trained, found.dropped) == (0, {"no update was taken": 2})


def test_a_limit_in_the_middle_of_a_step_saves_nothing(tmp_path: Path) -> None:
    """The last of several samplers may die while the new adapter is handed over: the learner has learned from groups that the
    state does not count, and a checkpoint of both would have them learned from again."""

    def last_one_died() -> dict[str, Any]:
        raise LimitReached("reliability.restarts allows no more")

    running = loop(tmp_path, lambda spec, attempt: played(spec, reward=float(spec.member)), [])
    running.crew.learner.learn = lambda batches, done: {}  # type: ignore[method-assign]
    running._hand_over = last_one_died  # type: ignore[method-assign]
    with pytest.raises(LimitReached, match="allows no more"):
        running.train()
    assert not (tmp_path / "checkpoints").exists()


def test_the_schedule_counts_steps_without_anything_to_learn(tmp_path: Path) -> None:
    """Else the rate of a run with silent steps would never come down to what the recipe says it ends with."""
    done: list[int] = []
    running = loop(tmp_path, lambda spec, attempt: played(spec, reward=float(spec.member if running.state.step != 1 else 0)), [])
    running.recipe = recipes.parse({"run": {"steps": 4}, "algorithm": {"groups_per_step": 2, "group_size": 3}})
    running.crew.learner.learn = lambda batches, before: done.append(before) or {}  # type: ignore[attr-defined]
    running._hand_over = dict  # type: ignore[method-assign]
    running.train()
    assert done == [0, 2, 3]


def test_dynamic_sampling_learns_from_groups_that_differ_and_counts_all(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    learned: list[Any] = []
    running = loop(tmp_path, lambda spec, attempt: played(spec, reward=float(spec.member == 0 and spec.group != 0)), rows)
    running.recipe = recipes.parse({"run": {"steps": 1}, "algorithm": {"name": "dapo", "groups_per_step": 2, "group_size": 3}})
    running.crew.learner.learn = lambda batches, done: learned.append(batches) or {}  # type: ignore[attr-defined]
    running._hand_over = dict  # type: ignore[method-assign]
    running.train()
    assert [[t.spec.group for t in batch[::3]] for batch in learned[0]] == [[1, 2]]
    assert rows[0]["success"] == pytest.approx(1 / 6)  # of what was planned, not of what was chosen
    assert rows[0]["dynamic_rounds"] == 1 and rows[0]["dynamic_tokens"] == 6
    assert running.state.tokens_sampled == 12 + 6


def dapo(tmp_path: Path, play: Callable[[EpisodeSpec, int], Trajectory], rows: list[dict[str, Any]], **run: Any) -> Loop:
    """Two groups of three a step, up to three rounds more; the learner learns nothing."""
    running = loop(tmp_path, play, rows)
    algorithm = {"name": "dapo", "groups_per_step": 2, "group_size": 3}
    running.recipe = recipes.parse({"run": {"steps": 2, **run}, "algorithm": algorithm})
    running.crew.learner.learn = lambda batches, done: {}  # type: ignore[attr-defined]
    running._hand_over = dict  # type: ignore[method-assign]
    return running


def test_failures_of_a_step_and_its_top_ups_are_judged_as_one(tmp_path: Path) -> None:
    """One failed episode of the three in a round is one of nine, not one third."""

    def fails_once(spec: EpisodeSpec, attempt: int) -> Trajectory:
        broken = Failure("step-timeout", Blame.ENVIRONMENT) if (spec.group, spec.member) == (2, 2) else None
        return played(spec, float(spec.member == 0 and spec.group != 0), failure=broken)

    rows: list[dict[str, Any]] = []
    dapo(tmp_path, fails_once, rows, steps=1).train()
    assert rows[0]["dynamic_rounds"] == 1


@pytest.mark.parametrize(("fails_from", "episodes"), [(0, 12), (2, 18)])
def test_where_episodes_fail_no_more_rounds_are_played(tmp_path: Path, fails_from: int, episodes: int) -> None:
    """Also where the first groups were fine, and it is the top-up that failed (twice). What was played is there to be read."""
    seen: list[EpisodeSpec] = []

    def failing(spec: EpisodeSpec, attempt: int) -> Trajectory:
        seen.append(spec)
        return played(spec, failure=Failure("step-timeout", Blame.ENVIRONMENT) if spec.group >= fails_from else None)

    rows: list[dict[str, Any]] = []
    with pytest.raises(LimitReached, match="failed through no fault of the agent"):
        dapo(tmp_path, failing, rows).train()
    assert len(seen) == episodes and not rows
    assert len(list((tmp_path / "rollouts").iterdir())) == 1


def test_a_used_up_budget_ends_the_rounds_and_the_step_counts(tmp_path: Path) -> None:
    """Two tokens an episode: six for each group of three, twelve a batch; nothing ever differs."""
    rows: list[dict[str, Any]] = []
    running = dapo(tmp_path, lambda spec, attempt: played(spec), rows, max_tokens=24)
    with pytest.raises(LimitReached, match="24 tokens sampled, run.max_tokens is 24"):
        running.train()
    assert [r["dynamic_rounds"] for r in rows] == [1] and running.state.step == 1


def test_the_ledger_holds_every_group_once_with_its_end(tmp_path: Path) -> None:
    """Workflow, rehearsal and dynamic sampling; step 1 has an update, step 2 finds no difference anywhere."""
    rows: list[dict[str, Any]] = []
    running = dapo(
        tmp_path, lambda spec, attempt: played(spec, float(spec.member == 0 and spec.step == 0 and spec.group != 0)), rows
    )
    running.rehearsal = GroupPlan(TASKS, 1, 1, 3, first_group=2)
    running.train()
    planned = planned_groups(recipes.parse({"algorithm": {"groups_per_step": 2, "rehearsal_groups": 1, "group_size": 3}}), 2)
    found = audit(tmp_path / "ledger.jsonl", planned)
    assert found.complete, str(found)
    assert [row["silent_steps"] for row in rows] == [0, 1]
    assert found.kinds == {"workflow": 4, "dynamic": 1 + 6, "rehearsal": 2}
    assert found.trained == 3 and found.dropped == {"rewards all equal": 1, "no difference in the step's rewards": 9}
    _, state = checkpoint.newest(tmp_path / "checkpoints", running.recipe, print)
    assert state.ledger == running.ledger.mark and state.ledger.size == (tmp_path / "ledger.jsonl").stat().st_size


def test_a_stopped_step_is_played_again_and_the_ledger_is_as_if_it_never_stopped(tmp_path: Path) -> None:
    def running(where: Path, state: LoopState, stops: int) -> Loop:
        seen = 0

        def check() -> None:
            nonlocal seen
            seen += 1
            if seen == stops:
                raise Stopped(15)

        made = loop(where, lambda spec, attempt: played(spec), [], state=state)
        made.stop = SimpleNamespace(check=check)  # type: ignore[assignment]
        made.probe = None
        return made

    running(tmp_path / "whole", LoopState(version=1), -1).train()
    cut = running(tmp_path / "cut", LoopState(version=1), 4)  # asked before each step and while it plays: in the second
    with pytest.raises(Stopped):
        cut.train()
    assert audit(tmp_path / "cut" / "ledger.jsonl").open == ["2.0", "2.1"]
    _, state = checkpoint.newest(tmp_path / "cut" / "checkpoints", RECIPE, print)
    running(tmp_path / "cut", state, -1).train()
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == (tmp_path / "whole" / "ledger.jsonl").read_bytes()
    assert (tmp_path / "cut" / "ledger.replayed.jsonl").read_bytes().count(b"issued") == 2


@pytest.mark.parametrize("whole", [False, True])
def test_a_lost_try_is_in_the_ledger_unless_the_batch_is_the_unit_of_replay(tmp_path: Path, whole: bool) -> None:
    broken = Failure("worker-killed", Blame.INFRASTRUCTURE)
    fails = [True]

    def once(spec: EpisodeSpec, attempt: int) -> Trajectory:
        first = spec.group == 1 and spec.member == 1 and fails and fails.pop()
        return played(spec, failure=broken if first else None)

    running = loop(tmp_path, once, [])
    running.recipe = recipes.parse(
        {"run": {"steps": 1, "deterministic": whole}, "algorithm": {"groups_per_step": 2, "group_size": 3}}
    )
    running.train()
    found = audit(tmp_path / "ledger.jsonl")
    assert found.complete and found.again == (0 if whole else 1)
    assert (tmp_path / "ledger.replayed.jsonl").exists() == whole
    calls: Any = running.crew.episodes
    assert [len(c) for c in calls.calls] == [6, 6 if whole else 1]
