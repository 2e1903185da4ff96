"""Which failed episodes are played again, how often, and after which wait. By blame: see contracts.Blame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frontier_tune.contracts import Blame, EpisodeSpec, Trajectory
from frontier_tune.recipe import Recipe

_LOOK_UP = 0.2  # seconds between two looks at whether to stop, while waiting


@dataclass(frozen=True)
class Retry:
    """Tries by blame, the first included. What the infrastructure failed may well end elsewhere, or later; what the environment
    failed twice will always fail, and is left out. An agent's own failure is a result and is never played again.

    ``whole``: play all episodes again where the infrastructure failed one, so that a batch is always sampled in one piece.
    """

    infrastructure: int = 2
    environment: int = 1
    backoff_s: float = 0.0
    max_backoff_s: float = 60.0
    whole: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Retry:
        r = recipe.reliability
        return cls(r.infrastructure_tries, r.environment_tries, r.backoff_s, r.max_backoff_s, recipe.run.deterministic)

    def again(self, played: Sequence[Trajectory], attempt: int) -> list[EpisodeSpec]:
        """Which of ``played`` to play again after the ``attempt``-th try (from 1)."""
        tries = {Blame.INFRASTRUCTURE: self.infrastructure, Blame.ENVIRONMENT: self.environment}
        due = [t for t in played if t.failure and attempt < tries.get(t.failure.blame, 0)]
        if self.whole and any(t.failure and t.failure.blame is Blame.INFRASTRUCTURE for t in due):
            return [t.spec for t in played]
        return [t.spec for t in due]

    def pause(self, attempt: int, every: Callable[[], None]) -> None:
        """Wait before the next try: not before the second, then ``backoff_s``, twice that, and so on up to the cap."""
        wait(backoff(attempt, self.backoff_s, self.max_backoff_s), every)


def backoff(failures: int, first: float, most: float) -> float:
    """Seconds to wait after so many failures in a row: none after the first, then doubling from ``first`` up to ``most``."""
    return 0.0 if failures < 2 else min(most, first * 2.0 ** min(failures - 2, 60))


def wait(seconds: float, every: Callable[[], None]) -> None:
    """Sleep, calling ``every`` from time to time (it may raise)."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        every()
        time.sleep(min(left, _LOOK_UP))


ONCE_MORE = Retry()
