"""``frontier-tune headroom``: the base of a recipe on some of its training tasks, greedily and in groups as in training."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, EpisodeSpec, LimitReached, Task
from frontier_tune.evaluation.headroom import Headroom
from frontier_tune.evaluation.headroom import measure as figures
from frontier_tune.orchestration import preflight
from frontier_tune.orchestration import tune as runs
from frontier_tune.orchestration.batch import play
from frontier_tune.orchestration.groups import derive_seed
from frontier_tune.orchestration.retry import Retry
from frontier_tune.orchestration.run_dir import RunDir, write_whole
from frontier_tune.orchestration.stop import StopRequest

FILE = "headroom.json"


def measure(
    recipe_file: Path, overrides: Sequence[str], tasks: int, tries: int | None, note: runs.Note
) -> tuple[Headroom, dict[str, Any], Path]:
    """Figures, the content of headroom.json, and the directory that holds it with every episode.

    Training tasks are used: held-out ones stay unseen by whoever decides. Raises BadInput for a recipe that could not train,
    LimitReached where too many episodes failed through no fault of the agent.
    """
    recipe = recipes.load(recipe_file, overrides)
    tries = tries or recipe.algorithm.group_size
    if tasks < 2 or tries < 2:
        raise BadInput(f"headroom: {tasks} tasks with {tries} tries each tell nothing; take at least 2 of both")
    ready = preflight.check(recipe, recipe_file)
    chosen = ready.train[:tasks]
    if len(chosen) < tasks:
        raise BadInput(f"headroom: {tasks} tasks asked for, environment.train_tasks is {len(chosen)}; raise it or lower --tasks")
    run = RunDir(ready.root / "runs" / f"headroom-{ready.name}")
    with run.lock(), StopRequest() as stop, runs.crew_of(ready, run, note, learn=False, stop=stop) as crew:
        note(f"{tasks} training tasks: once greedily, {tries} times sampled")
        retry = Retry.of(recipe)
        at_once, _ = play(crew.episodes, specs(chosen, 1, 0.0), stop.check, retry=retry)
        started = time.monotonic()
        sampled, _ = play(crew.episodes, specs(chosen, tries, recipe.sampler.temperature), stop.check, retry=retry)
        seconds = time.monotonic() - started
    lost = sum(not t.trainable for t in (*at_once, *sampled)) / (len(at_once) + len(sampled))
    if lost > recipe.run.max_failure_share:
        worst = next(t.failure for t in (*at_once, *sampled) if t.failure and not t.trainable)
        raise LimitReached(f"headroom: {lost:.0%} of the episodes were not graded: {worst.kind}: {worst.detail}")
    run.write_rollouts("greedy", at_once)
    run.write_rollouts("sampled", sampled)
    found = figures(at_once, sampled)
    step = recipe.algorithm.groups_per_step * recipe.algorithm.group_size
    cost = {
        "episodes_a_step": step,
        "tokens_a_step": step * found.tokens,
        "tokens_in_all": recipe.run.steps * step * found.tokens,
        "sampling_minutes_in_all": recipe.run.steps * step * seconds / len(sampled) / 60,
    }
    content = {
        "recipe": str(recipe_file),
        "base": recipe.base,
        "environment": recipe.environment.path,
        "tasks": tasks,
        "temperature": recipe.sampler.temperature,
        **found.to_json(),
        "cost": cost,
    }
    write_whole(run.root / FILE, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return found, content, run.root


def specs(tasks: Sequence[Task], tries: int, temperature: float) -> list[EpisodeSpec]:
    """``tries`` episodes for each task, group by group, with seeds of their own. [len(tasks) * tries]"""
    return [
        EpisodeSpec(task, group, member, derive_seed("headroom", task.hash, member, f"{temperature:g}"), temperature)
        for group, task in enumerate(tasks)
        for member in range(tries)
    ]
