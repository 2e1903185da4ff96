"""Any text gymnasium environment as a workflow: ``frontier_tune.interop.gym:GymnasiumWorkflow`` in a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium

from frontier_tune.contracts import BadInput
from frontier_tune.sdk import Grade, Message, Task, ToolError, WorkflowEnv, tool


class GymnasiumWorkflow(WorkflowEnv):
    """Plays ``id`` (an id of gymnasium's registry) with one tool, ``act``.

    Observations are shown as text: what ``render`` gives in mode ``ansi``, else ``str`` of the observation. Actions are the
    environment's own text (``Text`` spaces and custom ones that take strings) or, for ``Discrete`` spaces, a name of ``actions``
    or a number. The reward is the sum over the episode; success is a sum of at least ``success_at`` (default: the environment's
    ``reward_threshold``). A task is a seed; training and held-out seeds are disjoint.
    """

    name = "gymnasium"

    def __init__(
        self,
        id: str,
        instruction: str,
        actions: Sequence[str] = (),
        success_at: float | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        try:
            self.inner = gymnasium.make(id, **(kwargs or {}))
        except (gymnasium.error.Error, ImportError) as e:
            raise BadInput(f"gymnasium environment '{id}': {e}") from None
        spec, space = self.inner.spec, self.inner.action_space
        threshold = success_at if success_at is not None else spec.reward_threshold if spec else None
        if threshold is None:
            raise BadInput(f"gymnasium environment '{id}' has no reward_threshold; set success_at")
        self.id, self.instruction, self.success_at = id, instruction, float(threshold)
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        if not self.discrete and not space.contains(space.sample()) or not (self.discrete or isinstance(space.sample(), str)):
            raise BadInput(f"gymnasium environment '{id}': its actions are {space}; text or Discrete is needed")
        if actions and (not self.discrete or len(actions) != space.n):
            raise BadInput(f"gymnasium environment '{id}': {len(actions)} names for the actions {space}")
        self.actions = list(actions)

    def tasks(self, split: Literal["train", "heldout"], n: int, seed: int) -> list[Task]:
        first = seed % 1_000_000 * 1000
        return [Task(self.id, split, {"id": self.id, "seed": 2 * (first + i) + (split == "heldout")}) for i in range(n)]

    def begin(self, task: Task) -> list[Message]:
        observation, _ = self.inner.reset(seed=task.data["seed"])
        self.inner.action_space.seed(task.data["seed"])
        self.total = 0.0
        choices = f"\nActions: {', '.join(self.actions)}" if self.actions else ""
        return [Message("user", f"{self.instruction}{choices}\n{self._show(observation)}")]

    @tool
    def act(self, action: str) -> str:
        """Take one action.

        Args:
            action: The action's text, name or number.
        """
        chosen = self._choose(action)
        observation, reward, terminated, truncated, _ = self.inner.step(chosen)
        self.total += float(reward)
        if terminated or truncated:
            self.finish()
        return self._show(observation)

    def grade(self) -> Grade:
        if not math.isfinite(self.total):
            raise ValueError(f"the rewards of {self.id} sum to {self.total}")
        return Grade(self.total, self.total >= self.success_at, {"reward": self.total})

    def close(self) -> None:
        self.inner.close()

    def _choose(self, action: str) -> Any:
        chosen: Any = action
        if self.discrete:
            known = self.actions or [str(i + self.inner.action_space.start) for i in range(self.inner.action_space.n)]
            if action not in known:
                raise ToolError(f"unknown action {action!r:.40}; actions: {', '.join(known)}")
            chosen = known.index(action) + int(self.inner.action_space.start)
        if not self.inner.action_space.contains(chosen):
            raise ToolError(f"{action!r:.40} is no action here")
        return chosen

    def _show(self, observation: Any) -> str:
        return str(self.inner.render() if self.inner.render_mode == "ansi" else observation)
