"""Data-parallel learners as one: the first, in the crew's learner actor, starts the others, wherever they sit, and calls them.

The crew sees one actor. The others are the first one's own (Ray ends them with it), get what it gets, and answer to it alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from frontier_tune.contracts import BadInput, FrontierTuneError, GateFailed, Trajectory
from frontier_tune.orchestration.actors import GPUS, LearnerActor, remote
from frontier_tune.orchestration.handle import DEAD, ActorDied, first_line
from frontier_tune.orchestration.meeting import Meeting, open_at, stay_on
from frontier_tune.orchestration.seating import Place
from frontier_tune.orchestration.travel import Files, at_hand, packed
from frontier_tune.recipe import Recipe

_ANSWER_S = 60.0  # seconds that another learner may take to answer once the first is done
_LOOK_S = 0.2  # seconds between two looks at who has died, while they meet


class LearnerLost(ActorDied):
    """One of several learners died or hung: all are to be started anew."""

    role = "learner"


def _world(recipe: Recipe, rank: int, size: int, rendezvous: str | Meeting) -> Any:
    import torch

    from frontier_tune.learning.parallel import World

    wanted = recipe.learner.device
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    own = GPUS in os.environ  # the plan's, and this process sees no others
    if cuda and not own and size > torch.cuda.device_count():
        raise BadInput(f"placement.learners: {size}, one GPU each, but this machine has {torch.cuda.device_count()}; lower it")
    device = torch.device("cuda", 0 if own else rank) if cuda else torch.device("cpu")
    sharded = recipe.placement.shard_base
    if isinstance(rendezvous, str):
        return World.join(rank, size, rendezvous, device, sharded=sharded)
    address = ray.util.get_node_ip_address()
    if cuda:
        stay_on(address)
    return World.join(rank, size, rendezvous.store(), device, sharded=sharded, address=address)


def _meet(join: Callable[[], Any], look: Callable[[], None]) -> Any:
    """What ``join`` returns once all have come. ``look`` is called meanwhile, and raises as soon as one of them is known to be
    dead: who waits for all can't tell it from one that is slow, for ten minutes."""
    found: list[Any] = []

    def wait() -> None:
        try:
            found.append(join())
        except Exception as e:  # raised below
            found.append(e)

    thread = threading.Thread(target=wait, name="rendezvous", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        look()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


class Follower(LearnerActor):
    """A learner of rank 1 and more. On another node it is sent the directories that it is to read.

    ``leader``: the actor of rank 0. Raises LearnerLost where that one dies before all have met.
    """

    def __init__(
        self,
        base_dir: str,
        recipe: Recipe,
        log: str | None,
        rank: int,
        size: int,
        rendezvous: str | Meeting,
        leader: Any = None,
    ) -> None:
        standing = leader.started.remote() if leader is not None else None

        def look() -> None:
            if standing is not None and ray.wait([standing], timeout=0)[0]:
                try:
                    ray.get(standing)
                except ray.exceptions.RayError as e:
                    why = first_line(getattr(e, "cause", None) or e)
                    raise LearnerLost(f"learner {rank} of {size} met nobody: learner 0 died or did not start: {why}") from None

        world = _meet(lambda: _world(recipe, rank, size, rendezvous), look)
        if world.device.type == "cuda":  # every thread's own choice, and it was another that met the others
            import torch

            torch.cuda.set_device(world.device)
        super().__init__(base_dir, recipe, log, world)

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | Files | None = None) -> list[list[float]]:
        if adapter_dir is None:
            return super().score(sequences)
        with at_hand(adapter_dir) as directory:
            return super().score(sequences, directory)

    def load(self, directory: str | Files) -> None:
        with at_hand(directory) as here:
            super().load(here)

    def start_from(self, directory: str | Files) -> None:
        with at_hand(directory) as here:
            super().start_from(here)


