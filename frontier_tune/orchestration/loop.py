"""The loop: plan groups, play them, learn from what scored, sync the adapter, prove the sync, write it down. Synchronous GRPO."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from frontier_tune.contracts import GateFailed, LimitReached
from frontier_tune.orchestration import checkpoint
from frontier_tune.orchestration.actors import Crew
from frontier_tune.orchestration.batch import Batch, collect
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.parity import ParityGate
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.stop import Stopped, StopRequest
from frontier_tune.recipe import Recipe

RUNNING = 5  # steps that the running success is a mean of
GRACEFUL = (Stopped, LimitReached)  # raised between updates: what the learner holds is the state of a whole step


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
    _phases: dict[str, float] = field(default_factory=dict)

    def train(self) -> LoopState:
        """Raises Stopped (saved), LimitReached (saved), GateFailed (not saved: the last checkpoint stands)."""
        try:
            while self.state.step < self.recipe.run.steps and not self._good_enough():
                self.stop.check()
                self._within_limits()
                self._step()
                if self.state.step % self.recipe.run.checkpoint_every == 0:
                    self.save()
        except GRACEFUL:
            self.save()
            raise
        self.save()
        return self.state

    def _step(self) -> None:
        began, number = time.monotonic(), self.state.step + 1
        self._phases = {}

        with self._phase("sampling"):
            batch = collect(self.crew.episodes, self.plan.step(self.state.step), every=self.stop.check)
            batches = [batch, *self._rehearse()]
        self.run.write_rollouts(f"step-{number:05d}", batch.trajectories)
        for played in batches:
            self._on_policy(played)
            self._within_failures(played)

        metrics: dict[str, Any] = {}
        if any(b.has_signal(self.recipe.algorithm) for b in batches):  # without a difference inside a group nothing is taught
            scale = self.recipe.algorithm.scale_by_std
            with self._phase("learning"):
                trainable = [t for b in batches for t in b.trainable]
                metrics |= self.crew.learner.update(trainable, [a for b in batches for a in b.advantages(scale)])
            metrics |= self._hand_over()
        for rehearsed in batches[1:]:
            metrics |= {"rehearsal_success": rehearsed.success, "rehearsal_tokens": rehearsed.tokens_sampled}

        seconds = time.monotonic() - began
        self.state.add(number, batches, seconds, RUNNING)
        row = {
            "step": number,
            "time": time.time(),
            "seconds": seconds,
            **batch.metrics(seconds),
            **metrics,
            "phases": self._phases,
        }
        try:
            if self.probe and number % self.recipe.run.eval_every == 0:
                row["probe"] = self.probe(number)
        finally:  # the step is done and counted, also where its probe was stopped
            self.log(row)

    def _rehearse(self) -> list[Batch]:
        """General tasks besides, if the recipe asks for them: groups that all succeed teach nothing, lost skills come back."""
        if self.rehearsal is None:
            return []
        return [collect(self.crew.episodes, self.rehearsal.step(self.state.step), self.stop.check, "general")]

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
        self.run.prune_versions()
        return {"parity": found}

    def save(self) -> None:
        """A checkpoint of everything that the next step depends on."""
        checkpoint.save(self.run.checkpoints, self.state, self.recipe, self.crew.learner.save)

    def _good_enough(self) -> bool:
        goal, recent = self.recipe.run.stop_at_success, self.state.recent_success
        return goal is not None and len(recent) == RUNNING and sum(recent) / RUNNING >= goal

    def _on_policy(self, batch: Batch) -> None:
        """Every token is of the policy that was synced last: the ratio of the loss is taken against that one."""
        others = sorted({v for t in batch.trainable for v, m in zip(t.versions, t.mask, strict=True) if m} - {self.state.version})
        if others:
            raise GateFailed(
                f"sampling: the step has tokens of policy versions {others}, but {self.state.version} was synced last"
            )

    def _within_limits(self) -> None:
        run, state = self.recipe.run, self.state
        if run.max_tokens is not None and state.tokens_sampled >= run.max_tokens:
            raise LimitReached(f"budget used up: {state.tokens_sampled:,} tokens sampled, run.max_tokens is {run.max_tokens:,}")
        if run.max_hours is not None and state.seconds >= run.max_hours * 3600:
            raise LimitReached(f"budget used up: {state.seconds / 3600:.2f} h of training, run.max_hours is {run.max_hours:g}")

    def _within_failures(self, batch: Batch) -> None:
        share, most = batch.failure_share, self.recipe.run.max_failure_share
        if share > most:
            raise LimitReached(
                f"{share:.0%} of the step's episodes failed through no fault of the agent (run.max_failure_share is {most:.0%}); "
                f"most often: {batch.worst_failure()}. The step was not trained on"
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - began
