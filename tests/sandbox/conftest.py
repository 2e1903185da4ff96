"""A sandbox of each kind that this machine can make; elsewhere the test is skipped with the reason."""

from collections.abc import Iterator

import pytest

from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sandbox.confine import KINDS, available
from frontier_tune.sdk import CodeLimits

LIMITS = CodeLimits(wall_s=300.0, cpu_s=20.0, memory_mb=512, disk_mb=8, file_mb=4, entries=200, output_kb=32)


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[CodeSandbox]:
    if reason := available()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    with CodeSandbox(LIMITS, confinement=request.param) as made:
        yield made
