"""What the engine's process is given."""

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.sampling import backend, environment


def test_threads_wait_passively_and_nothing_leaves(monkeypatch):
    env = environment.engine_environment(3)
    assert env["OMP_NUM_THREADS"] == "3" and env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and env["VLLM_NO_USAGE_STATS"] == "1" and env["HF_HUB_OFFLINE"] == "1"
    assert all(isinstance(v, str) for v in env.values())
    with pytest.raises(ValueError, match="at least 1"):
        environment.engine_environment(0)


def test_openmp_settings_that_exist_are_kept(monkeypatch):
    import os

    for name in environment.engine_environment(1):
        monkeypatch.setenv(name, "kept" if name.startswith(("OMP_", "MKL_")) else "old")
    environment.apply(2)
    assert os.environ["OMP_NUM_THREADS"] == "kept" and os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_directory_without_a_base_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no base model here"):
        backend.read_base(tmp_path)


def test_an_engine_on_a_gpu_starts_beside_a_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's default share, 0.92 of the whole GPU, has to be free when it starts, whatever the cache is given."""
    from vllm.platforms import current_platform

    from frontier_tune.sampling.backend import Backend

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert Backend._device_choices(Backend.__new__(Backend)) == {"gpu_memory_utilization": 0.01}
