"""A step's played episodes: who counts, which advantage each gets, and the numbers that describe the step."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import Blame, EpisodeSpec, Trajectory
from frontier_tune.orchestration.players import Playing
from frontier_tune.orchestration.retry import ONCE_MORE, Retry

if TYPE_CHECKING:
    from frontier_tune.algorithms.base import Algorithm

Lost = Callable[[Sequence[Trajectory], int], None]  # what is thrown away and played again, and the number of the try that lost it


@dataclass
class Batch:
    """Trajectories in the order of their plan, group by group. Failures that are not the agent's stay in, untrainable.

    ``retried``: episodes played again; ``tokens_retried``: sampled in the tries that were thrown away; ``tries``: how often
    groups were played again, by number, where they were.
    """

    trajectories: list[Trajectory]
    group_size: int
    retried: int = 0
    tries: dict[int, int] = field(default_factory=dict)
    tokens_retried: int = 0

    @property
    def trainable(self) -> list[Trajectory]:
        return [t for t in self.trajectories if t.trainable and t.sampled_tokens]

    @property
    def masked(self) -> int:
        return sum(not t.trainable for t in self.trajectories)

    @property
    def failure_share(self) -> float:
        return self.masked / len(self.trajectories)

    @property
    def tokens_sampled(self) -> int:
        return sum(t.sampled_tokens for t in self.trajectories)

    @property
    def tokens_spent(self) -> int:
        """What budgets count."""
        return self.tokens_sampled + self.tokens_retried

    @property
    def success(self) -> float:
        graded = [t.success for t in self.trajectories if t.trainable]
        return sum(graded) / len(graded) if graded else 0.0

    def _rewards_PG(self) -> tuple[Any, Any]:
        """Rewards and which of them are valid, [groups, members] each."""
        import torch

        shape = (-1, self.group_size)
        reward = torch.tensor([t.reward if t.trainable else 0.0 for t in self.trajectories], dtype=torch.float64).reshape(shape)
        return reward, torch.tensor([t.trainable for t in self.trajectories]).reshape(shape)

    @property
    def informative_groups(self) -> list[list[Trajectory]]:
        """Groups whose rewards differ: those that a group-relative advantage learns from."""
        from frontier_tune.algorithms.shaping import informative

        keep, size = informative(*self._rewards_PG()).tolist(), self.group_size
        return [self.trajectories[i * size : (i + 1) * size] for i, kept in enumerate(keep) if kept]

    @property
    def informative(self) -> int:
        return len(self.informative_groups)

    @property
    def groups_used(self) -> float:
        """Share of groups whose rewards differ."""
        return self.informative / (len(self.trajectories) // self.group_size)

    def has_signal(self, algorithm: Algorithm) -> bool:
        """Whether an update would learn anything: from these rewards, or from terms of the loss that need none."""
        return bool(self.trainable) and (algorithm.learns_from(*self._rewards_PG()) or algorithm.has_other_terms)

    def worst_failure(self) -> str:
        kinds = Counter(
            f"{t.failure.kind} ({t.failure.blame}): {t.failure.detail}"[:300]
            for t in self.trajectories
            if t.failure and not t.trainable
        )
        return kinds.most_common(1)[0][0] if kinds else "none"

    def metrics(self, seconds: float) -> dict[str, Any]:
        """Keys as in docs/run-directory.md."""
        from frontier_tune.evaluation.statistics import bootstrap_mean, share_of_clusters

        groups = [self.trajectories[i : i + self.group_size] for i in range(0, len(self.trajectories), self.group_size)]
        graded = [g for g in ([t for t in group if t.trainable] for group in groups) if g]
        flat = [t for g in graded for t in g]
        lengths = [t.sampled_tokens for t in flat] or [0]
        blames = Counter(t.failure.blame for t in self.trajectories if t.failure)
        row: dict[str, Any] = {
            "episodes": len(self.trajectories),
            "failures": {str(b): blames.get(b, 0) for b in Blame},
            "retried": self.retried,
            "groups_used": self.groups_used,
            "success": self.success if flat else None,
            "reward": sum(t.reward for t in flat) / len(flat) if flat else None,
            "tokens_sampled": self.tokens_sampled,
            "tokens_per_second": self.tokens_sampled / seconds,
            "length_mean": sum(lengths) / len(lengths),
            "length_max": max(lengths),
            "turns": sum(t.turns for t in flat) / max(1, len(flat)),
            "truncated": sum(t.truncated for t in flat) / max(1, len(flat)),
        }
        if len(graded) > 1:
            row["success_ci95"] = list(share_of_clusters([[float(t.success) for t in g] for g in graded]))
            row["reward_ci95"] = list(bootstrap_mean([[t.reward for t in g] for g in graded]))
        return row


def play(
    episodes: Playing,
    specs: Sequence[EpisodeSpec],
    every: Callable[[], None],
    where: str = "workflow",
    retry: Retry = ONCE_MORE,
    lost: Lost | None = None,
) -> tuple[list[Trajectory], int]:
    """Play ``specs``; those that failed through no fault of the agent again, with the same seeds, as often as ``retry`` allows.

    ``every`` is called while waiting. ``lost`` is told, before each further try, what is thrown away for it. Returns the
    trajectories in the order of ``specs``, and how many were played more than once. One episode that takes its worker down fails
    all others there: without a second try they would leave an evaluation, or a baseline, for nothing that they did.
    """
    slots = {(s.group, s.member): i for i, s in enumerate(specs)}
    ordered: list[Trajectory | None] = [None] * len(specs)
    pending, again = list(specs), set[int]()
    for attempt in itertools.count(1):
        for trajectory in episodes.wait(episodes.submit("play", pending, where), every):
            ordered[slots[trajectory.spec.group, trajectory.spec.member]] = trajectory
        pending = retry.again([t for t in ordered if t], attempt)
        if not pending:
            break
        again |= {slots[s.group, s.member] for s in pending}
        if lost:
            lost([t for s in pending if (t := ordered[slots[s.group, s.member]])], attempt)
        retry.pause(attempt, every)
    missing = [s for s, t in zip(specs, ordered, strict=True) if t is None]
    if missing:
        first = missing[0]
        raise RuntimeError(
            f"{len(missing)} of {len(specs)} planned episodes never came back, first: group {first.group}, member {first.member}"
        )
    return [t for t in ordered if t], len(again)


def collect(
    episodes: Playing,
    specs: Sequence[EpisodeSpec],
    every: Callable[[], None],
    where: str = "workflow",
    retry: Retry = ONCE_MORE,
    lost: Lost | None = None,
) -> Batch:
    """A step's episodes, as ``play`` plays them."""
    tries: dict[int, int] = {}
    tokens = 0

    def count(again: Sequence[Trajectory], attempt: int) -> None:
        nonlocal tokens
        tokens += sum(t.sampled_tokens for t in again)
        if retry.whole and len(again) == len(specs):
            tries.clear()
        else:
            tries.update({t.spec.group: attempt for t in again})
        if lost:
            lost(again, attempt)

    trajectories, retried = play(episodes, specs, every, where, retry, count)
    return Batch(trajectories, 1 + max(s.member for s in specs), retried, tries, tokens)
