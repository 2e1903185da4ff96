"""What a run does when one of its processes dies or is stuck: replace it and go on from the last whole step, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration.events import Events
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.retry import backoff, wait
from frontier_tune.recipe import Reliability

T = TypeVar("T")


class Supervisor:
    """Counts deaths over the whole run. ``every`` is called while waiting (and may raise)."""

    def __init__(self, limits: Reliability, events: Events, note: Callable[[str], None], every: Callable[[], None]) -> None:
        self.limits, self.events, self.note, self.every = limits, events, note, every
        self.restarts = 0

    def run(self, work: Callable[[int], T], mend: Callable[[ActorDied], None]) -> T:
        """``work(n)`` until it comes to its end, ``n`` counting the tries from 0; ``mend`` before each further try.

        Raises LimitReached where more processes died than the recipe allows.
        """
        error: ActorDied | None = None
        for tries in count():
            try:
                if error is not None:
                    mend(error)
                return work(tries)
            except ActorDied as e:
                self._count(e)
                error = e
        raise AssertionError("unreachable")

    def _count(self, error: ActorDied) -> None:
        self.events.log("died", role=error.role, kind=type(error).__name__, message=str(error))
        if self.restarts >= self.limits.restarts:
            raise LimitReached(
                f"{error}\n{self.restarts} processes were replaced before, reliability.restarts allows no more. Find the cause "
                "in the log; a process that vanishes without a word was most often killed for memory (see dmesg): lower "
                "sampler.kv_cache_mb, learner.tokens_per_microbatch or environment.workers"
            ) from error
        self.restarts += 1
        pause = backoff(self.restarts, self.limits.backoff_s, self.limits.max_backoff_s)
        self.note(f"{error}; starting another ({self.restarts} of at most {self.limits.restarts}{_after(pause)})")
        wait(pause, self.every)


def _after(pause: float) -> str:
    return f", in {pause:.0f} s" if pause >= 1 else ""
