"""The three Ray actors of a run, each one process: episodes (with its environment workers), sampler (vLLM), learner.

``Crew.start`` starts them side by side and hands out plain handles: ``handle.method(...)`` waits for the result and raises the
actor's own typed error; ``handle.submit("method", ...)`` and ``wait`` let the caller look up from time to time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from frontier_tune.contracts import Blame, Completion, EpisodeSpec, FrontierTuneError, Request, Task, Trajectory
from frontier_tune.orchestration.overlap import share_threads
from frontier_tune.recipe import Recipe
from frontier_tune.sampling.environment import engine_environment

if TYPE_CHECKING:
    from frontier_tune.episodes.stream import Group, Played, Stream
    from frontier_tune.evaluation.canaries import CanaryScores

Environments = Mapping[str, tuple[str, dict[str, Any]]]


class ActorDied(FrontierTuneError):
    """A process of the run ended by itself (out of memory, a crash in native code). The run can be resumed."""

    exit_code = 4


def _open_log(path: str | None) -> None:
    """Send this process's stdout and stderr, native code's too, to the run's log (None: leave them)."""
    if path is None:
        return
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


class SamplerActor:
    """The engine. Runs with several threads, so that ``exchange`` may block while ``score`` or ``progress`` come in."""

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None) -> None:
        _open_log(log)
        from frontier_tune.sampling.engine import VLLMSampler

        routes = recipe.algorithm.replay == "sampler"
        self._sampler = VLLMSampler(base_dir, recipe.sampler, recipe.adapter, seed=recipe.seed, log_file=log, routes=routes)

    def exchange(
        self, requests: Sequence[Request], client: str = "", version: int | None = None, wait: float | None = None
    ) -> list[Completion]:
        return self._sampler.exchange(requests, client, version, wait)

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        return self._sampler.score(sequences, version)

    def sync(self, adapter_dir: str, version: int, activate: bool = True) -> None:
        self._sampler.sync(adapter_dir, version, activate)

    def release(self, version: int) -> None:
        self._sampler.release(version)

    def resident(self, version: int) -> Mapping[str, str]:
        return self._sampler.resident(version)

    def close(self) -> None:
        self._sampler.close()


class LearnerActor:
    """The learner, and its canary adapter for the parity gate."""

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None, world: Any = None) -> None:
        _open_log(log)
        from frontier_tune.learning.learner import Learner

        self._learner = Learner(base_dir, recipe, world=world)

    def learn(self, batches: Sequence[Sequence[Trajectory]]) -> Mapping[str, float]:
        return self._learner.learn(batches)

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | None = None) -> list[list[float]]:
        return self._learner.score(sequences, adapter_dir)

    def write_canary(self, directory: str, dtype: str) -> Mapping[str, str]:
        from frontier_tune.orchestration import canary

        self._learner.save_adapter(directory)
        return canary.overwrite(Path(directory), self._learner.policy.config, dtype)

    def save_adapter(self, directory: str) -> None:
        self._learner.save_adapter(directory)

    def digests(self, dtype: str) -> Mapping[str, str]:
        return self._learner.digests(dtype)

    def save(self, directory: str) -> None:
        self._learner.save(directory)

    def load(self, directory: str) -> None:
        self._learner.load(directory)


class EpisodeActor:
    """Plays many episodes at once: owns the environments' workers and the renderer, talks to the sampler actor.

    ``environments``: name -> (path, options); ``workflow`` is the recipe's, ``general`` the suite that shows forgetting.
    """

    def __init__(self, base_dir: str, recipe: Recipe, root: str, environments: Environments, sampler: Any, log: str) -> None:
        _open_log(log)
        from frontier_tune.orchestration.preflight import make_renderer

        self._recipe, self._root, self._environments, self._log = recipe, root, environments, log
        self._make_renderer = lambda tools: make_renderer(Path(base_dir), tools)
        self._sampler = Handle(sampler, log)
        self._open: dict[str, tuple[Any, Any]] = {}
        self._stream: Stream | None = None
        self._done = 0
        self._environment("workflow")

    def _environment(self, name: str) -> tuple[Any, Any]:
        """The pool and the renderer of an environment, started at its first use."""
        if name not in self._open:
            self._open[name] = self._start(name)
        return self._open[name]

    def _start(self, name: str) -> tuple[Any, Any]:
        from frontier_tune.sandbox.pool import EnvironmentPool

        path, options = self._environments[name]
        env = self._recipe.environment
        real = env.allow_real_writes if name == "workflow" else ()
        pool = EnvironmentPool(path, self._root, options, env.workers, env.step_timeout_s, log=self._log, allow_real_writes=real)
        return pool, self._make_renderer(pool.description["schemas"])

    def play(self, specs: Sequence[EpisodeSpec], where: str = "workflow") -> list[Trajectory]:
        from frontier_tune.episodes import play

        pool, renderer = self._environment(where)
        env, sampler = self._recipe.environment, self._recipe.sampler
        played = []
        self._done = 0
        for trajectory in play(
            specs,
            pool,
            renderer,
            self._sampler,
            max_turns=env.max_turns,
            max_tokens_per_turn=env.max_tokens_per_turn,
            max_model_len=sampler.max_model_len,
            concurrency=sampler.max_sequences,
            lockstep=self._recipe.run.deterministic,
        ):
            played.append(trajectory)
            self._done = len(played)
        return played

    def stream_put(self, groups: Sequence[Group]) -> None:
        """Play ``groups`` while others call for other things; a thread and environments of its own, from the first call on."""
        from frontier_tune.episodes.stream import Limits, Stream

        if self._stream is None:
            env, sampler, retry = self._recipe.environment, self._recipe.sampler, self._recipe.reliability
            self._stream = Stream(
                self._start,
                _StreamSide(self._sampler),
                Limits(env.max_turns, env.max_tokens_per_turn, sampler.max_model_len, sampler.max_sequences),
                tries={Blame.INFRASTRUCTURE: retry.infrastructure_tries, Blame.ENVIRONMENT: retry.environment_tries},
                restart=self._recipe.overlap.on_update == "restart",
                lockstep=self._recipe.run.deterministic,
            )
        self._stream.put(groups)

    def stream_take(self, seconds: float) -> list[Played]:
        return self._stream.take(seconds) if self._stream else []

    def stream_drop(self, ids: Sequence[str]) -> None:
        if self._stream:
            self._stream.drop(ids)

    def stream_close(self) -> None:
        if self._stream:
            self._stream.close()
        self._stream = None

    def progress(self) -> int:
        """Episodes finished of those that ``play`` is at."""
        return self._done

    def canaries(self, heldout: Sequence[Task], train: Sequence[Task]) -> CanaryScores:
        from frontier_tune.evaluation.canaries import run_canaries

        return run_canaries(self._environment("workflow")[0], heldout, train, max_turns=self._recipe.environment.max_turns)

    def close(self) -> None:
        self.stream_close()
        for pool, _ in self._open.values():
            pool.close()