class LearnerGroup(LearnerActor):
    """The learner of rank 0, for all of them: what ``LearnerActor`` does, by ``size`` learners.

    Before an adapter or a state is written all learners must hold the same one: GateFailed where they have diverged. Where the
    base is split over them whatever runs it is done by all, else what changes nothing by this one alone.
    """

    _apart = False  # whether some are on other nodes, where what is in a directory here can't be read

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None, size: int, places: Sequence[Place] = ()) -> None:
        """``places``: of each learner, by rank; without them all are on this node, and see the same GPUs."""
        self._sharded = recipe.placement.shard_base
        own = ray.get_runtime_context().get_node_id()
        places = places or [(own, ())] * size
        self._apart = any(node != own for node, _ in places)
        self._met_in = tempfile.mkdtemp(
            prefix="learners-"
        )  # needed until the first update: NCCL connects in its first collective
        meeting: str | Meeting = str(Path(self._met_in, "store"))
        if self._apart:  # held for as long as this one lives: who comes late asks it
            meeting, self._store = open_at(ray.util.get_node_ip_address())
        leader = ray.get_runtime_context().current_actor if ray.get_runtime_context().get_actor_id() else None
        self._others = [
            remote(Follower, {}, 1, NodeAffinitySchedulingStrategy(node, soft=False), gpus, cpus=0).remote(
                base_dir, recipe, log, rank, size, meeting, leader
            )
            for rank, (node, gpus) in enumerate(places[1:], 1)
        ]
        standing = [other.started.remote() for other in self._others]
        try:
            super().__init__(base_dir, recipe, log, self._meet(lambda: _world(recipe, 0, size, meeting), standing))
            self._answers(standing, recipe.reliability.call_timeout_s)
        except BaseException:
            shutil.rmtree(self._met_in, ignore_errors=True)
            for other in self._others:  # this one's process may go on, with nothing but the reason
                ray.kill(other)
            raise

    def _meet(self, join: Callable[[], Any], standing: Sequence[Any]) -> Any:
        """``_meet`` the others. ``standing``: what they answer when they are through with their start. Raises LearnerLost."""

        def look() -> None:
            for rank, ref in enumerate(standing, 1):
                if ray.wait([ref], timeout=0)[0]:
                    self._answer(rank, ref)

        return _meet(join, look)

    def learn(self, batches: Sequence[Sequence[Trajectory]], done: int | None = None) -> Mapping[str, float]:
        found: Mapping[str, float] = self._together("learn", batches, done)
        shutil.rmtree(self._met_in, ignore_errors=True)
        return found

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | None = None) -> list[list[float]]:
        if not self._sharded:
            return super().score(sequences, adapter_dir)
        found: list[list[float]] = self._together("score", sequences, adapter_dir, sent=[sequences, self._sent(adapter_dir)])
        return found

    def load(self, directory: str) -> None:
        self._together("load", directory, sent=[self._sent(directory)])

    def start_from(self, directory: str) -> None:
        self._together("start_from", directory, sent=[self._sent(directory)])

    def _sent(self, directory: str | None) -> str | Files | None:
        """A directory for the others: its name, or what is in it where one of them is on another node."""
        return directory if directory is None or not self._apart else packed(directory)

    def save_adapter(self, directory: str) -> None:
        self._agree()
        super().save_adapter(directory)

    def save_model(self, directory: str) -> None:
        self._agree()
        super().save_model(directory)

    def save(self, directory: str) -> None:
        self._agree()
        super().save(directory)

    def _together(self, method: str, *arguments: Any, sent: Sequence[Any] | None = None) -> Any:
        """``method`` by all; ``sent``: the others' arguments, where they are not this one's."""
        shared = [ray.put(argument) for argument in (arguments if sent is None else sent)]
        refs = [getattr(other, method).remote(*shared) for other in self._others]
        try:
            mine = getattr(super(), method)(*arguments)
        except RuntimeError as e:  # of a collective whose other side is gone; or its own, for which the others wait in vain
            try:
                self._answers(refs)
            except LearnerLost as lost:
                raise LearnerLost(f"learner 0: {first_line(e)}; {lost}") from e
            raise LearnerLost(f"the learners lost each other: {first_line(e)}") from e
        self._answers(refs)
        return mine

    def _answers(self, refs: Sequence[Any], seconds: float = _ANSWER_S) -> list[Any]:
        """Of the others, in order of rank. Raises their typed error, or LearnerLost."""
        return [self._answer(rank, ref, seconds) for rank, ref in enumerate(refs, 1)]

    def _answer(self, rank: int, ref: Any, seconds: float = _ANSWER_S) -> Any:
        who = f"learner {rank} of {len(self._others) + 1}"
        try:
            return ray.get(ref, timeout=seconds)
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, FrontierTuneError):
                raise e.cause from None
            if isinstance(e.cause, RuntimeError):  # of a collective, as in ``_together``
                raise LearnerLost(f"{who} lost another one: {first_line(e.cause)}") from None
            raise
        except (*DEAD, ray.exceptions.ActorUnschedulableError, ray.exceptions.GetTimeoutError) as e:
            raise LearnerLost(f"{who} died or hangs: {first_line(e)}") from None

    def _agree(self) -> None:
        mine = self.digests("float32")
        for rank, theirs in enumerate(self._answers([other.digests.remote("float32") for other in self._others]), 1):
            differing = sorted(name for name in mine if mine[name] != theirs.get(name))
            if differing:
                raise GateFailed(
                    f"learners: {len(differing)} of {len(mine)} tensors of learner {rank} are not those of learner 0 "
                    f"({', '.join(differing[:3])}), though every update was the same: memory or a device at fault, or other "
                    "versions of libraries. Nothing was written; resume from the last checkpoint, on other machines"
                )
