"""Play fixed scripts of calls through an EnvironmentPool and keep all that was said: what canaries and the audit stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from frontier_tune.contracts import Blame, Failure, Task, canonical_json
from frontier_tune.evaluation.evaluate import EvaluationError

Script = tuple[str, ...]
Result = dict[str, Any] | Failure
RUNNING = 32  # episodes under way at once
ATTEMPTS = 3  # for an episode whose worker was ended by another one
HUNG = "step-timeout"
NOT_PLAYED = "not-played"
NOT_IMPLEMENTED = "not-implemented"


class Pool(Protocol):
    """What is used of ``sandbox.EnvironmentPool``."""

    @property
    def description(self) -> dict[str, Any]: ...

    def new_slot(self) -> int: ...

    def submit(self, slot: int, op: str, payload: dict[str, Any] | None = None) -> None: ...

    def poll(self, timeout: float = 0.0) -> list[tuple[int, Result]]: ...


@dataclass(frozen=True)
class Episode:
    """A script to play on a task. ``agent`` names who would act so. Without ``seed`` the task seeds the episode."""

    task: Task
    script: Script
    agent: str = ""
    seed: int | None = None


@dataclass
class Played:
    """What came of an episode. ``results`` holds every answer of the environment in order; ``failure`` why it is ungraded."""

    episode: Episode
    results: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0
    failure: Failure | None = None
    attempts: int = 1

    @property
    def graded(self) -> bool:
        return self.failure is None

    @property
    def success(self) -> bool:
        return self.graded and bool(self.results[-1]["info"]["success"])

    @property
    def reward(self) -> float:
        return float(self.results[-1]["reward"]) if self.graded else 0.0

    @property
    def components(self) -> Mapping[str, float]:
        return self.results[-1]["info"]["components"] if self.graded else {}

    @property
    def prompt(self) -> str:
        """The opening messages' text."""
        return "\n".join(m["content"] for m in self.results[0]["messages"]) if self.results else ""

    @property
    def text(self) -> str:
        """All that the environment said."""
        return "\n".join(m["content"] for r in self.results for m in r.get("messages", []))

    @property
    def transcript(self) -> str:
        """Every answer, byte for byte: two runs of one episode have one transcript."""
        return canonical_json([self.results, asdict(self.failure) if self.failure else None])


def play(pool: Pool, episodes: Sequence[Episode], *, max_turns: int | None = None, patience: int | None = None) -> list[Played]:
    """Play each episode; what came of it, in the order given.

    A script that ends before its episode does is cut off (``truncate``): graded, but no success. An episode whose worker was
    ended by another one is played again. After ``patience`` episodes that hung, the rest fails as ``not-played``. Raises
    EvaluationError where the pool has another user.
    """
    played = [Played(e) for e in episodes]
    waiting = list(reversed(range(len(episodes))))
    running: dict[int, tuple[int, Iterator[str]]] = {}
    hung = 0
    while waiting or running:
        while waiting and len(running) < RUNNING:
            index = waiting.pop()
            episode, slot = episodes[index], pool.new_slot()
            if patience is not None and hung >= patience:
                played[index].failure = Failure(NOT_PLAYED, Blame.INFRASTRUCTURE, f"{hung} episodes hung before it")
                continue
            running[slot] = index, iter(episode.script)
            pool.submit(slot, "reset", {"task": episode.task.to_json(), "max_turns": max_turns, "seed": episode.seed})
        for slot, result in pool.poll(1.0) if running else []:
            if slot not in running:
                raise EvaluationError(f"the pool answered for slot {slot}, which is not ours; give scripts a pool of their own")
            index, script = running[slot]
            current = played[index]
            if isinstance(result, Failure):
                hung += result.kind == HUNG
                if result.kind == "worker-killed" and current.attempts < ATTEMPTS:
                    played[index] = Played(current.episode, attempts=current.attempts + 1)
                    waiting.append(index)
                else:
                    current.failure = result
            else:
                current.results.append(result)
                if not over(result):
                    action = next(script, None)
                    current.turns += action is not None
                    pool.submit(slot, "truncate") if action is None else pool.submit(slot, "step", {"action": action})
                    continue
            del running[slot]
            pool.submit(slot, "close")
    return played


def over(result: Mapping[str, Any]) -> bool:
    """Whether a result ends its episode: a last step, or a truncate, which alone has a reward without saying how it ended."""
    return bool(result.get("terminated") or result.get("truncated") or ("reward" in result and "terminated" not in result))


def ask(pool: Pool, op: str, payloads: Sequence[Mapping[str, Any]]) -> list[Result]:
    """``op`` once for each payload, all handed in at once; the answers in that order."""
    slots = {pool.new_slot(): i for i in range(len(payloads))}
    for slot, i in slots.items():
        pool.submit(slot, op, dict(payloads[i]))
    answers: dict[int, Result] = {}
    while len(answers) < len(payloads):
        for slot, result in pool.poll(1.0):
            answers[slots[slot]] = result
    return [answers[i] for i in range(len(payloads))]
