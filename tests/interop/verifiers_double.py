"""A stand-in for the package verifiers, written from its public description of the class interface; it does what a rollout needs.

The same tests run against the package itself where it is installed. What only the package could show is not shown by this.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
import types
from copy import deepcopy
from typing import Any

from pydantic import BaseModel, ConfigDict


class Error(Exception):
    pass


class InfraError(Error):
    pass


class ToolError(Error):
    pass


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class ToolCall(Loose):
    id: str
    name: str
    arguments: str


class Message(Loose):
    role: str
    content: Any = None
    tool_calls: list[ToolCall] | None = None


class ResponseMessage(Message):
    role: str = "assistant"
    finish_reason: str | None
    is_truncated: bool | None


class Response(Loose):
    id: str
    created: int
    model: str
    message: ResponseMessage


class Tool(Loose):
    name: str
    description: str
    parameters: dict[str, Any]


class State(dict):
    """Fields of the row (``state["input"]``) are seen at the top, too."""

    def __missing__(self, key: str) -> Any:
        return self["input"][key]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self or key in dict.get(self, "input", {}) else default


class Client:
    def __init__(self, client_or_config: Any) -> None:
        self.config = client_or_config

    async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any) -> Response:
        raise NotImplementedError


def _marked(name: str) -> Any:
    def mark(function: Any = None, priority: int = 0) -> Any:
        if function is None:
            return lambda f: mark(f, priority)
        setattr(function, name, True)
        return function

    return mark


stop, cleanup = _marked("stop"), _marked("cleanup")


class Rubric:
    def __init__(self, funcs: Any = None, weights: Any = None) -> None:
        self.funcs, self.weights = list(funcs or ()), list(weights or [1.0] * len(funcs or ()))

    def add_metric(self, function: Any, weight: float = 0.0) -> None:
        self.funcs.append(function)
        self.weights.append(weight)

    async def score_rollout(self, state: State) -> None:
        scores = []
        for function in self.funcs:
            known = {"state": state, "completion": state["completion"], "prompt": state["prompt"], "info": state.get("info")}
            scores.append(float(await function(**{k: known[k] for k in inspect.signature(function).parameters})))
        state["reward"] = sum(s * w for s, w in zip(scores, self.weights, strict=True))
        state["metrics"] = {f.__name__: s for f, s in zip(self.funcs, scores, strict=True)}

    async def cleanup(self, state: State) -> None:
        return None


class Environment:
    def __init__(
        self, dataset: Any = None, eval_dataset: Any = None, rubric: Any = None, tool_defs: Any = None, max_turns: int = -1
    ) -> None:
        self.dataset, self.eval_dataset, self.rubric, self.max_turns = dataset, eval_dataset, rubric or Rubric(), max_turns
        self.tool_defs = [t if isinstance(t, Tool) else Tool(**t) for t in tool_defs] if tool_defs else None
        self.pass_threshold = 0.5
        methods = [m for _, m in inspect.getmembers(self, inspect.ismethod)]
        self._stops = [m for m in methods if hasattr(m, "stop")]
        self._cleanups = [m for m in methods if hasattr(m, "cleanup")]

    requires_group_rollouts = False

    def get_dataset(self, n: int = -1, seed: int | None = None) -> Any:
        return self.dataset

    def get_eval_dataset(self, n: int = -1, seed: int | None = None) -> Any:
        return self.eval_dataset if self.eval_dataset is not None else self.dataset


class MultiTurnEnv(Environment):
    @stop
    async def over(self, state: State) -> bool:
        turns = len(state["trajectory"])
        return state["error"] is not None or state["final_env_response"] is not None or 0 < self.max_turns <= turns

    async def setup_state(self, state: State) -> State:
        return state

    async def rollout(self, input: Any, client: Client, model: str, sampling_args: Any = None) -> State:
        row = deepcopy(input)
        if isinstance(row.get("info"), str):
            row["info"] = json.loads(row["info"])
        if isinstance(row.get("info"), dict) and "task" in row["info"]:  # a word of theirs: it takes the row's place
            row = json.loads(row["info"]["task"])
        state = State(input=row, trajectory=[], completion=None, error=None, final_env_response=None, reward=None)
        state["prompt"] = [Message(**m) for m in row["prompt"]]
        said = state["prompt"]
        try:
            state = await self.setup_state(state) or state
        except Error as e:
            state["error"] = e
        while not any([await s(state) for s in self._stops]):
            try:
                if state["trajectory"]:
                    new = await self.env_response(said, state)  # type: ignore[attr-defined]
                    said = [*said, *(m if isinstance(m, Message) else Message(**m) for m in new)]
                    if state["final_env_response"] is not None:
                        continue
                response = await client.get_response(
                    prompt=said, model=model, tools=self.tool_defs, sampling_args=sampling_args, state=state
                )
                answer = Message(role="assistant", content=response.message.content, tool_calls=response.message.tool_calls)
                said = [*said, answer]
                state["trajectory"].append({"prompt": said[:-1], "completion": [answer]})
            except Error as e:
                state["error"] = e
        state["completion"] = said[len(state["prompt"]) :]
        for handler in self._cleanups:
            await handler(state)
        await asyncio.sleep(0)
        return state


def load_environment(env_id: str, **arguments: Any) -> Environment:
    try:
        return importlib.import_module(env_id.replace("-", "_").split("/")[-1]).load_environment(**arguments)
    except ImportError as e:
        raise ValueError(f"Could not import '{env_id}' environment.") from e


def modules() -> dict[str, types.ModuleType]:
    """What ``import verifiers`` has to find."""
    here = sys.modules[__name__]
    kinds = types.ModuleType("verifiers.types")
    for name in ("Response", "ResponseMessage", "ToolCall", "Tool"):
        setattr(kinds, name, getattr(here, name))
    return {"verifiers": here, "verifiers.types": kinds}
