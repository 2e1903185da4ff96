"""The parity gate on the real engine and a tiny random Qwen3-MoE: every injected fault is caught, a clean run never is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import Completion, FrontierTuneError, GateFailed, Request
from tests import tiny

pytestmark = pytest.mark.slow


class Faulty:
    """A sampler behind which one thing is wrong. ``honest`` False: its digests are those of what it was sent."""

    def __init__(self, engine: Any, learner: Any, fault: str, honest: bool, scratch: Path) -> None:
        self.engine, self.learner, self.fault, self.honest, self.scratch = engine, learner, fault, honest, scratch
        self.sent: dict[int, Mapping[str, str]] = {}
        self.number: dict[int, int] = {}

    def sync(self, adapter_dir: str, version: int) -> None:
        from frontier_tune.experts import canonical

        self.sent[version] = canonical.digests(canonical.load(adapter_dir, self.learner._learner.policy.config))
        if self.fault == "skipped" and self.number:
            self.number[version] = next(iter(self.number.values()))
            return
        self.number[version] = Faulty.counter = Faulty.counter + 1
        self.engine.sync(spoil(Path(adapter_dir), self.scratch / f"{version}", self.fault), self.number[version])

    counter = 0

    def resident(self, version: int) -> Mapping[str, str]:
        held: Mapping[str, str] = self.engine.resident(self.number[version])
        return held if self.honest else self.sent[version]

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        scores: list[list[float]] = self.engine.score(sequences, self.number[version])
        return scores

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        from dataclasses import replace

        back = {theirs: ours for ours, theirs in self.number.items()}
        shift = 1 if self.fault == "version" else 0
        return [replace(c, version=back.get(c.version, -1) - shift) for c in self.engine.exchange(requests)]


def spoil(adapter: Path, to: Path, fault: str) -> str:
    """A copy of an adapter with ``fault``; every one of them loads without an error."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, to, dirs_exist_ok=True)
    tensors = load_file(str(to / "adapter_model.safetensors"))
    if fault == "transposed":  # B rank-major as it must be, read expert-major: same shape
        for key, value in tensors.items():
            if "experts" in key and "lora_B" in key:
                tensors[key] = value.reshape(value.shape[0], -1, 4).transpose(1, 2).reshape(value.shape).contiguous()
    if fault == "dropped":
        tensors = {k: v * 0 if "experts" in k else v for k, v in tensors.items()}
    save_file(tensors, str(to / "adapter_model.safetensors"), metadata={"format": "pt"})
    if fault == "alpha":
        config = json.loads((to / "adapter_config.json").read_text())
        (to / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["r"]}))
    return str(to)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    from frontier_tune.orchestration.actors import LearnerActor
    from frontier_tune.sampling.engine import VLLMSampler

    scratch = tmp_path_factory.mktemp("parity")
    base = str(tiny.build_base(scratch / "base"))
    recipe = recipes.parse(
        {
            "base": base,
            "adapter": {"rank": 4, "alpha": 8},
            "learner": {"threads": 1},
            "sampler": {"threads": 1, "kv_cache_mb": 32, "max_model_len": 512},
        }
    )
    with VLLMSampler(base, recipe.sampler, recipe.adapter, log_file=scratch / "engine.log") as engine:
        yield LearnerActor(base, recipe, None), engine


@contextmanager
def fresh_adapter(learner: Any) -> Iterator[None]:
    """The learner's adapter as it was before the test."""
    kept = [(p, p.detach().clone()) for _, p in learner._learner.policy.named_parameters()]
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.data.copy_(value)


def nudge(learner: Any, n: int) -> None:
    """Stands for an update: every B moves."""
    import torch

    generator = torch.Generator().manual_seed(n)
    for name, parameter in learner._learner.policy.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def go(sides: tuple[Any, Any], scratch: Path, fault: str = "", honest: bool = True, steps: int = 4) -> None:
    from frontier_tune.orchestration.parity import ParityGate, make_probes

    learner, engine = sides
    sampler = Faulty(engine, learner, fault, honest, scratch / "sampler")
    probes = make_probes([[7 * i % 300 + 5 for i in range(k, k + 90)] for k in range(4)], 4, 480)
    gate = ParityGate(learner, sampler, probes, "float32")
    with fresh_adapter(learner):
        learner.save_adapter(str(scratch / "v1"))
        gate.start(1, str(scratch / "v1"), str(scratch / "canary-1"))
        for n in range(2, steps + 2):
            nudge(learner, n)
            if n % 3 == 0:
                gate.canary(n, str(scratch / f"canary-{n}"))
            learner.save_adapter(str(scratch / f"v{n}"))
            sampler.sync(str(scratch / f"v{n}"), n)
            gate.check(n)


def test_a_clean_run_passes(sides: tuple[Any, Any], tmp_path: Path) -> None:
    go(sides, tmp_path, steps=8)


@pytest.mark.parametrize("fault", ["transposed", "dropped", "alpha", "skipped"])
def test_spoilt_tensors_are_named(sides: tuple[Any, Any], tmp_path: Path, fault: str) -> None:
    with pytest.raises(GateFailed, match="experts"):
        go(sides, tmp_path, fault)


@pytest.mark.parametrize("fault", ["transposed", "dropped", "alpha", "skipped"])
def test_the_probe_sees_them_too(sides: tuple[Any, Any], tmp_path: Path, fault: str) -> None:
    with pytest.raises(GateFailed, match="canary|same model|log-prob"):
        go(sides, tmp_path, fault, honest=False)


def test_a_wrong_version_is_caught(sides: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="version"):
        go(sides, tmp_path, "version")


def test_an_adapter_without_its_experts_is_refused_by_name(sides: tuple[Any, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    learner, engine = sides
    learner.save_adapter(str(tmp_path / "v"))
    file = str(tmp_path / "v" / "adapter_model.safetensors")
    save_file({k: v for k, v in load_file(file).items() if "experts" not in k}, file)
    with pytest.raises(FrontierTuneError, match="experts"):
        engine.sync(str(tmp_path / "v"), 4_000)


def test_a_stale_prefix_cache_is_caught(sides: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All versions under one cache key, and no reset on sync: what vLLM does where an adapter is reloaded under its name."""
    stale_prefix_cache(monkeypatch, sides[1])
    with pytest.raises(GateFailed, match="stale"):
        go(sides, tmp_path)


def stale_prefix_cache(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.sched.scheduler import Scheduler

    nothing: Callable[..., list[str]] = lambda request: []  # noqa: E731
    monkeypatch.setattr(kv_cache_utils, "_gen_lora_extra_hash_keys", nothing)
    monkeypatch.setattr(Scheduler, "reset_prefix_cache", lambda self, *a, **k: True)
