"""Task sets: drawn from seeds for an author whose generator takes one, and checked before anything trains on them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frontier_tune.contracts import BadInput, Task
from frontier_tune.sdk.env import Split, WorkflowEnv


class SeededTasks:
    """Tasks that a generator builds again from a ``seed`` and a layout ``family``, which are their data.

    ``name``: the environment's. ``kinds`` take turns; a family is drawn from its split's in ``families``. Even seeds are for
    training and odd ones held out, so no task is in both splits; nor is a layout, where the splits' families differ.
    """

    def __init__(self, name: str, kinds: Iterable[str], families: Mapping[str, Iterable[str]]) -> None:
        self.name, self.kinds = name, tuple(kinds)
        self.families = {split: tuple(names) for split, names in families.items()}

    def draw(self, split: Split, n: int, seed: int) -> list[Task]:
        """``n`` distinct tasks; the first of a longer set are the shorter set of the same seed. Raises BadInput for no split."""
        if split not in self.families:
            raise BadInput(f"{self.name}: no split '{split}'; there are {', '.join(self.families)}")
        rng = random.Random(f"{self.name}/tasks/{split}/{seed}")
        tasks: dict[int, Task] = {}
        while len(tasks) < n:
            number = 2 * rng.randrange(2**40) + (split == "heldout")
            family = rng.choice(self.families[split])
            kind = self.kinds[len(tasks) % len(self.kinds)]
            tasks.setdefault(number, Task(kind, split, {"seed": number, "family": family}, family))
        return list(tasks.values())

    def read(self, task: Task) -> tuple[str, int, str]:
        """A task's kind, seed and family. Raises BadInput where it is not of this environment."""
        seed, family = task.data.get("seed"), task.data.get("family")
        known = any(family in names for names in self.families.values())
        if task.kind not in self.kinds or not _is_whole(seed) or not known:
            raise BadInput(f"{self.name}: no task of this environment: kind '{task.kind}', data {task.data}")
        return task.kind, seed, str(family)  # type: ignore[return-value]


def require_seed(environment: str, option: str, value: Any) -> int:
    """An environment's option that is a seed. Raises BadInput for what is no whole number of at least 0."""
    if not _is_whole(value) or value < 0:
        raise BadInput(f"{environment}: {option} is a whole number of at least 0, not {value!r}")
    return int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
