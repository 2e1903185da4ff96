"""The few types that rooms share: tasks, messages, completions, trajectories, failures and the Sampler protocol.

Plain dataclasses without torch, ray or vllm, so that every room (and an environment worker process) may import them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. Hashes over records are taken of this form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Message:
    """One message of a dialogue. A ``tool`` message is what a tool call returned."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True)
class Task:
    """One unit of work. ``data`` is JSON: all that the environment needs to build the task again, byte for byte.

    ``kind`` is the slice that reports break success down by; ``family`` the layout family, whose members must not
    stand on both sides of a train/held-out split.
    """

    kind: str
    split: Literal["train", "heldout"]
    data: dict[str, Any]
    family: str = ""

    @property
    def hash(self) -> str:
        """Identity by content, without the split: a task that both splits hold has one hash."""
        return content_hash({"kind": self.kind, "data": self.data})[:16]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Blame(StrEnum):
    """Who is at fault when an episode does not end graded. Only ``AGENT`` failures are scored."""

    ENVIRONMENT = "environment"
    INFRASTRUCTURE = "infrastructure"
    AGENT = "agent"


@dataclass(frozen=True)
class Failure:
    """Why an episode ended ungraded: ``kind`` is a short slug (``tool-timeout``), ``detail`` is for people."""

    kind: str
    blame: Blame
    detail: str = ""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one turn. ``temperature`` 0 is greedy; ``seed`` makes the turn reproducible."""

    max_tokens: int
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """One turn to sample: the whole context as token ids. ``id`` is unique within the caller.

    ``routes_from``: the first position whose routes the caller lacks, for a sampler that keeps them.
    """

    id: str
    tokens: tuple[int, ...]
    params: SamplingParams
    routes_from: int = 0


@dataclass(frozen=True)
class Completion:
    """What was sampled for one request.

    ``tokens`` include the stop token where one was sampled. ``logprobs[i]`` is the sampler's own natural-log
    probability of ``tokens[i]`` under the distribution that it was drawn from (temperature applied). ``routes``, where the
    sampler keeps them: the experts of each position from ``Request.routes_from`` to the last but one, [positions, MoE layers, k].
    """

    request_id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int
    finish: Literal["stop", "length", "error"]
    error: str = ""
    routes: np.ndarray | None = field(default=None, compare=False, repr=False)


class Sampler(Protocol):
    """An engine that samples. Requests come and go while it runs (continuous batching)."""

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        """Hand in ``requests`` (possibly none); block until at least one of all handed in is finished; return those."""
        ...

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        """Log-probability of every token but the first of each sequence under policy ``version``. [len(s) - 1] each."""
        ...


@dataclass(frozen=True)
class EpisodeSpec:
    """One planned episode: which task, which member of which group, and the seed that fixes its sampling.

    ``step`` is the plan's, counted from 0; it and ``group`` name the group in the whole run.
    """

    task: Task
    group: int
    member: int
    seed: int
    temperature: float = 1.0
    step: int = 0


@dataclass
class Trajectory:
    """One played episode, as token ids. Text is never tokenized again for training.

    Per-token lists all have the length of ``tokens``: ``mask`` is True where the policy sampled the token,
    ``logprobs`` holds the sampler's value there (0.0 elsewhere), ``versions`` the policy version (-1 elsewhere).
    ``routes``, where the sampler kept them: the experts that each of the first tokens went to, uint8 or uint16
    [tokens, MoE layers, k]; those after the last token that was fed back have none.
    """

    spec: EpisodeSpec
    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    reward: float = 0.0
    success: bool = False
    components: dict[str, float] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False
    failure: Failure | None = None
    turns: int = 0
    seconds: float = 0.0
    routes: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def trainable(self) -> bool:
        """Graded, truncated, or failed by the agent's own fault. Other failures never reach a baseline or a loss."""
        return self.failure is None or self.failure.blame is Blame.AGENT

    @property
    def sampled_tokens(self) -> int:
        return sum(self.mask)

    def to_json(self) -> dict[str, Any]:
        """A readable row of rollouts.jsonl (messages, not token ids)."""
        return {
            "task": self.spec.task.hash,
            "kind": self.spec.task.kind,
            "group": self.spec.group,
            "member": self.spec.member,
            "reward": self.reward,
            "success": self.success,
            "components": self.components,
            "turns": self.turns,
            "tokens": len(self.tokens),
            "sampled_tokens": self.sampled_tokens,
            "version": max(self.versions, default=-1),
            "truncated": self.truncated,
            "failure": asdict(self.failure) if self.failure else None,
            "messages": [asdict(m) for m in self.messages],
        }


class FrontierTuneError(Exception):
    """Base of the typed errors. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class BadInput(FrontierTuneError):
    """The user's input can't be worked with: says what, where and how to mend it. Raised before training starts."""

    exit_code = 2


class GateFailed(FrontierTuneError):
    """A gate (parity, evaluation) refused to go on."""

    exit_code = 3


class LimitReached(FrontierTuneError):
    """A budget or failure limit was used up; the run is saved and can be resumed."""

    exit_code = 4


class EpisodeFailed(FrontierTuneError):
    """Raised within an episode by what an environment uses (a sandbox): it ends ungraded, with ``failure`` and its blame."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure = failure
