"""Whole models through the real engine: read anew, proved tensor by tensor, and every injected fault is loud."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, Completion, GateFailed, Request, SamplingParams
from tests import tiny
from tests.e2e.test_parity_engine import stale_prefix_cache

pytestmark = pytest.mark.slow
PROBE = [[7 * i % 300 + 5 for i in range(k, k + 90)] for k in range(4)]


class Pair:
    """A learner all of whose weights learn, and the sampler that serves them; versions go up over all tests of one pair."""

    def __init__(self, root: Path, family: str, tied: bool) -> None:
        from frontier_tune.orchestration.actors import LearnerActor
        from frontier_tune.sampling.engine import VLLMSampler

        base = tiny.build_base(root / "base", family, tied=tied)
        sections = {
            "base": str(base),
            "learner": {"threads": 1, "trainable": "all"},
            "sampler": {"threads": 1, "kv_cache_mb": 32, "max_model_len": 512},
        }
        self.recipe = recipes.parse(sections)
        self.learner = LearnerActor(str(base), self.recipe, None)
        self.engine = VLLMSampler(base, self.recipe.sampler, log_file=root / "engine.log", reloads=True)
        self.version = 0

    def nudge(self, std: float = 0.02) -> None:
        """Stands for an update: every weight moves."""
        import torch

        generator = torch.Generator().manual_seed(self.version)
        for _, p in self.learner._learner.policy.named_parameters():
            p.data += std * torch.randn(p.shape, generator=generator)

    def write(self, root: Path) -> tuple[Path, int]:
        self.version += 1
        self.learner.save_adapter(str(root / f"v{self.version}"))
        return root / f"v{self.version}", self.version

    def gap(self) -> float:
        pairs = zip(self.engine.score(PROBE, self.version), self.learner.score(PROBE), strict=True)
        return max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module", params=[("qwen3_moe", True), ("mixtral", False)], ids=["qwen3_moe, tied", "mixtral"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("full"), *request.param)
    yield made
    made.engine.close()


class Dishonest:
    """The engine, which answers for its tensors with what it was sent."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.engine = pair, pair.engine

    def sync(self, directory: str, version: int) -> None:
        self.engine.sync(directory, version)

    def resident(self, version: int) -> Mapping[str, str]:
        if version < 1_000_000_000:
            return self.pair.learner.digests("float32")
        with self.pair.learner._learner.policy.canary():
            return self.pair.learner.digests("float32")

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        return self.engine.score(sequences, version)

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        return self.engine.exchange(requests)


def go(pair: Pair, root: Path, sampler: Any = None, steps: int = 3) -> None:
    """The start of a run and some updates, each behind the parity gate."""
    from frontier_tune.orchestration.parity import ParityGate, make_probes

    sampler = sampler or pair.engine
    gate = ParityGate(pair.learner, sampler, make_probes(PROBE, 4, 480), "float32")
    path, version = pair.write(root)
    gate.start(version, str(path), str(root / f"canary-{version}"))
    for n in range(steps):
        pair.nudge()
        path, version = pair.write(root)
        if n == 1:
            gate.canary(version, str(root / f"canary-{version}"))
        sampler.sync(str(path), version)
        gate.check(version)


def test_every_version_is_the_learner_s_and_a_clean_run_passes(pair: Pair, tmp_path: Path) -> None:
    assert pair.gap() < 1e-4 and pair.engine.version() == pair.version
    go(pair, tmp_path)
    assert pair.gap() < 1e-4
    with pytest.raises(BadInput, match="isn't in the sampler"):  # the base is gone
        pair.engine.score(PROBE, 0)
    with pytest.raises(BadInput, match="synced before"):
        pair.engine.sync(tmp_path / f"v{pair.version}", pair.version)


def test_a_reload_that_does_nothing_is_named_by_its_tensors(pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    from frontier_tune.sampling import reload

    monkeypatch.setattr(reload, "reload", lambda engine, directory, adapters: None)
    with pytest.raises(GateFailed, match=r"version \d+ in the sampler is not the learner's.*differing: .*experts"):
        go(pair, tmp_path)


def test_the_canary_sees_it_too(pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    from frontier_tune.sampling import reload

    monkeypatch.setattr(reload, "reload", lambda engine, directory, adapters: None)
    with pytest.raises(GateFailed, match="canary|same model"):
        go(pair, tmp_path, Dishonest(pair))


def test_a_layer_that_is_not_read_again_is_caught(pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    """One router is put back as it was: by itself less than the probe's tolerance."""
    from frontier_tune.experts.families import family_of
    from frontier_tune.sampling import reload

    stock = reload.reload
    name = f"model.layers.1.{family_of(pair.learner._learner.policy.config).vllm_router}"

    def all_but_one(engine: Any, directory: Path, adapters: bool) -> None:
        gate = reload.model_of(engine).get_submodule(name)
        before = gate.cpu_linear
        stock(engine, directory, adapters)
        gate.cpu_linear = before

    monkeypatch.setattr(reload, "reload", all_but_one)
    pair.nudge()
    path, version = pair.write(tmp_path)
    pair.engine.sync(path, version)
    held, want = pair.engine.resident(version), pair.learner.digests("float32")
    assert [n for n in want if held[n] != want[n]] == ["model.layers.1.mlp.gate.weight"]


def test_an_output_embedding_packed_from_the_old_input_one_is_caught(pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    from frontier_tune.experts import vllm_plugin_experts
    from frontier_tune.experts.canonical import AdapterMismatch

    if not pair.learner._learner.policy.config.tie_word_embeddings:
        pytest.skip("its embeddings are two")
    monkeypatch.setattr(vllm_plugin_experts, "tie_again", lambda model: None)
    pair.nudge()
    path, version = pair.write(tmp_path)
    pair.engine.sync(path, version)
    with pytest.raises(AdapterMismatch, match="output embedding is not its input embedding"):
        pair.engine.resident(version)


def test_a_stale_prefix_cache_is_caught(pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    stale_prefix_cache(monkeypatch, pair.engine)
    with pytest.raises(GateFailed, match="stale"):
        go(pair, tmp_path)


def test_files_that_are_damaged_and_an_engine_at_work_are_refused(pair: Pair, tmp_path: Path) -> None:
    path, version = pair.write(tmp_path)
    pair.engine.sync(path, version)
    scores = pair.engine.score(PROBE, version)
    pair.nudge()
    path, version = pair.write(tmp_path)
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadInput, match="model.safetensors: is missing, or not the file"):
        pair.engine.sync(path, version)
    weights.write_bytes(whole)
    with pytest.raises(BadInput, match="no other beside it"):
        pair.engine.sync(path, version, activate=False)

    done = threading.Event()

    def busy(backend: Any) -> None:
        backend.sample(Request("r", tuple(PROBE[0]), SamplingParams(8)), lambda completion: done.set())
        with pytest.raises(BadInput, match="while requests are open"):
            backend.sync(path, version, True)

    pair.engine._call(busy)
    assert done.wait(60)
    assert pair.engine.score(PROBE, pair.engine.version()) == scores  # nothing of it was taken
    pair.engine.sync(path, version)
    assert pair.gap() < 1e-4
