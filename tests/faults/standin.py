"""A crew that a fault suite can afford to kill hundreds of times: real processes under real Ray, with hashes for a model.

The learner's "adapter" is a SHA-256 over everything that it ever learned from, in order: a group that is dropped, repeated or
swapped on the way through deaths and resumes changes its bytes. The sampler draws what its adapter, the context and the seed say.
Loop, ledger, checkpoints, parity gate, supervision, episodes and environment workers are the library's own.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Completion, Message, Request, Task, Trajectory
from frontier_tune.orchestration.actors import EpisodeActor, remote
from frontier_tune.orchestration.ledger import episodes_digest

if TYPE_CHECKING:
    from frontier_tune.orchestration.crew import Crew
    from frontier_tune.orchestration.supervise import Supervisor

WORDS = ("red", "green", "blue", "amber", "olive")
STOP = ord("\n")
ADAPTER = "adapter_model.safetensors"  # the file's name, for those who look for it; not its format
GREEN = 1  # the company's seed: its word is WORDS[1]


def digest(*parts: Any) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def unit(*parts: Any) -> float:
    """A number in [0, 1) that follows from ``parts``."""
    return float(struct.unpack(">I", digest(*parts)[:4])[0]) / 2**32


def logprobs(adapter: str, sequence: Sequence[int]) -> list[float]:
    return [-0.1 - unit(adapter, tuple(sequence[: i + 1])) for i in range(1, len(sequence))]


def read(directory: str | Path) -> str:
    return Path(directory, ADAPTER).read_text()


class Learner:
    """``slow``: seconds that a step takes, for somebody to be killed in."""

    def __init__(self, slow: float = 0.0) -> None:
        self.adapter, self.slow = "base", slow

    def learn(self, batches: Sequence[Sequence[Trajectory]], done: int) -> Mapping[str, float]:
        time.sleep(self.slow)
        self.adapter = digest(self.adapter, [episodes_digest(b) for b in batches]).hex()
        return {"loss": unit(self.adapter)}

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | None = None) -> list[list[float]]:
        adapter = read(adapter_dir) if adapter_dir else self.adapter
        return [logprobs(adapter, s) for s in sequences]

    def digests(self, dtype: str) -> Mapping[str, str]:
        return {"adapter": self.adapter}

    def write_canary(self, directory: str, dtype: str) -> Mapping[str, str]:
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(directory, ADAPTER).write_text("canary")
        return {"adapter": "canary"}

    def save_adapter(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(directory, ADAPTER).write_text(self.adapter)

    def save(self, directory: str) -> None:
        self.save_adapter(directory)
        for n in range(4):  # several files and some bytes, for a kill to come between
            time.sleep(self.slow / 8)
            Path(directory, f"optimizer-{n}.bin").write_bytes(digest(self.adapter, n) * 2000)

    def load(self, directory: str) -> None:
        self.adapter = read(directory)


class Sampler:
    """``slow``: seconds that an exchange takes."""

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow
        self.adapters, self.current, self.passes = {0: "base"}, 0, 0

    def exchange(
        self, requests: Sequence[Request], client: str = "", version: int | None = None, wait: float | None = None
    ) -> list[Completion]:
        time.sleep(self.slow)
        self.passes += 1
        number = self.current if version is None else version
        return [self._complete(r, number) for r in requests]

    def _complete(self, request: Request, version: int) -> Completion:
        adapter, p = self.adapters[version], request.params
        if p.max_tokens < 12:  # the parity gate's probes
            tokens = [1 + int(100 * unit(adapter, request.tokens, p.seed, n)) for n in range(p.max_tokens)]
        else:
            draw = unit(adapter, request.tokens, p.seed if p.temperature else 0)
            tokens = [*f"say {WORDS[int(len(WORDS) * draw)]}".encode(), STOP]
        found = logprobs(adapter, [*request.tokens, *tokens])[len(request.tokens) - 1 :]
        stopped = tokens[-1] == STOP
        return Completion(request.id, tuple(tokens), tuple(found), version, "stop" if stopped else "length")

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        return [logprobs(self.adapters[version], s) for s in sequences]

    def sync(self, adapter_dir: str, version: int, activate: bool = True) -> None:
        assert version not in self.adapters, f"version {version} was synced before"
        self.adapters[version] = read(adapter_dir)
        self.current = version if activate else self.current

    def release(self, version: int) -> None:
        pass

    def forget(self, kept: Collection[str] = ()) -> None:
        pass  # nothing outlives a call

    def version(self) -> int:
        return self.current

    def progress(self) -> int:
        return self.passes

    def resident(self, version: int) -> Mapping[str, str]:
        return {"adapter": self.adapters[version]}

    def close(self) -> None:
        pass


class Characters:
    """A renderer whose tokens are bytes."""

    stop_ids = (STOP,)

    def begin(self, messages: Sequence[Message]) -> list[int]:
        return list("".join(m.content for m in messages).encode())

    def render(self, messages: Sequence[Message], after: Sequence[int] = ()) -> list[int]:
        return self.begin(messages)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t != STOP).decode()


class Episodes(EpisodeActor):
    def renderer(self, tools: Sequence[dict[str, Any]]) -> Any:
        return Characters()


def hire_all(
    recipe: recipes.Recipe, root: Path, log: Path, slow: Mapping[str, float], supervisor: Supervisor | None = None
) -> Crew:
    """The crew, started. Ray must be up."""
    from frontier_tune.orchestration.crew import LEARNER, SAMPLER, Crew, player  # here: the actors' processes pay for no torch
    from frontier_tune.orchestration.handle import Deadlines

    environments = {"workflow": (recipe.environment.path, {"company_seed": GREEN, **recipe.environment.options})}

    def play(number: int) -> Any:
        hired = remote(Episodes, {"OMP_NUM_THREADS": "1"}, 4)
        return hired.remote("", recipe, str(root), environments, crew.sampler.actor, str(log))

    hire = {
        SAMPLER: lambda: remote(Sampler, {}, 8).remote(slow.get(SAMPLER, 0.0)),
        **{player(n): partial(play, n) for n in range(recipe.placement.episode_actors)},
        LEARNER: lambda: remote(Learner, {}, 1).remote(slow.get(LEARNER, 0.0)),
    }
    crew = Crew.of(hire, str(log), Deadlines.of(recipe))
    crew.start_all(list(hire), supervisor)
    return crew


def recipe_of(root: Path, **sections: dict[str, Any]) -> recipes.Recipe:
    """A run of seconds in a workspace that has the toy workflow."""
    content: dict[str, dict[str, Any]] = {
        "environment": {
            "path": "envs/echo",
            "train_tasks": 40,
            "heldout_tasks": 3,
            "general_tasks": 0,
            "max_turns": 2,
            "step_timeout_s": 10,
        },
        "algorithm": {"groups_per_step": 3, "group_size": 3},
        "run": {"steps": 4, "checkpoint_every": 1, "eval_tasks": 2},
        "learner": {"threads": 1},
        "sampler": {"threads": 1},
        "reliability": {"backoff_s": 0.0, "max_backoff_s": 1.0, "heartbeat_s": 0.5},
        "tracking": {"wandb": "off"},
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    path = root / "recipe.json"
    path.write_text(json.dumps(content))
    return recipes.parse(content)


class Local:
    """An object in place of an actor's handle: what the same run does where nothing can die."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def submit(self, method: str, *args: Any) -> Any:
        return getattr(self._thing, method)(*args)

    def wait(self, result: Any, every: Any) -> Any:
        every()
        return result

    def __getattr__(self, method: str) -> Any:
        return getattr(self._thing, method)


