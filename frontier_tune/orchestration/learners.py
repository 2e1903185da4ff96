"""Data-parallel learners as one: the first, in the crew's learner actor, starts the others and calls them along.

The crew sees one actor. The others are the first one's own (Ray ends them with it), get what it gets, and answer to it alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from frontier_tune.contracts import BadInput, FrontierTuneError, GateFailed, Trajectory
from frontier_tune.orchestration.actors import LearnerActor
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.recipe import Recipe

_ANSWER_S = 60.0  # seconds that another learner may take to answer once the first is done


class LearnerLost(ActorDied):
    """One of several learners died or hung: all are to be started anew."""

    role = "learner"


def _world(recipe: Recipe, rank: int, size: int, rendezvous: str) -> Any:
    import torch

    from frontier_tune.learning.parallel import World

    wanted = recipe.learner.device
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    if cuda and size > torch.cuda.device_count():
        raise BadInput(f"placement.learners: {size}, one GPU each, but this machine has {torch.cuda.device_count()}; lower it")
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    return World.join(rank, size, rendezvous, device)


class Follower(LearnerActor):
    """A learner of rank 1 and more."""

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None, rank: int, size: int, rendezvous: str) -> None:
        super().__init__(base_dir, recipe, log, _world(recipe, rank, size, rendezvous))


class LearnerGroup(LearnerActor):
    """The learner of rank 0, for all of them: what ``LearnerActor`` does, by ``size`` learners.

    Before an adapter or a state is written all learners must hold the same one: GateFailed where they have diverged.
    """

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None, size: int) -> None:
        rendezvous = str(Path(tempfile.mkdtemp(prefix="learners-")) / "store")
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # they meet in a file
        follower = ray.remote(Follower).options(num_cpus=0, num_gpus=0, max_restarts=0, scheduling_strategy=beside)
        self._others = [follower.remote(base_dir, recipe, log, rank, size, rendezvous) for rank in range(1, size)]
        super().__init__(base_dir, recipe, log, _world(recipe, 0, size, rendezvous))

    def learn(self, batches: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        found: Mapping[str, float] = self._together("learn", batches)
        return found

    def load(self, directory: str) -> None:
        self._together("load", directory)

    def start_from(self, directory: str) -> None:
        self._together("start_from", directory)

    def save_adapter(self, directory: str) -> None:
        self._agree()
        super().save_adapter(directory)

    def save(self, directory: str) -> None:
        self._agree()
        super().save(directory)

    def _together(self, method: str, argument: Any) -> Any:
        shared = ray.put(argument)
        refs = [getattr(other, method).remote(shared) for other in self._others]
        try:
            mine = getattr(super(), method)(argument)
        except RuntimeError as e:  # of a collective whose other side is gone
            self._answers(refs)
            raise LearnerLost(f"the learners lost each other: {str(e).splitlines()[0]}") from e
        self._answers(refs)
        return mine

    def _answers(self, refs: Sequence[Any]) -> list[Any]:
        """Of the others, in order of rank. Raises their typed error, or LearnerLost."""
        out = []
        for rank, ref in enumerate(refs, 1):
            try:
                out.append(ray.get(ref, timeout=_ANSWER_S))
            except ray.exceptions.RayTaskError as e:
                if isinstance(e.cause, FrontierTuneError):
                    raise e.cause from None
                raise
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
                raise LearnerLost(f"learner {rank} of {len(refs) + 1} died or hangs: {str(e).splitlines()[0]}") from None
        return out

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
