"""Episodes of invoice matching, played with one sandbox for all tests of a worker process."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from envs.invoice_matching import InvoiceMatching
from frontier_tune.contracts import Task
from frontier_tune.sandbox.code import CodeSandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[CodeSandbox]:
    with CodeSandbox(InvoiceMatching.code_limits, InvoiceMatching.code_packages) as box:
        yield box


@pytest.fixture
def env(sandbox: CodeSandbox) -> InvoiceMatching:
    env = InvoiceMatching(company_seed=7)
    env.attach_code(sandbox)
    return env


def play(env: InvoiceMatching, task: Task, calls: Sequence[str]) -> tuple[list[str], float, dict[str, Any]]:
    """Play ``calls`` until the episode ends, by a limit if they don't end it; observations, reward and info."""
    messages, _ = env.reset(options={"task": task})
    seen, reward, ended = [m.content for m in messages], 0.0, False
    info: dict[str, Any] = {}
    for call in calls:
        messages, reward, terminated, truncated, info = env.step(call)
        seen += [m.content for m in messages]
        ended = terminated or truncated
        if ended:
            break
    if not ended:
        reward, info = env.truncate()
    return seen, reward, info
