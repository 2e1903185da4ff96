"""The parity gate on small fakes: each injected fault is caught, a clean run never is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from frontier_tune.contracts import Completion, GateFailed, Request
from frontier_tune.orchestration.parity import CANARY_VERSIONS, ParityGate, make_probes

PROBES = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]
VOCABULARY = 12
Weights = dict[str, list[float]]


def logprobs(weights: Weights, tokens: Sequence[int], noise: float = 0.0) -> list[float]:
    """A toy policy: each token's logit depends on the one before, through every weight."""
    flat = [w for name in sorted(weights) for w in weights[name]]
    out = []
    for i in range(1, len(tokens)):
        logits = [
            math.sin(tokens[i - 1] * 7 + v) + sum(w * math.cos((k + 1) * (v + tokens[i - 1])) for k, w in enumerate(flat))
            for v in range(VOCABULARY)
        ]
        total = math.log(sum(map(math.exp, logits)))
        out.append(logits[tokens[i]] - total + noise * math.sin(i))
    return out


@dataclass
class FakeLearner:
    weights: Weights = field(
        default_factory=lambda: {"attention.B": [0.0, 0.0], "experts.A": [0.3, -0.2], "experts.B": [0.0, 0.0]}
    )
    files: dict[str, Weights] = field(default_factory=dict)

    def effective(self, canary: bool = False) -> Weights:
        w = self.weights if not canary else {**self.weights, "attention.B": [0.0, 0.0], "experts.B": [0.9, -0.7]}
        return {
            "attention": w["attention.B"],
            "experts": [a * b * 10 for a, b in zip(w["experts.A"], w["experts.B"], strict=True)],
        }

    def digests(self, dtype: str) -> Mapping[str, str]:
        return {k: repr(v) for k, v in self.effective().items()}

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | None = None) -> list[list[float]]:
        return [logprobs(self.files[adapter_dir] if adapter_dir else self.effective(), s) for s in sequences]

    def write_canary(self, directory: str, dtype: str) -> Mapping[str, str]:
        self.files[directory] = self.effective(canary=True)
        return {k: repr(v) for k, v in self.files[directory].items()}

    def save_adapter(self, directory: str) -> None:
        self.files[directory] = self.effective()


@dataclass
class FakeSampler:
    learner: FakeLearner
    fault: str = ""
    honest: bool = True  # False: reports the digests that it was sent, not those of what it computes with
    noise: float = 1e-6
    held: dict[int, Weights] = field(default_factory=dict)
    sent: dict[int, Weights] = field(default_factory=dict)
    version: int = 0
    cache: Weights | None = None
    tie: bool = False  # an expert's choice that hangs on the last bits falls otherwise here: of one continued token

    def sync(self, adapter_dir: str, version: int) -> None:
        weights = self.learner.files[adapter_dir]
        self.sent[version] = weights
        if self.fault == "skipped" and self.held:
            self.held[version] = next(iter(self.held.values()))
        else:
            self.held[version] = self._spoil(weights)
        if self.fault != "version" or not self.version:
            self.version = version

    def _spoil(self, w: Weights) -> Weights:
        if self.fault == "transposed":
            return {**w, "experts": w["experts"][::-1]}
        if self.fault == "dropped":
            return {"attention": w["attention"]} if self.honest else {**w, "experts": [0.0, 0.0]}
        if self.fault == "alpha":
            return {k: [x / 2 for x in v] for k, v in w.items()}
        return w

    def resident(self, version: int) -> Mapping[str, str]:
        return {k: repr(v) for k, v in (self.held if self.honest else self.sent)[version].items()}

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        return [logprobs(self.held[version], s, self.noise) for s in sequences]

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        weights = self.held[self.version]
        if self.fault == "stale cache":
            self.cache = weights = self.cache or weights
        done = []
        for r in requests:
            draw = random.Random(r.params.seed)
            tokens = tuple(draw.randrange(VOCABULARY) for _ in range(r.params.max_tokens))
            scores = logprobs(weights, [*r.tokens, *tokens], self.noise)[-len(tokens) :]
            if self.tie and r is requests[0]:
                scores[5] += 0.44
            done.append(Completion(r.id, tokens, tuple(scores), self.version, "length"))
        return done


def run(fault: str = "", honest: bool = True, steps: int = 6, noise: float = 1e-6) -> None:
    """Start, then ``steps`` updates with a sync each, as the loop does it. The fault sets in after the start where it must."""
    learner = FakeLearner()
    sampler = FakeSampler(learner, fault, honest, noise)
    gate = ParityGate(learner, sampler, PROBES, "float32")
    learner.save_adapter("v1")
    gate.start(1, "v1", "canary-1")
    for n in range(2, steps + 2):
        learner.weights["experts.B"] = [0.02 * n, -0.03 * n]
        learner.weights["attention.B"] = [0.01 * n, 0.02]
        if n % 3 == 0:
            gate.canary(n, f"canary-{n}")
        learner.save_adapter(f"v{n}")
        sampler.sync(f"v{n}", n)
        gate.check(n)


