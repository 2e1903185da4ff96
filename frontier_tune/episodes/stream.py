"""``Stream``: groups of episodes played all the time, in a thread of its own, while whoever wants them does other things.

Groups come in by ``put`` and go out by ``take`` as they finish. A new policy in the sampler needs no word here: requests in
flight end under the old one, the next turn is asked of the new one. An episode then holds tokens of both, each with its version;
with ``restart`` such an episode is begun again instead, so that each one is of a single policy.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from frontier_tune.contracts import Blame, Completion, EpisodeSpec, Request, Trajectory
from frontier_tune.episodes.play import _LINGER, Pool, Watch, _Episode, _Player, play
from frontier_tune.episodes.renderers import Renderer

_LOOK_UP = 0.03  # seconds after which answers of environments are looked for, while the sampler samples
_IDLE = 0.25  # ... where no environment has anything to answer


class StreamSampler(Protocol):
    """As ``contracts.Sampler``, but with a limit: ``exchange`` returns nothing where nothing is finished in ``wait`` seconds."""

    def exchange(self, requests: Sequence[Request], wait: float) -> list[Completion]: ...


ONCE_MORE: Mapping[Blame, int] = {Blame.INFRASTRUCTURE: 2}


@dataclass(frozen=True)
class Limits:
    """See ``play``. ``max_sequences``: no episode is begun while so many are in the sampler or on their way to it."""

    max_turns: int
    max_tokens_per_turn: int
    max_model_len: int
    max_sequences: int


@dataclass(frozen=True)
class Group:
    """Episodes of one task. ``where``: the name of their environment; ``id`` comes back with them."""

    id: str
    where: str
    specs: tuple[EpisodeSpec, ...]


@dataclass(frozen=True)
class Played:
    """A finished group, in the order of its specs.

    ``wasted``: tokens of tries given up: its own (``retried``, ``restarted``), and those of groups dropped since the last one.
    """

    id: str
    trajectories: list[Trajectory]
    retried: int = 0
    restarted: int = 0
    wasted: int = 0

    @property
    def tokens(self) -> int:
        """All that were sampled for it."""
        return self.wasted + sum(t.sampled_tokens for t in self.trajectories)


@dataclass
class _Open:
    group: Group
    results: dict[int, Trajectory] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    restarted: int = 0
    wasted: int = 0


class _StreamPlayer(_Player):
    """One environment's episodes. ``restarts`` collects the specs of those that met a second policy, with the tokens they had."""

    def __init__(self, pool: Pool, renderer: Renderer, limits: Limits, restart: bool) -> None:
        super().__init__(pool, renderer, limits.max_turns, limits.max_tokens_per_turn, limits.max_model_len)
        self.restart, self.restarts = restart, list[tuple[EpisodeSpec, int]]()

    @property
    def sampling(self) -> int:
        """Episodes that are in the sampler, or were only just begun and will be."""
        return len(self.in_sampler) + sum(not e.trajectory.tokens for e in self.in_environment.values())

    def take_completion(self, completion: Completion) -> Trajectory | None:
        episode = self.in_sampler.get(completion.request_id)
        if self.restart and episode is not None and completion.tokens:
            t = episode.trajectory
            if any(m and v != completion.version for m, v in zip(t.mask, t.versions, strict=True)):
                self.restarts.append((t.spec, t.sampled_tokens + len(completion.tokens)))
                self.give_up([t.spec])
                return None
        return super().take_completion(completion)

    def give_up(self, specs: Sequence[EpisodeSpec]) -> int:
        """Forget the episodes of these very specs; the tokens that were sampled for them."""
        wanted, tokens = set(map(id, specs)), 0
        running: tuple[dict[Any, _Episode], ...] = (self.in_environment, self.in_sampler)
        for where in running:
            for key in [k for k, e in where.items() if id(e.trajectory.spec) in wanted]:
                episode = where.pop(key)
                tokens += episode.trajectory.sampled_tokens
                self.pool.submit(episode.slot, "close")
        self.due = [r for r in self.due if r.id in self.in_sampler]
        return tokens


