"""The crew of a run: its actors started side by side, the handles to them, and new ones in the place of dead ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration import actors, events, joined, learners, samplers
from frontier_tune.orchestration.handle import ActorDied, Deadlines, Handle
from frontier_tune.orchestration.overlap import share_threads
from frontier_tune.orchestration.plan import machine, placement
from frontier_tune.orchestration.players import Players
from frontier_tune.orchestration.seating import Seating
from frontier_tune.orchestration.supervise import Supervisor
from frontier_tune.recipe import Recipe
from frontier_tune.sampling.environment import engine_environment

SAMPLER, EPISODES, LEARNER = "sampler", "episodes", "learner"  # roles, in the order in which they start


def player(number: int) -> str:
    """What the ``number``-th episode actor (from 0) is called. All of them have the role EPISODES."""
    return EPISODES if number == 0 else f"{EPISODES} {number + 1}"


def role_of(name: str) -> str:
    return name.partition(" ")[0]


@dataclass
class Crew:
    """The actors of one run. ``learner`` is missing where nothing is trained (evaluation of an adapter).

    ``hire`` starts an actor by its name (a role; the second episode actor is ``episodes 2``), without waiting until it stands.
    Episode actors live and die together: they are at the same batch, and what one loses all play again.
    """

    episodes: Handle | Players
    sampler: Handle
    learner: Handle
    hire: Mapping[str, Callable[[], Any]]

    @classmethod
    def start(
        cls,
        base_dir: Path,
        recipe: Recipe,
        root: Path,
        environments: actors.Environments,
        log: Path,
        learn: bool = True,
        supervisor: Supervisor | None = None,
    ) -> Crew:
        """Start all at once (Ray must be up) and wait until they stand. Raises their typed errors.

        Who dies meanwhile is replaced within the budget of ``supervisor``; without one ActorDied is raised.
        """
        base, log_file, recipe = str(base_dir), str(log), share_threads(recipe)
        threads = {"OMP_NUM_THREADS": str(recipe.learner.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        threads["PYTHONPATH"] = str(root)  # where an algorithm of the workspace's own is imported from
        engine = engine_environment(recipe.sampler.threads)
        p = recipe.placement
        cluster, own = p.address is not None, joined.here() if p.address is not None else None
        seats = placement.of_a_run(p, len(machine.gpus()), recipe.learner.device)
        first, seating = seats.learners[0].gpus, Seating(seats, cluster)

        def sampler() -> Any:
            if p.samplers == 1 and not cluster:
                hired = actors.remote(actors.SamplerActor, engine, 8, None, seats.samplers[0].gpus)
                return hired.remote(base, recipe, log_file)
            fleet = actors.remote(samplers.Fleet, {"OMP_NUM_THREADS": "1"}, 12, own)
            return fleet.remote(base, recipe, log_file, p.samplers, str(log.parent / events.FILE), *seating.of_a_fleet())

        def play(number: int) -> Any:
            where = joined.elsewhere(number) if cluster else None
            hired = actors.remote(actors.EpisodeActor, {"OMP_NUM_THREADS": "1"}, 4, where)
            return hired.remote(base, recipe, "" if cluster else str(root), environments, crew.sampler.actor, log_file)

        def learner() -> Any:
            size = recipe.placement.learners
            if size == 1:
                return actors.remote(actors.LearnerActor, threads, 1, own, first).remote(base, recipe, log_file)
            group = actors.remote(learners.LearnerGroup, threads, 1, own, first)
            return group.remote(base, recipe, log_file, size, seating.of_learners(crew.sampler))

        hire: dict[str, Callable[[], Any]] = {
            SAMPLER: sampler,
            **{player(n): partial(play, n) for n in range(p.episode_actors)},
            LEARNER: learner,
        }
        crew = cls.of(hire, log_file, Deadlines.of(recipe), learn)
        crew.start_all({role_of(name) for name in hire if learn or name != LEARNER}, supervisor)
        return crew

    @classmethod
    def of(cls, hire: Mapping[str, Callable[[], Any]], log: str, deadlines: Deadlines, learn: bool = True) -> Crew:
        """A crew whose actors are still to be started (``start_roles``)."""
        sampler = Handle(None, log, SAMPLER, deadlines)
        players = [Handle(None, log, name, deadlines) for name in hire if role_of(name) == EPISODES]
        for one in players:
            one.peers = {SAMPLER: sampler}
        episodes = players[0] if len(players) == 1 else Players(players)
        return cls(episodes, sampler, Handle(None, log, LEARNER, deadlines), hire)

    @property
    def players(self) -> list[Handle]:
        """Of all episode actors."""
        return self.episodes.handles if isinstance(self.episodes, Players) else [self.episodes]

    def start_all(self, roles: Collection[str], supervisor: Supervisor | None = None) -> None:
        """Start actors of ``roles`` for the first time, see ``start``."""
        due, broken = set(roles), set[str]()

        def mend(error: ActorDied) -> None:
            nonlocal due
            if error.lives and error.role in broken:  # it was not killed, it can't start: so it will the next time
                raise LimitReached(f"{error}\nthe {error.role} did not start, twice in a row") from error
            broken.update({error.role} if error.lives else ())
            due = self.dead(error) & set(roles)
            if SAMPLER in due:
                due |= {EPISODES}  # which would ask the old one

        if supervisor is None:
            self.start_roles(due)
        else:
            supervisor.run(lambda _: self.start_roles(due), mend)

    def start_roles(self, roles: Collection[str]) -> None:
        """Start the actors of each role, in the place of those that are there, and wait until all stand.

        Raises ActorDied where one died meanwhile, when all others stand; ``dead`` names it, and its like.
        """
        chosen = [h for h in (self.sampler, *self.players, self.learner) if role_of(h.role) in roles]
        for handle in chosen:
            handle.kill()
            handle.met = False
        if EPISODES in roles and self.sampler.met:  # it lives on, and nobody comes for what it was asked
            self.sampler.forget(samplers.GATE)
        for handle in chosen:
            handle.put(self.hire[handle.role]())
        died: ActorDied | None = None
        for handle in chosen:
            try:
                handle.meet(handle.started())
            except ActorDied as e:
                died = died or e
        if died:
            raise died

    @property
    def handles(self) -> list[Handle]:
        """Of all actors that were started."""
        return [h for h in (self.sampler, *self.players, self.learner) if h.actor is not None]

    def dead(self, error: ActorDied) -> set[str]:
        """Roles that need another actor after ``error``: the one that it names, and those whose process is not there any more, or
        never came to stand."""
        named = {role_of(error.role)} if error.role else {role_of(h.role) for h in self.handles}
        return named | {role_of(h.role) for h in self.handles if not (h.met and h.alive)}

    def close(self) -> None:
        """End the actors and what they started: asked first, so that they clear up, then killed."""
        asked = [h.submit("close") for h in (self.sampler, *self.players) if h.actor is not None and h.alive]
        ray.wait(asked, num_returns=len(asked), timeout=10) if asked else None
        for handle in self.handles:
            handle.kill()
