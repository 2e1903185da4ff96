"""Several episode actors as one: the batches of a single one. What a death does to a run: tests/faults/test_players.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune.contracts import EpisodeSpec, Trajectory
from frontier_tune.orchestration import players
from frontier_tune.orchestration.batch import collect
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.players import Players, deal
from frontier_tune.orchestration.retry import Retry
from tests.orchestration.test_batch import TASKS, infrastructure, played

SPECS = [EpisodeSpec(TASKS[0], g, m, seed=10 * g + m) for g in range(5) for m in range(3)]


class Actor:
    """One of several: plays backwards what it is given."""

    deadlines, on_beat = None, None

    def __init__(self, play: Callable[[EpisodeSpec], Trajectory]) -> None:
        self.play, self.given = play, list[list[EpisodeSpec]]()

    def submit(self, method: str, specs: Sequence[EpisodeSpec] = (), where: str = "") -> Any:
        self.given.append(list(specs))
        return SimpleNamespace(found=[self.play(s) for s in reversed(specs)] if method == "play" else method)

    def get(self, ref: Any) -> Any:
        return ref.found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is answered; the last one first."""
    monkeypatch.setattr(players, "ray", SimpleNamespace(wait=lambda refs, num_returns, timeout: (refs[-1:], refs[:-1])))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_groups_stay_whole_and_shares_are_even(count: int) -> None:
    shares = deal(SPECS, count)
    assert sorted((s for share in shares for s in share), key=SPECS.index) == SPECS
    owners = {g: {n for n, share in enumerate(shares) for s in share if s.group == g} for g in range(5)}
    assert all(len(found) == 1 for found in owners.values())
    assert max(map(len, shares)) - min(map(len, shares)) <= 3
    assert all(share == sorted(share, key=SPECS.index) for share in shares)


@pytest.mark.usefixtures("at_once")
def test_several_give_the_batch_of_a_single_one() -> None:
    def batch(count: int) -> tuple[Any, list[Actor]]:
        tries: dict[int, int] = {}

        def play(spec: EpisodeSpec) -> Trajectory:
            tries[spec.seed] = tries.get(spec.seed, 0) + 1
            return infrastructure(spec) if spec.group == 2 and tries[spec.seed] == 1 else played(spec, float(spec.member))

        actors = [Actor(play) for _ in range(count)]
        return collect(Players(actors), SPECS, lambda: None, retry=Retry(3)), actors  # type: ignore[arg-type]

    (one, _), (several, actors) = batch(1), batch(3)
    assert several == one and [t.spec for t in several.trajectories] == SPECS
    assert several.tries == {2: 1} and all(actor.given for actor in actors)


@pytest.mark.usefixtures("at_once")
def test_what_is_no_play_is_asked_of_the_first() -> None:
    actors = [Actor(played), Actor(played)]
    crowd = Players(actors)  # type: ignore[arg-type]
    assert crowd.wait(crowd.submit("canaries"), lambda: None) == "canaries"
    assert [len(a.given) for a in actors] == [1, 0]


@pytest.mark.usefixtures("at_once")
def test_status_hears_all_of_them() -> None:
    actors: list[Any] = [Actor(played), Actor(played)]
    crowd, heard = Players(actors), list[Any]()
    crowd.on_beat = heard.append
    asked = crowd.submit("play", SPECS, "workflow")
    for n, actor in enumerate(actors):
        actor.on_beat({"episodes": 1 + n, "slowest": [{"task": n, "seconds": 5.0 * n + s} for s in range(2)]})
    assert heard[-1]["episodes"] == 3 and [e["seconds"] for e in heard[-1]["slowest"]] == [6.0, 5.0, 1.0]
    crowd.wait(asked, lambda: None)
    actors[0].on_beat({"episodes": 0, "slowest": []})
    assert heard[-1] == {"episodes": 6, "slowest": []}  # of the second all that it was given
    crowd.submit("play", SPECS, "workflow")
    actors[0].on_beat({"episodes": 0, "slowest": []})
    assert heard[-1]["episodes"] == 0


@pytest.mark.usefixtures("at_once")
def test_the_first_death_ends_the_batch() -> None:
    def dies(ref: Any) -> Any:
        raise ActorDied.of("episodes 2", "gone")

    actors: list[Any] = [Actor(played), Actor(played)]
    actors[1].get = dies
    crowd = Players(actors)
    with pytest.raises(ActorDied, match="gone"):
        crowd.wait(crowd.submit("play", SPECS, "workflow"), lambda: None)
