"""An episode from a list of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frontier_tune.sdk import Task, WorkflowEnv


def play(env: WorkflowEnv, task: Task, calls: Sequence[str]) -> tuple[list[str], float, dict[str, Any]]:
    """Play ``calls`` until the episode ends, which no failure may do: what tools said, and the last reward and info."""
    env.reset(options={"task": task})
    said, reward = [], 0.0
    info: dict[str, Any] = {}
    for call in calls:
        messages, reward, terminated, truncated, info = env.step(call)
        said += [m.content for m in messages]
        if terminated or truncated:
            break
    assert info["failure"] is None
    return said, reward, info