def test_a_clean_run_passes_at_any_noise_of_engines() -> None:
    for noise in (0.0, 1e-6, 1e-4, 3e-3):
        run(noise=noise)


def test_a_tie_between_experts_that_rounding_settles_is_no_fault() -> None:
    """Seen on a sound run: 1.3e-6 between the second and the third router logit of one of 32 continued tokens."""
    learner = FakeLearner()
    gate = ParityGate(learner, FakeSampler(learner, tie=True), PROBES, "float32")
    learner.save_adapter("v1")
    assert gate.start(1, "v1", "canary-1")["tolerance"] == 1e-3
    found = gate.check(1)
    assert found["gap"] > 10 * found["tolerance"] > 1000 * found["gap_typical"]


@pytest.mark.parametrize("fault", ["transposed", "dropped", "alpha", "skipped"])
def test_tensors_that_differ_are_named(fault: str) -> None:
    with pytest.raises(GateFailed, match="experts"):
        run(fault)


@pytest.mark.parametrize("fault", ["transposed", "dropped", "alpha", "skipped", "stale cache"])
def test_the_probe_sees_what_digests_do_not(fault: str) -> None:
    with pytest.raises(GateFailed, match="canary|log-probabilities|same model"):
        run(fault, honest=False)


def test_a_wrong_version_is_caught() -> None:
    with pytest.raises(GateFailed, match="version"):
        run("version")


@pytest.mark.parametrize("side", ["learner", "sampler"])
def test_a_side_without_numbers_is_caught(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is neither above nor below any tolerance."""
    learner = FakeLearner()
    sampler = FakeSampler(learner)
    gate = ParityGate(learner, sampler, PROBES, "float32")
    learner.save_adapter("v1")
    gate.start(1, "v1", "canary-1")
    broken: Callable[..., list[list[float]]] = lambda sequences, *_: [[math.nan] * (len(s) - 1) for s in sequences]  # noqa: E731
    monkeypatch.setattr(learner if side == "learner" else sampler, "score", broken)
    with pytest.raises(GateFailed, match="not finite"):
        gate.check(1)


def test_another_base_on_one_side_is_caught_at_start() -> None:
    with pytest.raises(GateFailed, match="same model"):
        run(noise=0.5)


def test_a_canary_that_moves_nothing_proves_nothing() -> None:
    learner = FakeLearner()
    learner.weights["experts.A"] = [0.0, 0.0]
    learner.save_adapter("v1")
    with pytest.raises(GateFailed, match="too little"):
        ParityGate(learner, FakeSampler(learner), PROBES, "float32").start(1, "v1", "canary")


def test_the_canary_is_heard_above_the_rounding_of_bfloat16() -> None:
    """Two hundredths of a nat a token at start are sound there, and eight times that is the tolerance."""
    for noise, heard in ((0.04, True), (0.08, False)):
        learner = FakeLearner()
        gate = ParityGate(learner, FakeSampler(learner, noise=noise), PROBES, "bfloat16")
        learner.save_adapter("v1")
        if heard:
            found = gate.start(1, "v1", "canary")
            assert 6 < found["canary_effect"] / found["tolerance"] < 10
        else:
            with pytest.raises(GateFailed, match="too little"):
                gate.start(1, "v1", "canary")


def test_tolerance_of_the_recipe_or_a_resumed_run_is_kept() -> None:
    learner = FakeLearner()
    gate = ParityGate(learner, FakeSampler(learner), PROBES, "float32", tolerance=0.05)
    learner.save_adapter("v1")
    assert gate.start(1, "v1", "canary")["tolerance"] == 0.05


def test_versions_of_canaries_stay_out_of_the_policy_s_way() -> None:
    learner = FakeLearner()
    sampler = FakeSampler(learner)
    learner.save_adapter("v7")
    ParityGate(learner, sampler, PROBES, "float32").start(7, "v7", "canary")
    assert sorted(sampler.held) == [7, CANARY_VERSIONS + 7]
    assert sampler.version == 7


def test_probes_span_more_than_a_block_and_fit_the_context() -> None:
    openings = [[1, 2, 3], [4, 5]]
    assert [len(p) for p in make_probes(openings, 3, 4096)] == [288] * 3
    assert [len(p) for p in make_probes(openings, 2, 100)] == [100] * 2
    several: Callable[[], list[list[int]]] = lambda: make_probes(openings, 3, 64)  # noqa: E731
    assert several() == several()
