"""Practice for a base: golden programs of many companies, so that every way of doing the work is met and none is a favourite.

A base that is trained on such dialogues can try each way, and is at chance among them: which one a company means is left to that
company's reward. Training tasks alone are used, so held-out tasks and layout families stay unseen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frontier_tune.contracts import BadInput, Message
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
        messages, info = env.reset(options={"task": task})
        said = list(messages)
        for call in env.golden(task):
            answer, _, _, _, info = env.step(call)
            said += [Message("assistant", call), *answer]
        if not info["success"]:
            why = info["failure"] or info["components"]
            raise BadInput(f"practice: the golden program of {path}, company {company}, fails on task {task.hash}: {why}")
        yield Practice(task.kind, company, tuple(said))
