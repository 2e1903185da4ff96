"""A crew whose actors die while they start: the others are met all the same, and the dead are replaced within the budget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration.crew import EPISODES, LEARNER, SAMPLER, Crew
from frontier_tune.orchestration.events import Events
from frontier_tune.orchestration.handle import ActorDied, Handle
from frontier_tune.orchestration.supervise import Supervisor

ROLES = (SAMPLER, EPISODES, LEARNER)
STANDS, KILLED, BROKEN = "stands", "killed", "broken"


class Starting(Handle):
    """A handle to an actor that is its own fate."""

    def kill(self) -> None:
        pass

    def started(self) -> tuple[str, int]:
        if self.actor == STANDS:
            return "elsewhere", 1
        error = ActorDied.of(self.role, f"the {self.role} died")
        error.lives = self.actor == BROKEN
        raise error


def crew_of(**fates: Iterable[str]) -> tuple[Crew, list[str]]:
    """``fates`` of the actors of a role, in the order in which they are hired; from then on they stand."""
    left, hired = {role: list(fates.get(role, ())) for role in ROLES}, list[str]()

    def hire(role: str) -> str:
        hired.append(role)
        return left[role].pop(0) if left[role] else STANDS

    sampler, episodes, learner = (Starting(None, "engine.log", role) for role in ROLES)
    return Crew(episodes, sampler, learner, {role: lambda role=role: hire(role) for role in ROLES}), hired  # type: ignore[misc]


def supervisor(directory: Path, restarts: int = 5) -> Supervisor:
    limits = recipes.parse({"reliability": {"backoff_s": 0, "restarts": restarts}}).reliability
    return Supervisor(limits, Events(directory / "events.jsonl"), lambda text: None, lambda: None)


def test_who_came_to_stand_beside_one_that_died_is_known_and_who_did_not_is_dead() -> None:
    crew, _ = crew_of(sampler=[KILLED], learner=[KILLED])
    with pytest.raises(ActorDied, match="the sampler died") as died:
        crew.start_roles(ROLES)
    assert crew.episodes.met and crew.dead(died.value) == {SAMPLER, LEARNER}
    crew.start_roles({SAMPLER, LEARNER})
    assert crew.dead(ActorDied.of(EPISODES, "gone")) == {EPISODES}


@pytest.mark.parametrize(
    ("fates", "again"),
    [
        ({"learner": [KILLED, KILLED]}, [LEARNER, LEARNER]),
        ({"learner": [BROKEN]}, [LEARNER]),
        ({"sampler": [KILLED]}, [SAMPLER, EPISODES]),  # whose episodes hold the dead one
        ({"sampler": [KILLED], "learner": [KILLED]}, [SAMPLER, EPISODES, LEARNER]),
    ],
)
def test_a_death_while_a_run_starts_is_mended(tmp_path: Path, fates: dict[str, list[str]], again: list[str]) -> None:
    crew, hired = crew_of(**fates)
    crew.start_all(ROLES, supervisor(tmp_path))
    assert hired == [*ROLES, *again] and all(h.met for h in crew.handles)


def test_a_crew_that_never_stands_ends_the_run(tmp_path: Path) -> None:
    crew, hired = crew_of(sampler=[KILLED] * 9)
    with pytest.raises(LimitReached, match=r"restarts allows no more"):
        crew.start_all({SAMPLER, EPISODES}, supervisor(tmp_path, restarts=2))
    assert hired == [SAMPLER, EPISODES] * 3  # no learner where none was asked for


def test_what_can_not_start_is_not_tried_for_ever(tmp_path: Path) -> None:
    """An engine that refuses its settings does so each time; nobody has killed it."""
    crew, hired = crew_of(sampler=[BROKEN] * 9)
    with pytest.raises(LimitReached, match="the sampler died\nthe sampler did not start, twice in a row"):
        crew.start_all(ROLES, supervisor(tmp_path))
    assert hired == [*ROLES, SAMPLER, EPISODES]
