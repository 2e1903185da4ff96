"""Where a run goes on from, and the others that take the place of processes that died."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from frontier_tune.orchestration import checkpoint
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.crew import EPISODES, LEARNER, SAMPLER, Crew
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.overlap_source import overlaps
from frontier_tune.orchestration.preflight import Ready
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.recipe import full

Note = Callable[[str], None]


def where(ready: Ready, run: RunDir, note: Note) -> tuple[LoopState, Path | None]:
    """The state to go on from: of the newest checkpoint, or the beginning where none was written yet."""
    if not any(run.checkpoints.glob("step-*")):
        note("no checkpoint was written yet: starting at step 1")
        run.rewind(0)
        return LoopState(), None
    path, state = checkpoint.newest(run.checkpoints, ready.recipe, note)
    run.rewind(state.step)
    note(f"resuming after step {state.step} of {ready.recipe.run.steps}")
    return state, path


def replace(error: ActorDied, crew: Crew, policy: tuple[str, int] | None = None) -> None:
    """Others in the place of the dead, outside of training. ``policy``: adapter and version that a new sampler is to serve."""
    roles = crew.dead(error)
    if SAMPLER in roles:
        roles |= {EPISODES}  # which would ask the old one
    crew.start_roles(roles)
    if SAMPLER in roles and policy:
        crew.sampler.sync(*policy)


def go_back(error: ActorDied, ready: Ready, run: RunDir, crew: Crew, note: Note) -> tuple[LoopState, Path | None]:
    """Others in the place of the dead, and the newest checkpoint to go on from (None: the beginning)."""
    roles = crew.dead(error)
    state, at = where(ready, run, note)
    if at is None:
        roles |= {LEARNER, SAMPLER}
    # A sampler that lives goes on where it serves the version to go on with: a version is never made twice in one sampler. Not
    # where requests of what is given up may still run in it beside those that come: of a stream, in lock-step, or where its only
    # model is replaced, which it refuses while any is open.
    if SAMPLER not in roles:
        r = ready.recipe
        alone = not (overlaps(r) or r.run.deterministic or (EPISODES in roles and full.whole(r)))
        if not alone or crew.sampler.version() != state.version:
            roles |= {SAMPLER}
    if SAMPLER in roles:
        roles |= {EPISODES}
    crew.start_roles(roles)
    return state, at
