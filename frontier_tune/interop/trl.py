"""Our workflows in TRL: ``GRPOTrainer(environment_factory=trl_environment(path), ...)`` on the rows of ``trl_rows``.

TRL (1.16) wants a class with ``reset(**row)``, public methods as tools and ``get_reward()``. Its own text rendering and sampling
apply, so that tokens are those of the model's chat template.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, Task
from frontier_tune.sdk import Signature, WorkflowEnv, load_environment
from frontier_tune.sdk.grammar import ToolCall, bind, render_json
from frontier_tune.sdk.registry import find_class
from frontier_tune.sdk.tasks import draw_tasks
from frontier_tune.sdk.tools import collect_tools


def trl_rows(env: WorkflowEnv, split: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Rows for TRL's dataset: ``prompt`` (opening messages) and ``task`` (JSON text, as Arrow would merge differing mappings)."""
    rows = []
    for task in draw_tasks(env, split, n, seed):  # type: ignore[arg-type]
        messages, info = env.reset(options={"task": task})
        if info["failure"]:
            raise BadInput(f"{env.name}: task {task.hash}: {info['failure']['detail']}")
        rows.append({"prompt": [asdict(m) for m in messages], "task": json.dumps(task.to_json())})
    return rows


def trl_environment(path: str, root: str | Path = ".", **options: Any) -> type:
    """A class for ``environment_factory``; arguments as ``sdk.load_environment`` takes them."""

    def __init__(self: Any) -> None:
        self._env, self._done, self._reward = load_environment(path, root, **options), True, None

    def reset(self: Any, task: str, **row: Any) -> None:
        _, info = self._env.reset(options={"task": Task(**json.loads(task))})
        self._done, self._reward = info["failure"] is not None, None

    def get_reward(self: Any) -> float | None:
        """The episode's reward; None (which TRL leaves out) where the environment failed."""
        if not self._done:
            self._reward, info = self._env.truncate()
            self._reward = None if info["failure"] else self._reward
            self._done = True
        return self._reward

    tools = {verb: _method(signature) for verb, (_, signature) in collect_tools(find_class(path, root)).items()}
    return type("Workflow", (), {"__init__": __init__, "reset": reset, "get_reward": get_reward, **tools})


def _method(signature: Signature) -> Callable[..., str]:
    def method(self: Any, *args: Any, **kwargs: Any) -> str:
        if self._done:
            return "error: the episode is over"
        given = dict(zip((p.name for p in signature.parameters), args)) | kwargs
        call = bind(signature.name, given, self._env.signatures)  # TRL shows the model what this raises
        messages, reward, terminated, truncated, info = self._env.step(render_json(ToolCall(call.name, call.arguments)))
        if terminated or truncated:
            self._done, self._reward = True, None if info["failure"] else reward
        return "\n".join(m.content for m in messages)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    hints: dict[str, Any] = {p.name: p.type | None if p.nullable else p.type for p in signature.parameters}
    parameters = [
        inspect.Parameter(p.name, kind, annotation=hints[p.name], default=inspect.Parameter.empty if p.required else p.default)
        for p in signature.parameters
    ]
    lines = [f"    {p.name}: {p.description}{_choices(p.choices)}" for p in signature.parameters]
    method.__name__ = method.__qualname__ = signature.name
    method.__doc__ = signature.description + ("\n\nArgs:\n" + "\n".join(lines) if lines else "")
    method.__annotations__ = {**hints, "return": str}
    own = inspect.Parameter("self", kind)
    method.__signature__ = inspect.Signature([own, *parameters], return_annotation=str)  # type: ignore[attr-defined]
    return method


def _choices(choices: tuple[Any, ...]) -> str:
    return f" (choices: {json.dumps(list(choices))})" if choices else ""