def undisturbed(recipe: recipes.Recipe, root: Path, home: Path, tasks: Sequence[Task]) -> tuple[str, bytes]:
    """The adapter and the ledger that a run of ``recipe`` ends with where nothing happens to it."""
    from frontier_tune.orchestration.checkpoint import LoopState
    from frontier_tune.orchestration.groups import GroupPlan
    from frontier_tune.orchestration.loop import Loop
    from frontier_tune.orchestration.run_dir import RunDir
    from frontier_tune.orchestration.stop import StopRequest

    sampler, learner = Local(Sampler()), Local(Learner())
    environments = {"workflow": (recipe.environment.path, {"company_seed": GREEN, **recipe.environment.options})}
    episodes = Episodes("", recipe, str(root), environments, None, None)  # type: ignore[arg-type]
    episodes._side = sampler  # type: ignore[assignment]
    run, state, section = RunDir(home), LoopState(version=1), recipe.algorithm
    plan = GroupPlan(tasks, recipe.seed, section.groups_per_step, section.group_size, recipe.sampler.temperature)
    crew: Any = SimpleNamespace(episodes=Local(episodes), sampler=sampler, learner=learner)
    gate: Any = SimpleNamespace(check=lambda version: {}, canary=lambda version, directory: {})
    learner.save_adapter(str(run.adapter_version(1)))
    sampler.sync(str(run.adapter_version(1)), 1)
    try:
        Loop(recipe, run, crew, plan, None, gate, state, lambda row: None, StopRequest()).train()
    finally:
        episodes.close()
    return learner.adapter, run.ledger.read_bytes()