class _StreamSide:
    """The sampler as a stream's: a client of its own, so that its completions go to nobody else."""

    def __init__(self, sampler: Handle) -> None:
        self._sampler = sampler

    def exchange(self, requests: Sequence[Request], wait: float) -> list[Completion]:
        done: list[Completion] = self._sampler.exchange(requests, "stream", None, wait)
        return done


class Handle:
    """An actor as if it were here."""

    def __init__(self, actor: Any, log: str) -> None:
        self._actor, self._log = actor, log

    def submit(self, method: str, *args: Any) -> Any:
        return getattr(self._actor, method).remote(*args)

    def get(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, FrontierTuneError):
                raise e.cause from None
            raise
        except ray.exceptions.RayActorError as e:
            raise ActorDied(
                f"a process of the run died ({str(e).splitlines()[0]}); the last lines of {self._log} tell more"
            ) from None

    def wait(self, ref: Any, every: Callable[[], None], seconds: float = 0.5) -> Any:
        """The result of ``ref``, calling ``every`` about each half second until it is there."""
        while not ray.wait([ref], timeout=seconds)[0]:
            every()
        return self.get(ref)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args: self.get(self.submit(method, *args))


@dataclass
class Crew:
    """The actors of one run. ``learner`` is missing where nothing is trained (evaluation of an adapter)."""

    episodes: Handle
    sampler: Handle
    learner: Handle
    actors: list[Any]

    @classmethod
    def start(cls, base_dir: Path, recipe: Recipe, root: Path, environments: Environments, log: Path, learn: bool = True) -> Crew:
        """Start all at once (Ray must be up) and wait until they stand. Raises their typed errors."""
        base, where, recipe = str(base_dir), str(log), share_threads(recipe)
        threads = {"OMP_NUM_THREADS": str(recipe.learner.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        sampler = _actor(SamplerActor, engine_environment(recipe.sampler.threads), 8).remote(base, recipe, where)
        episodes = _actor(EpisodeActor, {"OMP_NUM_THREADS": "1"}, 4).remote(base, recipe, str(root), environments, sampler, where)
        threads["PYTHONPATH"] = str(root)  # where an algorithm of the workspace's own is imported from
        learner = _actor(LearnerActor, threads, 1).remote(base, recipe, where) if learn else None
        actors = [a for a in (episodes, sampler, learner) if a is not None]
        crew = cls(Handle(episodes, where), Handle(sampler, where), Handle(learner, where), actors)
        for handle in (Handle(a, where) for a in actors):
            handle.get(handle.submit("started"))
        return crew

    def close(self) -> None:
        """End the actors and what they started: asked first, so that they clear up, then killed."""
        ray.wait([h.submit("close") for h in (self.sampler, self.episodes)], num_returns=2, timeout=10)
        for actor in self.actors:
            ray.kill(actor)


def _tells(cls: type) -> type:
    """``cls`` with a method ``started`` that raises what its ``__init__`` refused: Ray keeps only the text of such an error."""

    class Telling(cls):
        _refused: FrontierTuneError | None = None

        def __init__(self, *args: Any) -> None:
            try:
                super().__init__(*args)
            except FrontierTuneError as e:
                self._refused = e

        def started(self) -> None:
            if self._refused is not None:
                raise self._refused

    Telling.__name__ = Telling.__qualname__ = cls.__name__
    return Telling


def _actor(cls: type, env_vars: dict[str, str], concurrency: int) -> Any:
    here = str(Path(__file__).resolve().parents[2])  # actors import this very package, from wherever the command was started
    inherited = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), env_vars.get("PYTHONPATH", "")]
    path = os.pathsep.join(dict.fromkeys([here, *filter(None, inherited)]))
    options = {"num_cpus": 1, "num_gpus": 0, "max_concurrency": concurrency, "max_restarts": 0}
    return ray.remote(_tells(cls)).options(**options, runtime_env={"env_vars": env_vars | {"PYTHONPATH": path}})
