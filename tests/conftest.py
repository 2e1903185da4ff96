"""What every test runs under: no network telemetry, one thread a process, passive waiting. Set before any heavy import."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# An example's wall clock tells about the machine, not about the code.
hypothesis.settings.register_profile("busy-machine", deadline=None)
hypothesis.settings.load_profile("busy-machine")

# Two xdist workers share two cores: OpenMP threads that spin would cost 5 to 20 times the wall clock.
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "MPLBACKEND": "Agg",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

# Ray reads its environment when it is imported, and engines import it too: ours has to be settled before any of them.
import frontier_tune.orchestration  # noqa: E402, F401

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root: the workspace that holds envs/, rewards/ and recipes/."""
    return ROOT


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests, with the reason, where torch sees no GPU (torch is imported only if such a test was collected)."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if wanted and not _cuda():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and a CUDA build of torch"))
