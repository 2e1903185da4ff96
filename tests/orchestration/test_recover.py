"""Who is replaced after a death, and where the run goes on from."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration import checkpoint, recover, tune
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.events import Events
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.run_dir import RunDir


class Crew:
    """Stands in for a crew whose sampler serves version 3."""

    def __init__(self, dead: set[str]) -> None:
        self._dead, self.started, self.synced = dead, set[str](), []  # type: ignore[var-annotated]
        self.sampler = SimpleNamespace(version=lambda: 3, sync=lambda *policy: self.synced.append(policy))

    def dead(self, error: ActorDied) -> set[str]:
        return set(self._dead)

    def start_roles(self, roles: set[str]) -> None:
        self.started = set(roles)


EVERYBODY = {"sampler", "episodes", "learner"}


@pytest.mark.parametrize(
    ("dead", "saved", "sections", "started"),
    [
        ({"episodes"}, 3, {}, {"episodes"}),  # the sampler serves the very version to go on with
        ({"episodes"}, 2, {}, {"episodes", "sampler"}),  # version 3 is to be made again
        ({"learner"}, 3, {}, {"learner"}),
        ({"sampler"}, 3, {}, {"sampler", "episodes"}),  # whose episodes would ask the old one
        ({"episodes"}, 3, {"run": {"deterministic": True}}, {"episodes", "sampler"}),  # nothing may run beside the next batch
        ({"episodes"}, 3, {"run": {"staleness": 1}}, {"episodes", "sampler"}),
        ({"episodes"}, 3, {"learner": {"trainable": "all"}}, {"episodes", "sampler"}),  # what is open keeps its model in place
        ({"learner"}, 3, {"learner": {"trainable": "all"}}, {"learner"}),
        ({"episodes"}, None, {}, EVERYBODY),  # no checkpoint: from the beginning
    ],
)
def test_as_few_as_possible_are_replaced(
    tmp_path: Path, dead: set[str], saved: int | None, sections: dict[str, Any], started: set[str]
) -> None:
    recipe, directory, said = recipes.parse(sections), RunDir(tmp_path), list[str]()
    if saved is not None:
        state = LoopState(step=saved, version=saved)
        checkpoint.save(directory.checkpoints, state, recipe, lambda d: Path(d, "weights").write_text("w"))
    crew: Any = Crew(dead)
    ready: Any = SimpleNamespace(recipe=recipe)
    found, at = recover.go_back(ActorDied.of("", "gone"), ready, directory, crew, said.append)
    assert crew.started == started
    assert found.step == (saved or 0) and (at is None) == (saved is None)


def test_a_new_sampler_gets_the_policy_that_it_is_to_serve() -> None:
    crew: Any = Crew({"sampler"})
    recover.replace(ActorDied.of("sampler", "gone"), crew, ("adapter", 9))
    assert crew.started == {"sampler", "episodes"} and crew.synced == [("adapter", 9)]
    crew = Crew({"episodes"})
    recover.replace(ActorDied.of("episodes", "gone"), crew, ("adapter", 9))
    assert crew.started == {"episodes"} and not crew.synced


def test_a_disk_without_room_for_the_last_event_does_not_hide_why_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(self: Events, event: str, **what: Any) -> None:
        if event == "limit":
            raise OSError(errno.ENOSPC, "No space left on device")

    def ended(*arguments: Any, **named: Any) -> Any:
        raise LimitReached("no room for a checkpoint")

    @contextmanager
    def crew(*arguments: Any, **named: Any) -> Iterator[Any]:
        yield SimpleNamespace(episodes=SimpleNamespace())

    monkeypatch.setattr(Events, "log", log)
    monkeypatch.setattr(tune, "crew_of", crew)
    monkeypatch.setattr(tune, "_before", ended)
    ready: Any = SimpleNamespace(recipe=recipes.parse({}), root=tmp_path)
    with pytest.raises(LimitReached, match="no room for a checkpoint"):
        tune.tune(ready, RunDir(tmp_path), lambda text: None)
