"""A death at any call that the loop makes, before it is done or just after: the run ends with the same adapter and ledger.

Here without processes, so that every single place can be tried; ``test_kills`` kills real ones at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Task
from frontier_tune.orchestration import recover
from frontier_tune.orchestration.audit import audit, planned_groups
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.events import Events
from frontier_tune.orchestration.groups import GroupPlan
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.loop import Loop
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.stop import StopRequest
from frontier_tune.orchestration.supervise import Supervisor
from tests.faults import standin
from tests.faults.conftest import FULL

STEPS = 3
TASKS = [Task("word", "train", {"number": n, "side": "train"}) for n in range(40)]


class Mortal(standin.Local):
    """An actor that dies at the crew's ``fatal``-th call, if that is to it: what it knew is gone with it."""

    def __init__(self, role: str, crew: MortalCrew) -> None:
        super().__init__(None)
        self._role, self._crew = role, crew

    def submit(self, method: str, *args: Any) -> Any:
        if self._thing is None:
            raise ActorDied.of(self._role, f"the {self._role} is dead")
        self._crew.tick(self)
        found = getattr(self._thing, method)(*args)
        self._crew.tick(self)
        return found

    def __getattr__(self, method: str) -> Any:
        return lambda *args: self.submit(method, *args)


class MortalCrew:
    def __init__(self, episodes: standin.Episodes, fatal: int) -> None:
        self._play, self.fatal, self.calls, self.died = episodes, fatal, 0, ""
        self.sampler, self.episodes, self.learner = (Mortal(role, self) for role in ("sampler", "episodes", "learner"))
        self.start_roles({"sampler", "episodes", "learner"})

    def tick(self, actor: Mortal) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            self.died, actor._thing = actor._role, None
            raise ActorDied.of(actor._role, f"the {actor._role} died at call {self.calls}")

    def dead(self, error: ActorDied) -> set[str]:
        return {error.role} | {a._role for a in (self.sampler, self.episodes, self.learner) if a._thing is None}

    def start_roles(self, roles: set[str]) -> None:
        if "sampler" in roles:
            self.sampler._thing = standin.Sampler()
        if "episodes" in roles:
            self.episodes._thing = self._play
        if "learner" in roles:
            self.learner._thing = standin.Learner()
        self._play._side = self.sampler  # type: ignore[assignment]


def run_through(recipe: recipes.Recipe, home: Path, episodes: standin.Episodes, fatal: int) -> MortalCrew:
    """A whole training as ``tune`` supervises it."""
    crew, run, section = MortalCrew(episodes, fatal), RunDir(home), recipe.algorithm
    plan = GroupPlan(TASKS, recipe.seed, section.groups_per_step, section.group_size, recipe.sampler.temperature)
    ready: Any = SimpleNamespace(recipe=recipe)
    state, at = LoopState(), None

    def same(version: int) -> dict[str, float]:
        assert crew.sampler.resident(version) == crew.learner.digests("float32")
        return {}

    def train(tries: int) -> None:
        if at is not None:
            crew.learner.load(str(at / "learner"))
        state.version = max(1, state.version)
        if crew.sampler.version() != state.version:
            crew.learner.save_adapter(str(run.adapter_version(state.version)))
            crew.sampler.sync(str(run.adapter_version(state.version)), state.version)
        gate: Any = SimpleNamespace(check=same)
        Loop(recipe, run, crew, plan, None, gate, state, lambda row: None, StopRequest()).train()  # type: ignore[arg-type]
        crew.learner.save_adapter(str(run.adapter))

    def mend(error: ActorDied) -> None:
        nonlocal state, at
        state, at = recover.go_back(error, ready, run, crew, lambda text: None)  # type: ignore[arg-type]

    Supervisor(recipe.reliability, Events(run.events), lambda text: None, lambda: None).run(train, mend)
    return crew


@pytest.fixture
def episodes(workspace: Path) -> Iterator[standin.Episodes]:
    recipe = standin.recipe_of(workspace)
    found = standin.Episodes("", recipe, str(workspace), {"workflow": ("envs/echo", {"company_seed": standin.GREEN})}, None, None)  # type: ignore[arg-type]
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every", [2, 1] if FULL else [2])
def test_a_death_at_any_call_changes_nothing(workspace: Path, episodes: standin.Episodes, checkpoint_every: int) -> None:
    recipe = standin.recipe_of(workspace, run={"steps": STEPS, "checkpoint_every": checkpoint_every})
    whole = run_through(recipe, workspace / "whole", episodes, 0)
    adapter, ledger = standin.read(workspace / "whole" / "adapter"), (workspace / "whole" / "ledger.jsonl").read_bytes()
    died = set()
    for fatal in range(1, whole.calls + 1):
        home = workspace / f"fatal-{fatal}"
        crew = run_through(recipe, home, episodes, fatal)
        died.add(crew.died)
        assert standin.read(home / "adapter") == adapter, f"a death of the {crew.died} at call {fatal}"
        assert (home / "ledger.jsonl").read_bytes() == ledger, f"a death of the {crew.died} at call {fatal}"
        assert audit(home / "ledger.jsonl", planned_groups(recipe, STEPS)).complete
    assert died - {""} == {"sampler", "episodes", "learner"}  # "": turns fell into fewer exchanges than in the whole run
