"""Several episode actors as one: the groups of a batch are dealt out among them, each whole on one of them.

They hold nothing that outlives a batch. When one dies, what the others are at is given up with it: the crew starts all of them
anew (crew.py), and the batch is played again as after the death of a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import ray

from frontier_tune.contracts import EpisodeSpec, Trajectory
from frontier_tune.orchestration.handle import Beat, Handle

_SLOWEST = 3  # episodes that status shows


class Playing(Protocol):
    """Whoever plays episodes: a ``Handle`` to one actor, or ``Players``."""

    on_beat: Callable[[Any], None] | None

    def submit(self, method: str, *args: Any) -> Any: ...

    def wait(self, ref: Any, every: Callable[[], None]) -> Any: ...


def deal(specs: Sequence[EpisodeSpec], count: int) -> list[list[EpisodeSpec]]:
    """``specs`` in ``count`` shares, each in the order of ``specs``: a group goes to the smallest so far, the first on a tie."""
    shares: list[list[EpisodeSpec]] = [[] for _ in range(count)]
    owner: dict[int, list[EpisodeSpec]] = {}
    for spec in specs:
        if spec.group not in owner:
            owner[spec.group] = min(shares, key=len)
        owner[spec.group].append(spec)
    return shares


class Players:
    """The episode actors behind ``handles``. ``play`` is shared out, everything else is asked of the first.

    ``on_beat`` is told what all of them say of themselves, as if one had said it.
    """

    def __init__(self, handles: Sequence[Handle]) -> None:
        self.handles = list(handles)
        self.on_beat: Callable[[Any], None] | None = None
        self._said: dict[int, Mapping[str, Any]] = {}
        for n, handle in enumerate(self.handles):
            handle.on_beat = partial(self._hear, n)

    def submit(self, method: str, *args: Any) -> dict[int, Any]:
        """Begin a call. What it returns is for ``wait``: a promise by the number of its actor."""
        self._said.clear()
        if method != "play":
            return {0: self.handles[0].submit(method, *args)}
        specs, *others = args
        shares = deal(specs, len(self.handles))
        return {n: self.handles[n].submit(method, share, *others) for n, share in enumerate(shares) if share}

    def wait(self, promised: Mapping[int, Any], every: Callable[[], None], seconds: float = 0.5) -> Any:
        """As ``Handle.wait``; of ``play`` the trajectories of all. Raises the error of whoever fails or gets stuck first."""
        left = dict(promised)
        beats = {n: Beat(self.handles[n]) for n in left if self.handles[n].deadlines}
        found: dict[int, Any] = {}
        while left:
            ready, _ = ray.wait(list(left.values()), num_returns=1, timeout=seconds)
            if not ready:
                every()
            for n in left.keys() & beats.keys():
                beats[n].check()
            for n in [n for n, ref in left.items() if ref in ready]:
                found[n] = self.handles[n].get(left.pop(n))
                if isinstance(found[n], list):
                    self._said[n] = {"episodes": len(found[n]), "slowest": []}
        if len(promised) == 1:
            return next(iter(found.values()))
        trajectories: list[Trajectory] = [t for n in promised for t in found[n]]
        return trajectories

    def _hear(self, number: int, said: Mapping[str, Any]) -> None:
        self._said[number] = said
        if self.on_beat:
            slowest = sorted((e for one in self._said.values() for e in one["slowest"]), key=lambda e: -e["seconds"])
            self.on_beat({"episodes": sum(one["episodes"] for one in self._said.values()), "slowest": slowest[:_SLOWEST]})
