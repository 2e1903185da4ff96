"""The loop: plan groups, play them, learn from what scored, sync the adapter, prove the sync, write it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from frontier_tune.algorithms import registry
from frontier_tune.algorithms.base import Algorithm
from frontier_tune.contracts import EpisodeSpec, GateFailed, LimitReached
from frontier_tune.orchestration import checkpoint, limits
from frontier_tune.orchestration.batch import Batch
from frontier_tune.orchestration.batches import Source, Synchronous, numbered
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.crew import Crew
from frontier_tune.orchestration.dynamic import informative, top_up
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.ledger import Ledger
from frontier_tune.orchestration.parity import ParityGate
from frontier_tune.orchestration.retry import Retry
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.status import Status
from frontier_tune.orchestration.stop import Stopped, StopRequest
from frontier_tune.recipe import Recipe, full

RUNNING = 5  # steps that the running success is a mean of
GRACEFUL = (Stopped, LimitReached)  # of several samplers the last death may come in the middle of a step; else between two


@dataclass
class Loop:
    """One training run. ``state`` is where it stands; ``train`` brings it to the recipe's last step."""

    recipe: Recipe
    run: RunDir
    crew: Crew
    plan: GroupPlan
    rehearsal: GroupPlan | None
    gate: ParityGate
    state: LoopState
    log: Callable[[dict[str, Any]], None]
    stop: StopRequest
    probe: Callable[[int], dict[str, Any]] | None = None
    overlapped: Source | None = None
    ledger: Ledger = None  # type: ignore[assignment]  # where none is given, the run's, as it stood at ``state``
    status: Status = field(default_factory=Status)
    checkpoint_bytes: int = 0  # of one, as planned: asked for before the first, whose like does not lie there yet
    _whole: bool = True  # the learner holds ``state``, not a part of the step after it
    _phases: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ledger is None:
            self.ledger = Ledger.open(self.run.ledger, self.state.ledger)

    def train(self) -> LoopState:
        """Raises Stopped, LimitReached (saved, but for one in the middle of a step), GateFailed (not saved: the last checkpoint
        stands), ActorDied (saved where the learner lives and isn't in the middle of a step)."""
        try:
            while self.state.step < self.recipe.run.steps and not self._good_enough():
                self.stop.check()
                self._within_limits()
                self._step()
                if self.state.step % self.recipe.run.checkpoint_every == 0:
                    self.save()
        except GRACEFUL:
            if self._whole:
                self.save()
            raise
        except ActorDied as e:
            if self._whole and e.role != "learner":
                with suppress(ActorDied):
                    self.save()
            raise
        self.save()
        return self.state

    def _step(self) -> None:
        began, number = time.monotonic(), self.state.step + 1
        self._phases = {}

        with self._phase("sampling"):
            batch = self.source.workflow(self.state.step)
            more, rehearsed = self._top_up(batch, began), self.source.rehearsal(self.state.step)
        self._write([batch, *more])
        self._accept([batch, *more])
        self._accept(rehearsed)

        metrics: dict[str, Any] = {}
        chosen = informative([batch, *more], self.plan.groups_per_step) if more else batch
        learned = [b for b in (chosen, *rehearsed) if b.trajectories]
        taught = any(b.has_signal(self.algorithm) for b in learned)  # without a difference in the rewards nothing is taught
        self._whole = False
        self.state.silent = 0 if taught else self.state.silent + 1
        if taught:
            with self._phase("learning"):
                metrics |= self.crew.learner.learn(numbered(learned), number - 1)
            metrics |= self._hand_over()
        played = [t for b in (batch, *more, *rehearsed) for t in b.trajectories]
        given = [t for b in learned for t in b.trajectories]
        idle = "no update was taken" if taught else "no difference in the step's rewards"
        updated = taught and metrics.get("updates", 1) > 0  # else none was finite, and nothing was learned from these
        self.state.dropped += self.ledger.settle(number, self.state.version if updated else None, played, given, idle)
        metrics |= self.source.learned(self.state)
        for general in rehearsed:
            metrics |= {"rehearsal_success": general.success, "rehearsal_tokens": general.tokens_sampled}
        if more:
            metrics |= {"dynamic_rounds": len(more), "dynamic_tokens": sum(b.tokens_sampled for b in more)}
        thrown_away = sum(b.tokens_retried for b in (batch, *more, *rehearsed))
        if thrown_away:
            metrics["retried_tokens"] = thrown_away

        seconds = time.monotonic() - began
        self.state.add(number, [batch, *rehearsed, *more], seconds, RUNNING)
        self.state.tokens_sampled += thrown_away
        self.state.ledger = self.ledger.mark
        self._whole = True
        row = {
            "step": number,
            "time": time.time(),
            "seconds": seconds,
            **batch.metrics(seconds),
            **metrics,
            **limits.spent(self.recipe, self.state.tokens_sampled, self.state.seconds),
            "restarts": self.status.restarts,
            "dropped_groups": self.state.dropped,
            "silent_steps": self.state.silent,
            "phases": self._phases,
        }
        try:
            if self.probe and number % self.recipe.run.eval_every == 0:
                row["probe"] = self.probe(number)
        finally:  # the step is done and counted, also where its probe was stopped
            self.log(row)

    @cached_property
    def source(self) -> Source:
        """Groups played for the step that learns from them, unless they overlap with learning (``run.staleness``)."""
        return self.overlapped or Synchronous(
            self.crew.episodes, self.plan, self.rehearsal, self.stop.check, self.ledger, Retry.of(self.recipe)
        )

    @cached_property
    def algorithm(self) -> Algorithm:
        return registry.build(self.recipe)

    def _top_up(self, batch: Batch, began: float) -> list[Batch]:
        """What was played in place of groups whose rewards are all equal, if the algorithm asks for it.

        A round is played only where what the step has so far is fit to learn from, else LimitReached or GateFailed is raised as
        for any step. A used-up budget ends the rounds: the step learns from what it has, and the run stops before the next one.
        """
        rounds = getattr(self.algorithm, "dynamic_sampling", 0)
        taken = self.plan.groups_per_step + (self.rehearsal.groups_per_step if self.rehearsal else 0)
        played = [batch]

        def play(specs: Sequence[EpisodeSpec]) -> Batch:
            played.append(self.source.more(specs))
            return played[-1]

        def go_on() -> bool:
            self._accept(played)
            return self._used_up(sum(b.tokens_spent for b in played), time.monotonic() - began) is None

        try:
            more = top_up(batch, self.plan, self.state.step, rounds, taken, play, go_on)
            if more:
                self._accept(played)
        except (GateFailed, LimitReached):
            self._write(played)  # whoever looks for the cause finds the episodes
            raise
        return more

    def _hand_over(self) -> dict[str, Any]:
        """The learner's new adapter becomes the sampler's policy, as a version of its own, and the gate proves it."""
        state, found = self.state, dict[str, float]()
        state.version += 1
        state.syncs += 1
        path = str(self.run.adapter_version(state.version))
        if state.syncs % self.recipe.parity.canary_every == 0:
            with self._phase("parity"):
                found |= self.gate.canary(state.version, str(self.run.canary(state.version)))
        with self._phase("sync"):
            self.crew.learner.save_adapter(path)
            self.crew.sampler.sync(path, state.version)
        with self._phase("parity"):
            found |= self.gate.check(state.version)
        # Of whole models the sampler has read all that it needs; of a canary, too.
        self.run.prune_versions(*([1] if full.whole(self.recipe) else []))
        return {"parity": found}

    def save(self) -> None:
        """A checkpoint of everything that the next step depends on; first the ledger, that its mark may point at."""
        self.ledger.sync()
        checkpoint.save(self.run.checkpoints, self.state, self.recipe, self.crew.learner.save, self.checkpoint_bytes)

    def _good_enough(self) -> bool:
        goal, recent = self.recipe.run.stop_at_success, self.state.recent_success
        return goal is not None and len(recent) == RUNNING and sum(recent) / RUNNING >= goal

    def _write(self, played: Sequence[Batch]) -> None:
        self.run.write_rollouts(f"step-{self.state.step + 1:05d}", [t for b in played for t in b.trajectories])

    def _accept(self, played: Sequence[Batch]) -> None:
        """Raises GateFailed or LimitReached where a step must not learn from what it has played of one kind of tasks."""
        for batch in played:
            self._fresh(batch)
        if played:
            self._within_failures(played)

    def _fresh(self, batch: Batch) -> None:
        """No token is of a policy older than ``run.staleness`` updates, 0: only of the one synced last; nor of any other's."""
        now, bound = self.state.version, self.recipe.run.staleness
        found = {v for t in batch.trainable for v, m in zip(t.versions, t.mask, strict=True) if m}
        others = sorted(v for v in found if not now - bound <= v <= now)
        if others:
            raise GateFailed(
                f"sampling: the step has tokens of policy versions {others}, but {now} was synced last"
                + (f" and run.staleness is {bound}" if bound else "")
            )

    def _within_limits(self) -> None:
        used_up = self._used_up()
        if used_up:
            raise LimitReached(f"budget used up: {used_up}")

    def _used_up(self, tokens: int = 0, seconds: float = 0.0) -> str | None:
        """Which budget is used up, if one is, after so many tokens and seconds of a step that isn't counted yet."""
        return limits.used_up(self.recipe, self.state.tokens_sampled + tokens, self.state.seconds + seconds, self.state.dropped)

    def _within_failures(self, played: Sequence[Batch]) -> None:
        """All batches as one: a round of one group says little about the infrastructure."""
        batch = Batch([t for b in played for t in b.trajectories], played[0].group_size)
        share, most = batch.failure_share, self.recipe.run.max_failure_share
        if share > most:
            raise LimitReached(
                f"{share:.0%} of the step's episodes failed through no fault of the agent (run.max_failure_share is {most:.0%}); "
                f"most often: {batch.worst_failure()}. The step was not trained on"
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self.status.phase(name, self.state)
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - began
