"""Our workflows as verifiers environments, for its evaluations and trainers: ``verifiers_environment(path)``.

The class interface of verifiers (``verifiers.MultiTurnEnv``). A module that its tools load by name is three lines:

    def load_environment(**options):
        return verifiers_environment("envs/month_end_close", **options)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, Task
from frontier_tune.sdk import ToolCall, WorkflowEnv, load_environment, render_json
from frontier_tune.sdk.tasks import check_disjoint, draw_tasks

_ENV, _GRADE = "workflow", "workflow_grade"


def verifiers_environment(
    path: str,
    root: str | Path = ".",
    *,
    train_tasks: int = 1000,
    heldout_tasks: int = 200,
    seed: int = 0,
    prepare: Callable[[WorkflowEnv], None] | None = None,
    **options: Any,
) -> Any:
    """A ``verifiers.MultiTurnEnv`` that plays the workflow at ``path`` (arguments as ``sdk.load_environment`` takes them).

    The model may call tools natively or write calls (compact or JSON) as text. The rubric's reward is the workflow's; ``success``
    is a metric. ``prepare`` is called with every new environment, to attach a sandbox where tools run code.

    Raises BadInput where verifiers is not installed or the splits overlap.
    """
    try:
        import verifiers as vf
        from datasets import Dataset
    except ImportError as e:
        raise BadInput(f"offering '{path}' to verifiers: {e}; install the package verifiers") from None

    idle: list[WorkflowEnv] = []

    def new() -> WorkflowEnv:
        if idle:
            return idle.pop()
        env = load_environment(path, root, **options)
        if prepare is not None:
            prepare(env)
        return env

    class Workflow(vf.MultiTurnEnv):
        async def setup_state(self, state: Any) -> Any:
            env = new()
            _, info = env.reset(options={"task": Task(**json.loads(state["info"]["workflow_task"]))})
            state[_ENV], state[_GRADE] = env, None
            if info["failure"]:
                raise vf.InfraError(f"{info['failure']['kind']}: {info['failure']['detail']}")
            return state

        async def env_response(self, messages: Any, state: Any, **_: Any) -> list[dict[str, Any]]:
            answers: list[dict[str, Any]] = []
            for call_id, text in _calls(messages[-1]):
                if state[_GRADE] is not None:  # a later call of the same turn
                    told = "the episode is over"
                else:
                    said, reward, terminated, truncated, info = state[_ENV].step(text)
                    if info["failure"]:
                        raise vf.InfraError(f"{info['failure']['kind']}: {info['failure']['detail']}")
                    told = "\n".join(m.content for m in said)
                    if terminated or truncated:
                        state[_GRADE] = _grade(reward, info)
                answers.append(
                    {"role": "tool", "content": told, "tool_call_id": call_id} if call_id else {"role": "user", "content": told}
                )
            if state[_GRADE] is not None:
                state["final_env_response"] = answers
            return answers

        @vf.cleanup
        async def close_workflow(self, state: Any) -> None:
            """What was not handed in is graded as it stands; the environment is free for another rollout."""
            env = state.pop(_ENV, None)
            if env is not None:
                if state[_GRADE] is None:
                    state[_GRADE] = _grade(*env.truncate())
                idle.append(env)

    env = new()
    train, heldout = draw_tasks(env, "train", train_tasks, seed), draw_tasks(env, "heldout", heldout_tasks, seed)
    check_disjoint(train, heldout)
    rows = [[_row(env, task) for task in tasks] for tasks in (train, heldout)]
    functions = [s["function"] for s in env.schemas]
    idle.append(env)
    return Workflow(
        dataset=Dataset.from_list(rows[0]),
        eval_dataset=Dataset.from_list(rows[1]),
        rubric=_rubric(vf),
        max_turns=-1,  # the workflow keeps its own limit; theirs would end a rollout before its last turn is carried out
        tool_defs=[{k: f[k] for k in ("name", "description", "parameters")} for f in functions],
    )


def _row(env: WorkflowEnv, task: Task) -> dict[str, Any]:
    messages, info = env.reset(options={"task": task})
    if info["failure"]:
        raise BadInput(f"{env.name}: task {task.hash}: {info['failure']['detail']}")
    info = {"workflow_task": json.dumps(task.to_json())}  # "task" would take the whole row's place
    return {"prompt": [asdict(m) for m in messages], "answer": "", "info": json.dumps(info)}


def _calls(message: Any) -> list[tuple[str, str]]:
    """(id, text) of each native tool call of an assistant's message; without any, its text as one call without id."""
    native = message.get("tool_calls") or []
    found = []
    for call in native:
        function = call.get("function") or call
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = None
        text = (
            render_json(ToolCall(function.get("name"), arguments))
            if isinstance(arguments, dict)
            else str(function.get("arguments"))
        )
        found.append((call.get("id"), text))
    return found or [("", str(message.get("content") or ""))]


def _grade(reward: float, info: dict[str, Any]) -> dict[str, Any]:
    return {"reward": reward, "success": float(info["success"]), "components": info["components"], "failure": info["failure"]}


def _rubric(vf: Any) -> Any:
    async def reward(state: Any) -> float:
        return float((state.get(_GRADE) or {}).get("reward", 0.0))

    async def success(state: Any) -> float:
        return float((state.get(_GRADE) or {}).get("success", 0.0))

    rubric = vf.Rubric(funcs=[reward], weights=[1.0])
    rubric.add_metric(success)
    return rubric
