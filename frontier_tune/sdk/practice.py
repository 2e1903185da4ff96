"""Practice for a base: golden programs of many companies, so that every way of doing the work is met and none is a favourite.

A base that is trained on such dialogues can try each way, and is at chance among them: which one a company means is left to that
company's reward. Training tasks alone are used, so held-out tasks and layout families stay unseen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frontier_tune.contracts import BadInput, Message, Task
from frontier_tune.sdk.env import WorkflowEnv
from frontier_tune.sdk.registry import load_environment

COMPANIES = 10**6  # company seeds are drawn below this


@dataclass(frozen=True)
class Practice:
    """One solved task of one company. ``messages`` from the prompt to the last observation; assistant turns are compact calls."""

    kind: str
    company: int
    messages: tuple[Message, ...]


def dialogues(path: str, root: str | Path = ".", *, n: int, seed: int, option: str = "company_seed") -> Iterator[Practice]:
    """``n`` dialogues of the environment at ``path``, a company of its own for each; a pure function of the arguments.

    ``option``: the environment's option that draws a company. Raises BadInput where it has none, or where a golden program fails.
    """
    rng = random.Random(f"practice/{path}/{seed}")
    for task in load_environment(path, root, **{option: 0}).tasks("train", n, seed):
        company = rng.randrange(COMPANIES)
        env = load_environment(path, root, **{option: company})
        yield Practice(task.kind, company, _solved(env, task, path, company))


def ways(
    path: str, root: str | Path = ".", *, tasks: int = 8, companies: int = 300, seed: int = 0, option: str = "company_seed"
) -> dict[str, list[tuple[tuple[Message, ...], ...]]]:
    """Kind -> the ways of doing it that so many companies have: each is its dialogues on the same ``tasks`` training tasks.

    Companies whose golden programs agree on all of these are one way. Raises BadInput as ``dialogues`` does.
    """
    rng = random.Random(f"ways/{path}/{seed}")
    drawn = [rng.randrange(COMPANIES) for _ in range(companies)]
    environments = [load_environment(path, root, **{option: company}) for company in drawn]
    by_kind: dict[str, list[Task]] = defaultdict(list)
    for task in environments[0].tasks("train", 64 * tasks, seed):
        if len(by_kind[task.kind]) < tasks:
            by_kind[task.kind].append(task)
    found = {}
    for kind, chosen in by_kind.items():
        one_of: dict[tuple[tuple[str, ...], ...], int] = {}
        for i, env in enumerate(environments):
            one_of.setdefault(tuple(tuple(env.golden(task)) for task in chosen), i)
        found[kind] = [tuple(_solved(environments[i], task, path, drawn[i]) for task in chosen) for i in one_of.values()]
    return found


def _solved(env: WorkflowEnv, task: Task, path: str, company: int) -> tuple[Message, ...]:
    """The golden program's dialogue, from the prompt to the last observation."""
    messages, info = env.reset(options={"task": task})
    said = list(messages)
    for call in env.golden(task):
        answer, _, _, _, info = env.step(call)
        said += [Message("assistant", call), *answer]
    if not info["success"]:
        why = info["failure"] or info["components"]
        raise BadInput(f"practice: the golden program of {path}, company {company}, fails on task {task.hash}: {why}")
    return tuple(said)