class Stream:
    """See above. ``open_environment`` gives a pool and a renderer for a name; what it gives is closed with the stream.

    ``tries``: how often an episode is played at most, by who failed it; ``pause``: seconds before the next try, after so many
    failures. ``lockstep`` plays all that waits as ``play`` does in lock-step, then looks again. Thread-safe. What goes wrong in
    the thread is raised by the next ``put`` or ``take``.
    """

    def __init__(
        self,
        open_environment: Callable[[str], tuple[Any, Renderer]],
        sampler: StreamSampler,
        limits: Limits,
        *,
        tries: Mapping[Blame, int] = ONCE_MORE,
        pause: Callable[[int], float] = lambda failures: 0.0,
        restart: bool = False,
        lockstep: bool = False,
    ) -> None:
        self._open_environment, self._sampler, self._limits = open_environment, sampler, limits
        self._tries, self._pause, self._restart, self._lockstep = tries, pause, restart, lockstep
        self._players: dict[str, _StreamPlayer] = {}
        self._changed = threading.Condition()
        self._waiting: deque[EpisodeSpec] = deque()
        self._later: list[tuple[float, EpisodeSpec]] = []  # to be played again, and not before when
        self._resting = False  # nothing to do until then
        self._open: dict[str, _Open] = {}
        self._of: dict[int, tuple[_Open, int]] = {}  # id of a spec -> its group, and its number there
        self._finished: list[Played] = []
        self._dropped: list[_Open] = []
        self._moves = self._lost = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="episode-stream", daemon=True)
        self._thread.start()

    # ---- what callers use

    def put(self, groups: Sequence[Group]) -> None:
        """Play ``groups``, in this order as far as there is room. Raises ValueError for an id that is being played already."""
        with self._changed:
            self._check()
            for group in groups:
                if group.id in self._open:
                    raise ValueError(f"group {group.id} is being played already")
                # Episodes are known by their spec's identity: a group that is given up and put again must not share them.
                mine = replace(group, specs=tuple(replace(spec) for spec in group.specs))
                opened = self._open[group.id] = _Open(mine)
                self._of |= {id(spec): (opened, number) for number, spec in enumerate(mine.specs)}
                self._waiting.extend(mine.specs)
            self._changed.notify_all()

    def take(self, seconds: float) -> list[Played]:
        """The groups that have finished, waiting up to ``seconds`` for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure or self._closed, seconds)
            self._check()
            found, self._finished = self._finished, []
            return found

    def drop(self, ids: Sequence[str]) -> None:
        """Give groups up; of one that is not being played nothing is to be given up."""
        with self._changed:
            for name in ids:
                opened = self._open.pop(name, None)
                if opened is not None:
                    self._dropped.append(opened)
            self._lost += sum(p.tokens for p in self._finished if p.id in ids)
            self._finished = [p for p in self._finished if p.id not in ids]
            self._changed.notify_all()

    def progress(self) -> dict[str, Any]:
        """``moves`` grows with every turn and every answer of an environment; ``busy``: whether it should. ``waiting`` is
        'sampler' where only that can go on; ``slowest``: the episodes under way that began first."""
        players = list(self._players.values())
        slowest = [episode for player in players for episode in Watch(player).slowest()]
        only_sampler = any(p.in_sampler for p in players) and not any(p.in_environment for p in players)
        waiting = "sampler" if only_sampler else ""
        busy = bool(self._open) and not self._resting
        return {"moves": self._moves, "busy": busy, "waiting": waiting, "slowest": slowest}

    def close(self) -> None:
        """End the thread and the environments. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # ---- the thread

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RuntimeError("the stream of episodes is closed")

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                if self._lockstep:
                    self._play_in_lockstep()
                else:
                    self._turn()
        except BaseException as e:  # whatever it is, nobody may be left waiting
            with self._changed:
                self._failure = e
                self._changed.notify_all()
        finally:
            for player in self._players.values():
                player.pool.close()  # type: ignore[attr-defined]

    def _wait_for_work(self) -> bool:
        """False: closed."""
        with self._changed:
            while True:
                left = self._recall()
                if self._closed or self._waiting or self._dropped or any(p.running for p in self._players.values()):
                    return not self._closed
                self._resting = left is not None
                self._changed.wait(left)
                self._resting = False

    def _recall(self) -> float | None:
        """Put what is to be played again, and has waited, first in the line. Called with the lock.

        Returns the seconds until the next is due, None where there is none.
        """
        if not self._later:
            return None
        now = time.monotonic()
        self._waiting.extendleft(spec for due, spec in self._later if due <= now)
        self._later = [(due, spec) for due, spec in self._later if due > now]
        return min((due - now for due, _ in self._later), default=None)

    def _turn(self) -> None:
        """One turn of the pump, as in ``play``."""
        self._give_up_dropped()
        self._begin()
        players = list(self._players.values())
        ended: list[Trajectory | None] = []
        sampling = any(p.in_sampler for p in players)
        for player in players:
            if player.in_environment:
                wait = 0.0 if sampling else _LOOK_UP
                ended += self._answered(player, wait)
            while player.in_environment and len(player.in_environment) > len(player.in_sampler):
                answered = self._answered(player, _LINGER)
                if not answered:
                    break
                ended += answered
        if any(p.in_sampler for p in players):
            due = [request for p in players for request in p.due]
            for player in players:
                player.due = []
            wait = _LOOK_UP if any(p.in_environment for p in players) else _IDLE
            done = self._sampler.exchange(due, wait)
            self._moves += len(done)
            ended += [player.take_completion(c) for player in players for c in done]
        for trajectory in ended:
            if trajectory is not None:
                self._end(trajectory)
        for player in players:
            for spec, tokens in player.restarts:
                self._count_restart(spec, tokens)
            player.restarts.clear()

    def _answered(self, player: _StreamPlayer, wait: float) -> list[Trajectory | None]:
        """What the environments answered: for each answer the episode that it ended, if it did."""
        results = player.pool.poll(wait)
        self._moves += len(results)
        return [player.take_result(slot, result) for slot, result in results]

    def _begin(self) -> None:
        room = self._limits.max_sequences - sum(p.sampling for p in self._players.values())
        while room > 0:
            with self._changed:
                if not self._waiting:
                    return
                spec = self._waiting.popleft()
                opened = self._of.get(id(spec))
            if opened is not None:
                self._player(opened[0].group.where).start(spec)
                room -= 1

    def _player(self, where: str) -> _StreamPlayer:
        if where not in self._players:
            self._players[where] = _StreamPlayer(*self._open_environment(where), self._limits, self._restart)
        return self._players[where]

    def _give_up_dropped(self) -> None:
        with self._changed:
            dropped, self._dropped = self._dropped, []
            for opened in dropped:
                mine = [s for s in opened.group.specs if self._of.get(id(s), (None, 0))[0] is opened]
                for spec in mine:
                    del self._of[id(spec)]
                gone = set(map(id, mine))
                self._waiting = deque(s for s in self._waiting if id(s) not in gone)
                self._later = [(due, s) for due, s in self._later if id(s) not in gone]
                self._lost += opened.wasted + sum(t.sampled_tokens for t in opened.results.values())
                if opened.group.where in self._players:
                    self._lost += self._players[opened.group.where].give_up(mine)

    def _end(self, trajectory: Trajectory) -> None:
        self._moves += 1
        with self._changed:
            opened, number = self._of.get(id(trajectory.spec), (None, 0))
            if opened is None:
                return
            failure, tries = trajectory.failure, 1 + opened.tries.get(number, 0)
            if failure and tries < self._tries.get(failure.blame, 0):
                opened.tries[number] = tries
                opened.wasted += trajectory.sampled_tokens
                self._later.append((time.monotonic() + self._pause(tries), trajectory.spec))
                return
            opened.results[number] = trajectory
            self._finish(opened)

    def _count_restart(self, spec: EpisodeSpec, tokens: int) -> None:
        with self._changed:
            if id(spec) in self._of:
                opened, _ = self._of[id(spec)]
                opened.restarted += 1
                opened.wasted += tokens
                self._waiting.appendleft(spec)

    def _finish(self, opened: _Open) -> None:
        """Hand a group over if all of its episodes have ended. Called with the lock."""
        specs = opened.group.specs
        if len(opened.results) < len(specs) or self._open.get(opened.group.id) is not opened:
            return
        del self._open[opened.group.id]
        for spec in specs:
            del self._of[id(spec)]
        trajectories = [opened.results[i] for i in range(len(specs))]
        wasted, self._lost = opened.wasted + self._lost, 0
        self._finished.append(Played(opened.group.id, trajectories, len(opened.tries), opened.restarted, wasted))
        self._changed.notify_all()

    def _play_in_lockstep(self) -> None:
        self._give_up_dropped()
        with self._changed:
            if not self._waiting:
                return
            planned = [spec for opened in self._open.values() for spec in opened.group.specs]
            order = {id(spec): n for n, spec in enumerate(planned)}  # also of those that are played again
            queue = sorted(self._waiting, key=lambda s: order[id(s)])
            first = self._of[id(queue[0])][0].group.where
            specs = [s for s in queue if self._of[id(s)][0].group.where == first]
            self._waiting = deque(s for s in queue if self._of[id(s)][0].group.where != first)
        player, limits = self._player(first), self._limits
        for trajectory in play(
            specs,
            player.pool,
            player.renderer,
            cast(Any, _Patient(self._sampler)),
            max_turns=limits.max_turns,
            max_tokens_per_turn=limits.max_tokens_per_turn,
            max_model_len=limits.max_model_len,
            concurrency=limits.max_sequences,
            lockstep=True,
        ):
            self._end(trajectory)


class _Patient:
    """A stream's sampler as ``play`` wants it."""

    def __init__(self, sampler: StreamSampler) -> None:
        self._sampler = sampler

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        done = self._sampler.exchange(requests, _IDLE)
        while not done:
            done = self._sampler.exchange([], _IDLE)
        return done
