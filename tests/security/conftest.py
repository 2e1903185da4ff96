"""A sandbox of each kind that this machine can make, a secret in its host's environment; else a skip with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sandbox.confine import KINDS, available
from tests.security.escape import LIMITS, TOKEN


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[CodeSandbox]:
    if reason := available()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    os.environ["FRONTIER_TUNE_TEST_SECRET"] = TOKEN
    try:
        with CodeSandbox(LIMITS, confinement=request.param) as made:
            made.run_python("pass")
            yield made
    finally:
        del os.environ["FRONTIER_TUNE_TEST_SECRET"]
