"""Adapters that bring routers of their own: in the engine they are the learner's, row by row, and the parity gate proves it."""

import dataclasses

import pytest
import torch

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, GateFailed, Request, SamplingParams
from frontier_tune.experts import canonical
from tests.sampling.scoring import SEQUENCES, at_once, gap

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def learner(setups):
    from frontier_tune.orchestration.actors import LearnerActor

    s = setups("qwen3_moe")
    adapter = {"rank": s.adapter.rank, "alpha": s.adapter.alpha, "router": True}
    return LearnerActor(str(s.base), recipes.parse({"adapter": adapter, "learner": {"threads": 1}}), None)


def move(learner, seed, std=0.1, whole=True):
    """Stands for updates: routers move, and with ``whole`` the low-rank matrices, too."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in learner._learner.policy.named_parameters():
        step = torch.randn(p.shape, generator=generator) * std
        p.data += step if whole or ".modules_to_save." in name else 0 * step


def test_the_engine_routes_as_the_learner(qwen, learner, tmp_path):
    move(learner, 1, whole=False)  # routers alone: nothing else could make the difference
    learner.save_adapter(str(tmp_path / "a"))
    version = qwen.next_version()
    qwen.sampler.sync(tmp_path / "a", version)
    base, found, wanted = qwen.sampler.score(SEQUENCES, 0), qwen.sampler.score(SEQUENCES, version), learner.score(SEQUENCES)
    assert gap(found, wanted) < 1e-5 and gap(found, base) > 0.01
    assert gap(base, qwen.reference(SEQUENCES, adapter=False)) < 1e-5
    digests = qwen.sampler.resident(version)
    assert digests == learner.digests("float32") and sum("router" in n for n in digests) == 2
    request = Request("a", tuple(SEQUENCES[0]), SamplingParams(8, 1.0, seed=1))
    (drawn,) = qwen.sampler.exchange([request])
    rescored = learner.score([[*SEQUENCES[0], *drawn.tokens]])[0][-8:]
    assert drawn.version == version and gap([drawn.logprobs], [rescored]) < 1e-5


def test_rows_of_several_routers_share_a_batch(qwen, learner, tmp_path):
    """Two versions with routers of their own, an adapter without any, and the base, in one step of the engine."""
    numbers, wanted = [0], {0: qwen.reference(SEQUENCES, adapter=False)}
    for n in (2, 3):
        move(learner, n)
        learner.save_adapter(str(tmp_path / f"{n}"))
        numbers.append(qwen.next_version())
        wanted[numbers[-1]] = learner.score(SEQUENCES)
        qwen.sampler.sync(tmp_path / f"{n}", numbers[-1], activate=False)
    found = at_once(qwen.sampler, numbers)
    for n in numbers:
        assert gap(found[n], wanted[n]) < 1e-5
    for n in numbers[1:]:
        qwen.sampler.release(n)
    from frontier_tune.experts import vllm_plugin_router  # imports vllm

    version = qwen.next_version()
    qwen.sampler.sync(qwen.write("plain"), version)  # the last one with routers is not current any more
    gates = qwen.sampler._call(lambda b: vllm_plugin_router._gates(b.manager, b.config))
    assert [gate.frontier_routers for gate in gates.values()] == [{}, {}]
    assert gap(qwen.sampler.score(SEQUENCES, version), qwen.reference(SEQUENCES)) < 1e-5


@dataclasses.dataclass
class Faulty:
    """A sampler that does something else with routers than it is told to. ``honest`` False: its digests are what it was sent."""

    setup: object
    config: object
    fault: str
    honest: bool

    def __post_init__(self):
        self.number, self.sent, self.before = {}, {}, {}

    def sync(self, directory, version):
        from frontier_tune.experts import vllm_plugin_router

        self.sent[version] = canonical.digests(canonical.load(directory, self.config))
        self.number[version] = number = self.setup.next_version()
        self.setup.sampler.sync(directory, number)

        def spoil(backend):
            key, before = backend.versions.get(number).id, self.before
            self.before = vllm_plugin_router.held(backend.manager, backend.config, key)
            if self.fault == "skipped" and before:  # those of the version before stay
                vllm_plugin_router.put(backend.manager, backend.config, key, before)
            if self.fault == "base":
                vllm_plugin_router.forget(backend.manager, backend.config, key)

        self.setup.sampler._call(spoil)

    def resident(self, version):
        return self.setup.sampler.resident(self.number[version]) if self.honest else self.sent[version]

    def score(self, sequences, version):
        return self.setup.sampler.score(sequences, self.number[version])

    def exchange(self, requests):
        back = {theirs: ours for ours, theirs in self.number.items()}
        return [dataclasses.replace(c, version=back[c.version]) for c in self.setup.sampler.exchange(requests)]


def go(qwen, learner, scratch, fault, honest=True, start=True):
    from frontier_tune.orchestration.parity import ParityGate, make_probes

    sampler = Faulty(qwen, learner._learner.policy.config, fault, honest)
    probes = make_probes([[7 * i % 300 + 5 for i in range(k, k + 90)] for k in range(4)], 4, 280)
    gate = ParityGate(learner, sampler, probes, "float32", None if start else 0.01)
    learner.save_adapter(str(scratch / "v1"))
    if start:
        gate.start(1, str(scratch / "v1"), str(scratch / "canary"))
    else:
        sampler.sync(str(scratch / "v1"), 1)
    move(learner, 9, std=0.05)
    learner.save_adapter(str(scratch / "v2"))
    sampler.sync(str(scratch / "v2"), 2)
    gate.check(2)


def test_the_gate_passes_a_clean_run(qwen, learner, tmp_path):
    go(qwen, learner, tmp_path, "")


@pytest.mark.parametrize("fault,start", [("skipped", False), ("base", False), ("skipped", True), ("base", True)])
def test_the_gate_finds_routers_that_did_not_arrive(qwen, learner, tmp_path, fault, start):
    """By their digests; and where those lie, by what the policy says of the probe, at the first sync or at any later one."""
    if not start:
        with pytest.raises(GateFailed, match="router|missing"):
            go(qwen, learner, tmp_path, fault, start=False)
    with pytest.raises(GateFailed, match="canary|same model|log-prob"):
        go(qwen, learner, tmp_path, fault, honest=False, start=start)


def test_routers_of_another_base_are_refused(qwen, learner, tmp_path):
    from safetensors.torch import load_file, save_file

    learner.save_adapter(str(tmp_path))
    file = str(tmp_path / canonical.WEIGHTS)
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("gate.weight"))
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    with pytest.raises(canonical.AdapterMismatch, match="1 missing .layers.0.router"):
        qwen.sampler.sync(tmp_path, qwen.next_version())
    config = (tmp_path / canonical.CONFIG).read_text()
    (tmp_path / canonical.CONFIG).write_text(config.replace('"mlp.gate"', '"lm_head"'))
    with pytest.raises(BadInput, match="modules_to_save"):
        qwen.sampler.sync(tmp_path, qwen.next_version())
