"""Scores: what is counted, what is refused, and the files they end in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import BadInput, Blame, EpisodeSpec, Failure, Task, Trajectory
from frontier_tune.evaluation import summary
from frontier_tune.evaluation.compare import table
from frontier_tune.evaluation.evaluate import EvaluationError, Scores, compare, evaluate, write_episodes
from frontier_tune.evaluation.statistics import wilson

TASKS = [Task("sums" if i % 2 else "look-ups", "heldout", {"i": i}, family=f"f{i % 3}") for i in range(12)]


def play(spec: EpisodeSpec, wins: set[int], failures: dict[int, Failure]) -> Trajectory:
    i = spec.task.data["i"]
    won = i in wins
    return Trajectory(
        spec, tokens=[1, 2, 3], mask=[False, True, True], reward=float(won), success=won, failure=failures.get(i), turns=2
    )


def scores(wins: set[int], failures: dict[int, Failure] | None = None, tasks: Sequence[Task] = TASKS, **kwargs: Any) -> Scores:
    return evaluate(tasks, lambda specs: [play(s, wins, failures or {}) for s in reversed(specs)], seed=5, **kwargs)


def test_counts_by_kind_and_family() -> None:
    s = scores({0, 1, 2, 4})
    assert (s.success, s.n, s.n_submitted) == (4 / 12, 12, 12)
    assert s.ci95 == wilson(4, 12)
    assert (s.by_kind["look-ups"].successes, s.by_kind["sums"].successes) == (3, 1)
    assert sum(f.n for f in s.by_family.values()) == 12 and set(s.by_family) == {"f0", "f1", "f2"}
    assert (s.turns, s.sampled_tokens) == (2.0, 24)


def test_what_the_player_is_asked_for() -> None:
    asked: list[EpisodeSpec] = []

    def player(specs: Sequence[EpisodeSpec]) -> Iterable[Trajectory]:
        asked.extend(specs)
        return [play(s, set(), {}) for s in specs]

    evaluate(TASKS, player, seed=5)
    assert [s.temperature for s in asked] == [0.0] * 12
    assert len({s.seed for s in asked}) == 12
    asked.clear()
    evaluate(TASKS, player, seed=5, sampled=True)
    assert [s.temperature for s in asked] == [1.0] * 12


def test_failures_of_others_leave_the_mean_and_are_reported() -> None:
    hung = Failure("step-timeout", Blame.ENVIRONMENT)
    garbage = Failure("context-full", Blame.AGENT)
    s = scores({0, 1}, {0: hung, 3: garbage})
    assert (s.n, s.n_submitted) == (11, 12), "the agent's own failure counts as a failed task"
    assert s.success == 1 / 11
    assert s.success_of_submitted == 1 / 12
    assert s.failures == {"agent:context-full": 1, "environment:step-timeout": 1}
    assert s.to_json()["n_submitted"] == 12


def test_sets_that_would_mislead_are_refused() -> None:
    with pytest.raises(BadInput, match="empty"):
        scores(set(), tasks=[])
    with pytest.raises(BadInput, match="more than once"):
        scores(set(), tasks=[*TASKS, TASKS[3]])


def test_lost_doubled_and_foreign_episodes_are_loud() -> None:
    def lose(specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        return [play(s, set(), {}) for s in specs[1:]]

    def double(specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        return [play(s, set(), {}) for s in [*specs, specs[0]]]

    def foreign(specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        return [play(EpisodeSpec(TASKS[0], s.group, 0, 0), set(), {}) for s in specs]

    for player, message in ((lose, "0 times"), (double, "2 times"), (foreign, "not planned")):
        with pytest.raises(EvaluationError, match=message):
            evaluate(TASKS, player, seed=1)


def test_no_graded_episode_is_an_error_and_not_a_zero() -> None:
    down = {i: Failure("worker-killed", Blame.INFRASTRUCTURE) for i in range(12)}
    with pytest.raises(EvaluationError, match="none of 12 episodes was graded"):
        scores(set(range(12)), down)


def test_comparison_is_over_shared_graded_tasks() -> None:
    base = scores({0}, {1: Failure("step-timeout", Blame.ENVIRONMENT)})
    tuned = scores(set(range(10)))
    pair = compare(base, tuned)
    assert (pair.n, pair.gained, pair.lost) == (11, 8, 0)
    with pytest.raises(EvaluationError, match="share no graded task"):
        compare(base, scores({0}, tasks=[Task("sums", "heldout", {"i": 0, "other": 1})]))


def made() -> dict[str, Any]:
    return summary.summarize(
        scores({0}),
        scores(set(range(11))),
        base_sampled=scores({0, 1}, sampled=True),
        general_before=scores({1, 2, 3}),
        general_after=scores({1, 2}),
        canaries={"no_op": 0.0},
        train={"seconds": 9.0, "steps": 2, "tokens_sampled": 100},
        extra={"seed": 3},
    )


def test_evaluation_json_has_the_form_that_others_read(tmp_path: Path) -> None:
    summary.write(tmp_path, made())
    data = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("base", "tuned"):
        assert {"success", "success_sampled", "reward", "n", "ci95", "by_kind"} <= set(data[name])
        assert set(data[name]["by_kind"]["sums"]) == {"success", "n", "ci95"}
    assert data["base"]["success"] == pytest.approx(1 / 12) and data["base"]["success_sampled"] == pytest.approx(2 / 12)
    assert data["base"]["n_sampled"] == 12
    assert data["tuned"]["success_sampled"] is None and data["tuned"]["n_sampled"] == 0
    assert data["general_before"] == pytest.approx(3 / 12) and data["general_after"] == pytest.approx(2 / 12)
    assert data["canaries"] == {"no_op": 0.0}
    assert data["train"] == {"seconds": 9.0, "steps": 2, "tokens_sampled": 100}
    assert data["paired"]["gained"] == 10
    assert summary.read(tmp_path) == data
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


def test_an_evaluation_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    for spoil in ({"base": {}}, {"canaries": {"no_op": 1.5}}, {"train": {"steps": 1}}):
        with pytest.raises(ValueError, match=next(iter(spoil))):
            summary.write(tmp_path, {**made(), **spoil})
    with pytest.raises(ValueError, match="may not replace"):
        summary.summarize(scores({0}), None, extra={"base": 1})
    with pytest.raises(BadInput, match="no evaluation here"):
        summary.read(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"base": ')
    with pytest.raises(BadInput, match="not valid JSON"):
        summary.read(tmp_path)


def test_table_says_what_was_found() -> None:
    text = table(made())
    assert "look-ups" in text and "8.3 % [1, 35]" in text and "91.7 %" in text
    assert "+83.3 points" in text and "10 tasks gained, 0 lost of 12" in text and "no_op 0.0 %" in text
    alone = table(summary.summarize(scores({0}), None))
    assert "–" in alone and "points" not in alone


def test_episodes_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "evaluation/base-greedy.jsonl"
    write_episodes(path, scores({0}))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["task"] for r in rows] == [t.hash for t in TASKS], "in the order of the tasks, whatever order they were played in"
    assert [p.name for p in path.parent.iterdir()] == ["base-greedy.jsonl"]
