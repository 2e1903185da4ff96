"""How much a step plays, what a run writes, and how long past runs of the recipe took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from frontier_tune.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """Of one step: groups planned, of general tasks besides, and at most played again by dynamic sampling.

    Tokens are sampled ones, at most. ``longest``: tokens of a sequence, at most.
    """

    groups: int
    rehearsal: int
    again: int
    group_size: int
    sampled_per_episode: int
    longest: int

    @property
    def planned(self) -> int:
        """Episodes that every step plays."""
        return (self.groups + self.rehearsal) * self.group_size

    @property
    def episodes_at_most(self) -> int:
        return self.planned + self.again * self.group_size

    @property
    def tokens(self) -> int:
        return self.planned * self.sampled_per_episode

    @property
    def tokens_at_most(self) -> int:
        return self.episodes_at_most * self.sampled_per_episode

    @property
    def learned(self) -> int:
        """Episodes that a step learns from: those of dynamic sampling stand in for others."""
        return self.planned


def of(recipe: Recipe) -> Work:
    env, algo, longest = recipe.environment, recipe.algorithm, recipe.sampler.max_model_len
    rounds = algo.dynamic_sampling or 0
    sampled = min(env.turns * env.max_tokens_per_turn, longest)
    return Work(algo.groups_per_step, algo.rehearsal_groups, rounds * algo.groups_per_step, algo.group_size, sampled, longest)


def microbatch(recipe: Recipe, work: Work, learners: int = 1) -> int:
    """Rows of the fullest micro-batch, at most.

    It takes whole sequences up to learner.tokens_per_microbatch, one alone where it is longer; and there are no more rows than a
    minibatch has.
    """
    groups = -(-(work.groups + work.rehearsal) // recipe.algorithm.minibatches)
    everything = -(-groups * work.group_size // learners) * work.longest
    return min(max(recipe.learner.tokens_per_microbatch, work.longest), everything)


def past_speed(root: Path, name: str, recipe: Recipe) -> tuple[float | None, str]:
    """Median seconds of a step in the newest run of this recipe whose step had the same size, and where that was."""
    files = sorted((root / "runs").glob(f"{name}-*/metrics.jsonl"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files:
        rows = list(_rows(path))
        size = recipe.algorithm.groups_per_step * recipe.algorithm.group_size
        times = [r["seconds"] for r in rows if r.get("episodes") == size and r.get("seconds")]
        if len(times) >= 3:
            return median(times), path.parent.name
    return None, ""


def stated_speed(recipe: Recipe, work: Work) -> float | None:
    """Seconds of a step at most, at the speeds that ``placement`` states; None where it doesn't state both.

    Sampling and learning one after the other, or side by side where ``run.staleness`` lets them overlap.
    """
    p, passes = recipe.placement, recipe.algorithm.epochs
    if p.sampler_tokens_per_second is None or p.learner_tokens_per_second is None:
        return None
    sampling = work.tokens_at_most / (p.samplers * p.sampler_tokens_per_second)
    learning = passes * work.learned * work.longest / (p.learners * p.learner_tokens_per_second)
    return max(sampling, learning) if recipe.run.staleness else sampling + learning


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a killed run
