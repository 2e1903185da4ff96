"""Whether tuning can pay before it costs: what the base does at once, sampled, and at the best of several tries.

Reinforcement learning raises the chance of what the policy already does now and then. So it needs groups whose rewards differ
(there is something to learn from) and a best of n above the greedy answer (there is somewhere to go).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from frontier_tune.contracts import Trajectory
from frontier_tune.evaluation.compare import percent
from frontier_tune.evaluation.evaluate import EvaluationError, Share
from frontier_tune.evaluation.statistics import share_of_clusters

SOLVED = 0.95  # greedy success from which nothing is left to gain
SIGNAL_NONE, SIGNAL_LOW = 0.05, 0.2  # share of groups whose rewards differ
GAIN_LOW = 0.05  # best of n less greedy

Group = Sequence[Trajectory]


@dataclass(frozen=True)
class Verdict:
    """``answer``: "pass" (tuning can pay), "warn" (it may), "fail" (it can't as things stand); why, and what to do."""

    answer: Literal["pass", "warn", "fail"]
    why: str
    mend: str = ""


@dataclass(frozen=True)
class Headroom:
    """Figures over graded tasks. ``passes[k]``: chance that at least one of k tries succeeds. ``signal``: share of groups whose
    rewards differ, ``mixed`` whose outcomes do; ``solved`` of those that always succeed, ``never`` of those that never do.
    ``reward`` is the mean of greedy, sampled and best tries; ``tokens`` sampled in the mean by a try."""

    tries: int
    greedy: Share
    sampled: float
    sampled_ci95: tuple[float, float] | None
    passes: Mapping[int, float]
    signal: float
    mixed: float
    solved: float
    never: float
    reward: Mapping[str, float]
    by_kind: Mapping[str, Mapping[str, float]]
    tokens: float
    ungraded: int

    @property
    def best(self) -> float:
        """Best of n: share of tasks that at least one of all tries solves, estimated without bias."""
        return self.passes[max(self.passes)]

    @property
    def gain(self) -> float:
        return self.best - self.greedy.success

    def verdict(self) -> Verdict:
        """By the thresholds at the top of this file, which the JSON repeats."""
        greedy, best, n = percent(self.greedy.success), percent(self.best), self.tries
        if self.greedy.success >= SOLVED:
            return Verdict("fail", f"The base solves {greedy} at once: there is nothing left to gain.", "Ask for harder tasks.")
        if self.signal < SIGNAL_NONE:
            why = f"Only {percent(self.signal)} of groups have rewards that differ: there is nothing to learn from."
            mend = "Give partial credit, start from easier tasks or demonstrations, or take a base that gets there now and then."
            return Verdict("fail", why, mend)
        if self.best == 0:
            why = f"Rewards differ in {percent(self.signal)} of groups, but none of {n} tries of any task succeeds."
            return Verdict("warn", why, "Partial credit may lead to success; easier tasks, or a better base, would do so sooner.")
        if self.signal < SIGNAL_LOW or self.gain < GAIN_LOW:
            why = f"Best of {n} is {best} against {greedy} at once, with rewards that differ in {percent(self.signal)} of groups."
            return Verdict("warn", why, "Expect many steps for what is gained: larger groups or easier tasks give more signal.")
        why = f"Best of {n} is {best} against {greedy} at once, and rewards differ in {percent(self.signal)} of groups."
        return Verdict("pass", why)

    def to_json(self) -> dict[str, Any]:
        verdict = self.verdict()
        return {
            "verdict": verdict.answer,
            "why": verdict.why,
            "mend": verdict.mend,
            "thresholds": {"solved": SOLVED, "signal_none": SIGNAL_NONE, "signal_low": SIGNAL_LOW, "gain_low": GAIN_LOW},
            "tries": self.tries,
            "greedy": self.greedy.to_json(),
            "sampled": {"success": self.sampled, "ci95": list(self.sampled_ci95) if self.sampled_ci95 else None},
            "passes": {str(k): share for k, share in self.passes.items()},
            "best_of_n": self.best,
            "gain": self.gain,
            "groups": {"signal": self.signal, "mixed": self.mixed, "solved": self.solved, "never": self.never},
            "reward": dict(self.reward),
            "by_kind": {kind: dict(figures) for kind, figures in self.by_kind.items()},
            "tokens_a_try": self.tokens,
            "ungraded": self.ungraded,
        }


def pass_at(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k tries succeeds, from ``correct`` of ``n``: the unbiased 1 - C(n - c, k) / C(n, k) of
    arXiv:2107.03374, eq. 1."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def measure(greedy: Sequence[Trajectory], sampled: Sequence[Trajectory]) -> Headroom:
    """``greedy`` holds one try a task, ``sampled`` several; ``spec.group`` says of which task. What was not graded is left out.

    Raises EvaluationError where nothing was graded, or no task has two graded tries.
    """
    at_once = [t for t in greedy if t.trainable]
    tries: dict[int, list[Trajectory]] = defaultdict(list)
    for t in sampled:
        if t.trainable:
            tries[t.spec.group].append(t)
    groups = [g for _, g in sorted(tries.items()) if len(g) > 1]
    if not at_once or not groups:
        raise EvaluationError(f"headroom: {len(at_once)} of {len(greedy)} greedy tries were graded, {len(groups)} groups")
    flat = [t for g in groups for t in g]
    # As many tries as nine of ten tasks have: a few that lost some must not cut the figure for all.
    tries_each = sorted((len(g) for g in groups), reverse=True)[math.ceil(0.9 * len(groups)) - 1]
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32) if k < tries_each} | {tries_each})
    return Headroom(
        tries=tries_each,
        greedy=Share(sum(t.success for t in at_once), len(at_once)),
        sampled=_mean(t.success for t in flat),
        sampled_ci95=share_of_clusters([[float(t.success) for t in g] for g in groups]) if len(groups) > 1 else None,
        passes={k: _passes(groups, k) for k in ks},
        signal=_mean(len({t.reward for t in g}) > 1 for g in groups),
        mixed=_mean(len({t.success for t in g}) > 1 for g in groups),
        solved=_mean(all(t.success for t in g) for g in groups),
        never=_mean(not any(t.success for t in g) for g in groups),
        reward={
            "greedy": _mean(t.reward for t in at_once),
            "sampled": _mean(t.reward for t in flat),
            "best": _mean(max(t.reward for t in g) for g in groups),
        },
        by_kind=_by_kind(at_once, groups, tries_each),
        tokens=_mean(t.sampled_tokens for t in flat),
        ungraded=sum(not t.trainable for t in (*greedy, *sampled)),
    )


def _mean(values: Any) -> float:
    values = [float(v) for v in values]
    return sum(values) / len(values) if values else 0.0


def _passes(groups: Sequence[Group], k: int) -> float:
    """Of the groups with so many tries, or, where there is none, with as many as any has."""
    k = min(k, max(map(len, groups)))
    return _mean(pass_at(len(g), sum(t.success for t in g), k) for g in groups if len(g) >= k)


def _by_kind(at_once: Sequence[Trajectory], groups: Sequence[Group], k: int) -> dict[str, dict[str, float]]:
    found = {}
    for kind in sorted({g[0].spec.task.kind for g in groups}):
        mine = [g for g in groups if g[0].spec.task.kind == kind]
        found[kind] = {
            "tasks": len(mine),
            "greedy": _mean(t.success for t in at_once if t.spec.task.kind == kind),
            "sampled": _mean(t.success for g in mine for t in g),
            "best_of_n": _passes(mine, k),
            "signal": _mean(len({t.reward for t in g}) > 1 for g in mine),
        }
    return found
