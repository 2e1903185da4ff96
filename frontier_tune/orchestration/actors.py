"""The three kinds of Ray actors of a run, each one process: episodes (with its environment workers), sampler (vLLM), learner.

``crew.Crew.start`` starts them side by side.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from frontier_tune.contracts import BadInput, Blame, Completion, EpisodeSpec, FrontierTuneError, Request, Task, Trajectory
from frontier_tune.orchestration.handle import STACKS, Handle
from frontier_tune.orchestration.retry import backoff
from frontier_tune.recipe import Recipe, full

if TYPE_CHECKING:
    from frontier_tune.episodes.play import Watch
    from frontier_tune.episodes.stream import Group, Played, Stream
    from frontier_tune.evaluation.canaries import CanaryScores

GPUS = "FRONTIER_TUNE_GPUS"  # numbers of the GPUs of its node that are an actor's own; without it it sees all
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ANSWER_S = 1.0  # seconds that the sampler has to say how far it is

Environments = Mapping[str, tuple[str, dict[str, Any]]]


def _open_log(path: str | None) -> None:
    """Send this process's stdout and stderr, native code's too, to the run's log (None: leave them).

    So are the stacks of all its threads, whenever it gets the signal STACKS: of a process that is stuck in native code, too.
    """
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)  # each node of a cluster keeps a log of its own at that path
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.register(STACKS, file=2, all_threads=True)


class SamplerActor:
    """The engine. Runs with several threads, so that ``exchange`` may block while ``score`` or ``progress`` come in."""

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None) -> None:
        _open_log(log)
        from frontier_tune.sampling.engine import VLLMSampler

        self._sampler = VLLMSampler(
            base_dir,
            recipe.sampler,
            recipe.adapter,
            seed=recipe.seed,
            log_file=log,
            routes=recipe.algorithm.replay == "sampler",
            reloads=full.whole(recipe),
        )

    def exchange(
        self, requests: Sequence[Request], client: str = "", version: int | None = None, wait: float | None = None
    ) -> list[Completion]:
        return self._sampler.exchange(requests, client, version, wait)

    def forget(self, kept: Collection[str] = ()) -> None:
        self._sampler.forget(kept)

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        return self._sampler.score(sequences, version)

    def sync(self, adapter_dir: str, version: int, activate: bool = True) -> None:
        self._sampler.sync(adapter_dir, version, activate)

    def version(self) -> int:
        return self._sampler.version()

    def progress(self) -> int:
        """Forward passes so far."""
        return self._sampler.steps

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

    def learn(self, batches: Sequence[Sequence[Trajectory]], done: int | None = None) -> Mapping[str, float]:
        return self._learner.learn(batches, done)

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | None = None) -> list[list[float]]:
        return self._learner.score(sequences, adapter_dir)

    def start_from(self, directory: str) -> None:
        from frontier_tune.learning import warm_start

        warm_start.start_from(self._learner, directory)

    def write_canary(self, directory: str, dtype: str) -> Mapping[str, str]:
        from frontier_tune.orchestration import canary

        if full.whole(self._learner.recipe):
            return canary.write_whole(self._learner, directory, dtype)
        self._learner.save_adapter(directory)
        return canary.overwrite(Path(directory), self._learner.policy.config, dtype)

    def save_adapter(self, directory: str) -> None:
        self._learner.save_adapter(directory)

    def save_model(self, directory: str) -> None:
        self._learner.save_model(directory)

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
        self._base, self._recipe, self._environments, self._log = base_dir, recipe, environments, log
        self._root = root or os.getcwd()  # '' on a node of a cluster: Ray has unpacked the workspace there
        self._sampler = Handle(sampler, log, "sampler")
        self._side = _PlaySide(self._sampler)
        self._watch: Watch | None = None
        self._open: dict[str, tuple[Any, Any]] = {}
        self._stream: Stream | None = None
        self._stream_side: _StreamSide | None = None
        self._done = self._idle = self._passes = 0
        self._environment("workflow")

    def renderer(self, tools: Sequence[dict[str, Any]]) -> Any:
        from frontier_tune.orchestration.preflight import make_renderer

        return make_renderer(Path(self._base), tools)

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
        return pool, self.renderer(pool.description["schemas"])

    def play(self, specs: Sequence[EpisodeSpec], where: str = "workflow") -> list[Trajectory]:
        from frontier_tune.episodes.play import Watch, play

        pool, renderer = self._environment(where)
        env, sampler = self._recipe.environment, self._recipe.sampler
        played = []
        self._done, self._watch = 0, Watch()
        for trajectory in play(
            specs,
            pool,
            renderer,
            self._side,
            max_turns=env.turns,
            max_tokens_per_turn=env.max_tokens_per_turn,
            max_model_len=sampler.max_model_len,
            concurrency=sampler.max_sequences,
            lockstep=self._recipe.run.deterministic,
            watch=self._watch,
        ):
            played.append(trajectory)
            self._done = len(played)
        self._watch = None
        return played

    def stream_put(self, groups: Sequence[Group]) -> None:
        """Play ``groups`` while others call for other things; a thread and environments of its own, from the first call on."""
        from frontier_tune.episodes.stream import Limits, Stream

        if self._stream is None:
            env, sampler, retry = self._recipe.environment, self._recipe.sampler, self._recipe.reliability
            self._stream_side = _StreamSide(self._sampler)
            self._stream = Stream(
                self._start,
                self._stream_side,
                Limits(env.turns, env.max_tokens_per_turn, sampler.max_model_len, sampler.max_sequences),
                tries={Blame.INFRASTRUCTURE: retry.infrastructure_tries, Blame.ENVIRONMENT: retry.environment_tries},
                pause=lambda failures: backoff(failures, retry.backoff_s, retry.max_backoff_s),
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

    def progress(self) -> dict[str, Any]:
        """How far ``play`` and the stream are: ``moves`` stands still only where somebody is waited for, ``waiting`` says who;
        ``episodes`` that are done, and the ``slowest`` of those under way. The sampler's passes are moves of who waits for it
        alone: it works for others, too."""
        stream: dict[str, Any] = (
            self._stream.progress() if self._stream else {"moves": 0, "waiting": "", "busy": False, "slowest": []}
        )
        if self._watch is None and not stream["busy"]:  # at something else
            self._idle += 1
        sampling = self._side.waiting or (self._stream_side is not None and self._stream_side.waiting)
        slowest = [*(self._watch.slowest() if self._watch else []), *stream["slowest"]]
        return {
            "moves": self._idle
            + self._side.moves
            + self._done
            + stream["moves"]
            + (self._sampled() if sampling else self._passes),
            "waiting": "sampler" if self._side.waiting else stream["waiting"],
            "episodes": self._done,
            "slowest": sorted(slowest, key=lambda e: -e["seconds"])[:3],
        }

    def _sampled(self) -> int:
        """Forward passes of the sampler so far; where it doesn't answer now, as many as it last said. A turn may take long."""
        with suppress(ray.exceptions.RayError):
            self._passes = ray.get(self._sampler.submit("progress"), timeout=_ANSWER_S)
        return self._passes

    def canaries(self, heldout: Sequence[Task], train: Sequence[Task]) -> CanaryScores:
        from frontier_tune.evaluation.canaries import run_canaries

        return run_canaries(self._environment("workflow")[0], heldout, train, max_turns=self._recipe.environment.turns)

    def close(self) -> None:
        self.stream_close()
        for pool, _ in self._open.values():
            pool.close()


