"""Checked task sets: what an author's ``tasks`` returned, refused before anything trains on it."""

from __future__ import annotations

from collections.abc import Sequence

from frontier_tune.contracts import BadInput, Task
from frontier_tune.sdk.env import Split, WorkflowEnv


def draw_tasks(env: WorkflowEnv, split: Split, n: int, seed: int) -> list[Task]:
    """``env.tasks(split, n, seed)``, checked. Raises BadInput where there are fewer than ``n``, duplicates or another split's."""
    tasks = list(env.tasks(split, n, seed))
    where = f"{env.name}.tasks('{split}', {n}, seed={seed})"
    if len(tasks) != n:
        raise BadInput(f"{where} returned {len(tasks)} tasks; ask for fewer (environment.{split}_tasks) or extend the generator")
    wrong = next((t for t in tasks if t.split != split), None)
    if wrong:
        raise BadInput(f"{where}: task {wrong.hash} says split '{wrong.split}'")
    seen: dict[str, int] = {}
    for i, task in enumerate(tasks):
        if task.hash in seen:
            raise BadInput(f"{where}: tasks {seen[task.hash]} and {i} are the same ({task.kind}, {task.hash})")
        seen[task.hash] = i
    return tasks


def check_disjoint(train: Sequence[Task], heldout: Sequence[Task]) -> None:
    """Raises BadInput where a held-out task, or a held-out task's layout family, also trains."""
    trained = {t.hash for t in train}
    families = {t.family for t in train if t.family}
    for task in heldout:
        if task.hash in trained:
            raise BadInput(f"held-out task {task.hash} ({task.kind}) is also a training task; the split leaks")
        if task.family in families:
            raise BadInput(f"held-out task {task.hash} has the layout family '{task.family}', which also trains; the split leaks")
