"""A crew whose actors die while they start: the others are met all the same, and the dead are replaced within the budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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

    forgot: tuple[object, ...] = ()

    def kill(self) -> None:
        pass

    def forget(self, kept: Sequence[str]) -> None:
        if self.actor != STANDS:
            raise ActorDied.of(self.role, f"the {self.role} died")
        self.forgot += (tuple(kept),)

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


def test_a_sampler_that_lives_on_forgets_the_episodes_that_died() -> None:
    """What they had in flight would count as its load for the rest of the run, and be kept for nobody."""
    crew, _ = crew_of()
    sampler: Any = crew.sampler
    crew.start_roles(ROLES)
    crew.start_roles({LEARNER})
    assert sampler.forgot == ()
    crew.start_roles({EPISODES})
    assert sampler.forgot == (("", "gate"),)  # but the parity gate, which asks from the command
    crew.start_roles({EPISODES, SAMPLER})
    assert len(sampler.forgot) == 1


def test_who_was_ended_for_others_that_could_not_be_hired_is_dead() -> None:
    """Also on another node, where nobody here sees its process."""
    crew, hired = crew_of()
    crew.start_roles(ROLES)
    crew.sampler.put(KILLED)
    crew.sampler.met = True  # as far as is known
    with pytest.raises(ActorDied, match="the sampler died") as died:
        crew.start_roles({EPISODES})
    assert crew.dead(died.value) == {SAMPLER, EPISODES} and hired == list(ROLES)