class _PlaySide:
    """The sampler as ``play``'s: a client of its own, and a count of the turns that came back."""

    def __init__(self, sampler: Handle) -> None:
        self._sampler, self._client = sampler, f"play-{uuid.uuid4().hex}"  # nodes count their processes alike
        self.moves, self.waiting = 0, False

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        self.waiting = True
        try:
            done: list[Completion] = self._sampler.exchange(requests, self._client)
        finally:
            self.waiting = False
        self.moves += len(done)
        return done

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        found: list[list[float]] = self._sampler.score(sequences, version)
        return found


class _StreamSide:
    """The sampler as a stream's: a client of its own, so that its completions go to nobody else."""

    def __init__(self, sampler: Handle) -> None:
        self._sampler, self._client = sampler, f"stream-{uuid.uuid4().hex}"
        self.waiting = False

    def exchange(self, requests: Sequence[Request], wait: float) -> list[Completion]:
        self.waiting = True
        try:
            done: list[Completion] = self._sampler.exchange(requests, self._client, None, wait)
        finally:
            self.waiting = False
        return done


def see_own_gpus() -> None:
    """Leave this process the GPUs that the plan gives it. Before CUDA starts in it: that reads CUDA_VISIBLE_DEVICES once.

    By number, and not as a resource of Ray's: that shares out fractions as it likes, so that two learners would get one GPU and
    two samplers the other, where the plan has one of each on both. On a machine that shows its processes some GPUs alone
    (CUDA_VISIBLE_DEVICES) numbers count those. Raises BadInput where there are fewer.
    """
    mine, shown = os.environ.get(GPUS), os.environ.get(_VISIBLE)
    if mine is None:
        return
    numbers = [int(n) for n in mine.split(",")]
    there = shown.split(",") if shown else [str(n) for n in range(1 + max(numbers))]
    if max(numbers) >= len(there):
        raise BadInput(
            f"placement.gpus_per_node: an actor is to have GPU {max(numbers)} of {socket.gethostname()}, where {_VISIBLE} is "
            f"{shown}; lower it, or show the node's processes all of them"
        )
    os.environ[_VISIBLE] = ",".join(there[n] for n in numbers)


def _tells(cls: type) -> type:
    """``cls`` with a method ``started`` that raises what its ``__init__`` refused: Ray keeps only the text of such an error."""

    class Telling(cls):
        _refused: FrontierTuneError | None = None

        def __init__(self, *args: Any) -> None:
            try:
                see_own_gpus()
                super().__init__(*args)
            except FrontierTuneError as e:
                self._refused = e

        def started(self) -> tuple[str, int]:
            """Host and process."""
            if self._refused is not None:
                raise self._refused
            return socket.gethostname(), os.getpid()

    Telling.__name__ = Telling.__qualname__ = cls.__name__
    return Telling


def remote(
    cls: type, env_vars: Mapping[str, str], concurrency: int, where: Any = None, gpus: Sequence[int] = (), cpus: int = 1
) -> Any:
    """``cls`` as an actor to be; ``where``: a scheduling strategy of Ray's, for one of several nodes; ``gpus``: its own there."""
    here = str(Path(__file__).resolve().parents[2])  # actors import this very package, from wherever the command was started
    inherited = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), env_vars.get("PYTHONPATH", "")]
    path = os.pathsep.join(dict.fromkeys([here, *filter(None, inherited)]))
    options = {"num_cpus": cpus, "num_gpus": 0, "max_concurrency": concurrency, "max_restarts": 0}
    if where is not None:
        options["scheduling_strategy"] = where
    own = {GPUS: ",".join(map(str, gpus))} if gpus else {}
    return ray.remote(_tells(cls)).options(**options, runtime_env={"env_vars": {**env_vars, **own, "PYTHONPATH": path}})
