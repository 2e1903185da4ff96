"""Play every task of a set once and say how often it went right, with intervals, by kind and by layout family."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, EpisodeSpec, FrontierTuneError, Task, Trajectory
from frontier_tune.evaluation.statistics import Interval, Paired, bootstrap_mean, paired, wilson

Player = Callable[[Sequence[EpisodeSpec]], Iterable[Trajectory]]


class EvaluationError(FrontierTuneError):
    """The evaluation itself went wrong: its numbers would mislead."""


@dataclass(frozen=True)
class Share:
    """Successes among ``n`` graded episodes."""

    successes: int
    n: int

    @property
    def success(self) -> float:
        return self.successes / self.n if self.n else 0.0

    @property
    def ci95(self) -> Interval:
        return wilson(self.successes, self.n)

    def to_json(self) -> dict[str, Any]:
        return {"success": self.success, "n": self.n, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Scores:
    """What an evaluation found. ``success`` and ``reward`` are over graded episodes alone (``n`` of ``n_submitted``).

    ``failures`` counts the rest by ``blame:kind``. An agent's own failure is graded: it is a failed task.
    """

    success: float
    reward: float
    n: int
    n_submitted: int
    ci95: Interval
    reward_ci95: Interval | None
    by_kind: dict[str, Share]
    by_family: dict[str, Share]
    failures: dict[str, int]
    truncated: int
    turns: float
    sampled_tokens: int
    sampled: bool
    outcomes: dict[str, bool] = field(repr=False)
    episodes: list[Trajectory] = field(repr=False)

    @property
    def success_of_submitted(self) -> float:
        """Success when every ungraded episode counts as a failed one: the pessimist's figure."""
        return sum(self.outcomes.values()) / self.n_submitted

    def to_json(self) -> dict[str, Any]:
        return {
            "success": self.success,
            "reward": self.reward,
            "n": self.n,
            "n_submitted": self.n_submitted,
            "success_of_submitted": self.success_of_submitted,
            "ci95": list(self.ci95),
            "reward_ci95": list(self.reward_ci95) if self.reward_ci95 else None,
            "by_kind": {k: s.to_json() for k, s in self.by_kind.items()},
            "by_family": {k: s.to_json() for k, s in self.by_family.items()},
            "failures": self.failures,
            "truncated": self.truncated,
            "turns": self.turns,
            "sampled_tokens": self.sampled_tokens,
        }


def plan(tasks: Sequence[Task], *, sampled: bool, seed: int) -> list[EpisodeSpec]:
    """One episode a task; group i is task i. Raises BadInput for an empty set or one task twice (by content)."""
    if not tasks:
        raise BadInput("evaluation: the task set is empty; let the environment's tasks() return at least one task")
    counts = Counter(t.hash for t in tasks)
    doubled = [h for h, c in counts.items() if c > 1]
    if doubled:
        raise BadInput(
            f"evaluation: {len(doubled)} of {len(counts)} tasks occur more than once (first: {doubled[0]}); "
            "they would be counted twice: let tasks() return distinct ones"
        )
    temperature = 1.0 if sampled else 0.0
    return [EpisodeSpec(task, group=i, member=0, seed=seed + i, temperature=temperature) for i, task in enumerate(tasks)]


def evaluate(tasks: Sequence[Task], player: Player, *, sampled: bool = False, seed: int) -> Scores:
    """Play each task once, greedily or (``sampled``) at temperature 1.

    ``player`` plays planned episodes and yields one trajectory each, in any order. Raises EvaluationError where it yields
    another set than the one planned, or where no episode could be graded.
    """
    specs = plan(tasks, sampled=sampled, seed=seed)
    return score(specs, player(specs), sampled=sampled)


def score(specs: Sequence[EpisodeSpec], trajectories: Iterable[Trajectory], *, sampled: bool) -> Scores:
    """Scores of played episodes: ``trajectories`` must be those of ``specs``, one each. Raises as ``evaluate``."""
    played = {t.spec.group: t for t in _checked(specs, trajectories)}
    episodes = [played[s.group] for s in specs]
    graded = [t for t in episodes if t.trainable]
    failures = Counter(f"{t.failure.blame}:{t.failure.kind}" for t in episodes if t.failure)
    if not graded:
        raise EvaluationError(f"evaluation: none of {len(episodes)} episodes was graded: {dict(failures)}")
    wins = [t for t in graded if t.success]
    rewards = [[t.reward] for t in graded]
    return Scores(
        success=len(wins) / len(graded),
        reward=sum(t.reward for t in graded) / len(graded),
        n=len(graded),
        n_submitted=len(episodes),
        ci95=wilson(len(wins), len(graded)),
        reward_ci95=bootstrap_mean(rewards) if len(rewards) > 1 else None,
        by_kind=_slices(graded, lambda t: t.spec.task.kind),
        by_family=_slices(graded, lambda t: t.spec.task.family or "-"),
        failures=dict(sorted(failures.items())),
        truncated=sum(t.truncated for t in graded),
        turns=sum(t.turns for t in graded) / len(graded),
        sampled_tokens=sum(t.sampled_tokens for t in episodes),
        sampled=sampled,
        outcomes={t.spec.task.hash: t.success for t in graded},
        episodes=episodes,
    )


def _checked(specs: Sequence[EpisodeSpec], trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """The trajectories, after refusing any set but the planned one: a lost episode would silently raise the mean."""
    planned = {s.group: s.task.hash for s in specs}
    seen: Counter[int] = Counter()
    result = []
    for t in trajectories:
        if planned.get(t.spec.group) != t.spec.task.hash:
            raise EvaluationError(
                f"evaluation: got an episode of task {t.spec.task.hash} (group {t.spec.group}) that was not planned"
            )
        seen[t.spec.group] += 1
        result.append(t)
    wrong = [g for g in planned if seen[g] != 1]
    if wrong:
        raise EvaluationError(
            f"evaluation: {len(wrong)} of {len(planned)} planned episodes came back another number of times than once "
            f"(first: group {wrong[0]}, {seen[wrong[0]]} times)"
        )
    return result


def _slices(graded: Sequence[Trajectory], key: Callable[[Trajectory], str]) -> dict[str, Share]:
    n = Counter(key(t) for t in graded)
    wins = Counter(key(t) for t in graded if t.success)
    return {k: Share(wins[k], n[k]) for k in sorted(n)}


def compare(base: Scores, tuned: Scores) -> Paired:
    """Base against tuned on the tasks that both have graded. Raises EvaluationError where they share none."""
    shared = [h for h in base.outcomes if h in tuned.outcomes]
    if not shared:
        raise EvaluationError("evaluation: base and tuned share no graded task; evaluate both on the same held-out set")
    return paired([base.outcomes[h] for h in shared], [tuned.outcomes[h] for h in shared])


def write_episodes(path: Path, scores: Scores) -> None:
    """Every episode as one JSON line (``Trajectory.to_json``), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + ".tmp")
    with tmp.open("w", encoding="utf-8") as f:
        for t in scores.episodes:
            f.write(json.dumps(t.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
