"""The parity gate: after every sync the sampler must hold, and act by, the very policy that the learner holds.

Four checks, from cheap and exact to numeric and end to end:

1. the tensors resident in the sampler have the digests of the learner's, both in canonical form at the sampler's dtype;
2. the version that the sampler answers with is the one just synced;
3. a fixed probe batch has the same log-probabilities on both sides, when scored and when continued. Scoring never reads the
   prefix cache, sampling does, and the probes are the same at every version: a cache that outlives its policy shows here;
4. at start and every N syncs a canary adapter of large norm, on the experts alone where they are adapted, takes the same path
   first. A fresh adapter has B = 0 and changes nothing, so it can't show a lost, transposed or mis-scaled tensor; the canary
   does: its effect on the probe must be the same on both sides.

The tolerance comes from the noise at start, when the policy is the base on both sides. What is held against it is the mean over
the probe's tokens without the largest quarter: where two experts' router logits agree to the last bits, the rounding of either
engine decides which of them a token goes to, and that token (with what attends to it) then differs by tenths of a nat though
nothing is wrong. Such ties come up once in some hundred syncs. A fault of tensor, scale, version or cache moves nearly
all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from frontier_tune.contracts import Completion, GateFailed, Request, SamplingParams
from frontier_tune.contracts import Sampler as Engine
from frontier_tune.orchestration.groups import derive_seed

CONTINUED = 8  # tokens sampled after each probe
NOISE_FACTOR = 8.0  # as the policy sharpens and routes shift, rounding differences of two engines grow from those at start
FLOOR = {"float32": 1e-3, "bfloat16": 2e-2}  # nats a token; a smaller difference of two engines means nothing
CEILING = {"float32": 0.02, "bfloat16": 0.2}  # more than this at start is no noise: two different models
CANARY_EFFECT = {"float32": 10.0, "bfloat16": 6.0}  # tolerances that the canary must move the probe by, at least
CANARY_SHARE = 0.05  # of the canary's effect may differ between the sides; every fault of form moves far more
PROBE_TOKENS = 288  # a probe spans more than one block of the KV cache (128 tokens on CPU), or the prefix cache stays unseen
CANARY_VERSIONS = 1_000_000_000  # canaries take versions out of the way of the policy's


class LearnerSide(Protocol):
    def digests(self, dtype: str) -> Mapping[str, str]: ...

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | None = None) -> list[list[float]]: ...

    def write_canary(self, directory: str, dtype: str) -> Mapping[str, str]: ...


class SamplerSide(Engine, Protocol):
    def sync(self, adapter_dir: str, version: int) -> Any: ...

    def resident(self, version: int) -> Mapping[str, str]: ...


class Gap(NamedTuple):
    """|sampler - learner| in nats a token, of scored or continued tokens, whichever is worse; and the learner's scores.

    ``typical``: the mean without the largest quarter.
    """

    mean: float
    typical: float
    learned: list[list[float]]


@dataclass
class ParityGate:
    """``probes``: token ids, the same throughout a run, longer than a block of the sampler's KV cache.

    ``tolerance``: largest |difference| in nats a token (``Gap.typical``); from the recipe or a resumed run, else by ``start``.
    """

    learner: LearnerSide
    sampler: SamplerSide
    probes: Sequence[Sequence[int]]
    dtype: str
    tolerance: float | None = None

    def start(self, version: int, adapter_dir: str, canary_dir: str) -> dict[str, float]:
        """Canary, then the policy's first sync, from whose noise the tolerance follows. Raises GateFailed."""
        base = self.learner.score(self.probes)
        digests, canary = self._sync_canary(version, canary_dir)
        self.sampler.sync(adapter_dir, version)
        self._same_tensors(version, self.learner.digests(self.dtype))
        gap = self._gap(version)
        if gap.typical > CEILING[self.dtype] and self.tolerance is None:
            raise GateFailed(
                f"parity: before any training, learner and sampler differ by {gap.typical:.3g} nats a token on the probe (noise "
                f"at {self.dtype} is below {CEILING[self.dtype]:g}): they do not run the same model. Another base or dtype, "
                "a sync that did nothing, or a stale prefix cache"
            )
        self.tolerance = self.tolerance or max(FLOOR[self.dtype], NOISE_FACTOR * gap.typical)
        effect = self._judge_canary(canary, base, digests)
        self._require(gap, version)
        return {"gap": gap.mean, "gap_typical": gap.typical, "tolerance": self.tolerance, "canary_effect": effect}

    def canary(self, version: int, canary_dir: str) -> dict[str, float]:
        """Send the canary through, before version ``version`` is synced. Raises GateFailed."""
        base = self.learner.score(self.probes)
        digests, found = self._sync_canary(version, canary_dir)
        return {"canary_effect": self._judge_canary(found, base, digests)}

    def check(self, version: int) -> dict[str, float]:
        """The gate after the sync of ``version``. Raises GateFailed naming the tensors where some differ."""
        self._same_tensors(version, self.learner.digests(self.dtype))
        gap = self._gap(version)
        self._require(gap, version)
        return {"gap": gap.mean, "gap_typical": gap.typical, "tolerance": self._limit}

    @property
    def _limit(self) -> float:
        if self.tolerance is None:
            raise RuntimeError("the parity gate has no tolerance before start()")
        return self.tolerance

    def _same_tensors(self, version: int, learned: Mapping[str, str]) -> None:
        held = self.sampler.resident(version)
        faults = {
            "missing": sorted(set(learned) - set(held)),
            "differing": sorted(n for n in learned if n in held and learned[n] != held[n]),
            "unknown": sorted(set(held) - set(learned)),
        }
        if any(faults.values()):
            what = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
            raise GateFailed(
                f"parity: version {version} in the sampler is not the learner's adapter of {len(learned)} tensors: {what}"
            )

    def _gap(self, version: int, adapter_dir: str | None = None) -> Gap:
        completions = self._continue(version)
        scored = self.sampler.score(self.probes, version)
        learned = self.learner.score([[*p, *c.tokens] for p, c in zip(self.probes, completions, strict=True)], adapter_dir)
        on_probe, on_continued = [], []
        for probe, completion, ours, theirs in zip(self.probes, completions, scored, learned, strict=True):
            n = len(probe) - 1
            on_probe += [abs(a - b) for a, b in zip(ours, theirs[:n], strict=True)]
            on_continued += [abs(a - b) for a, b in zip(completion.logprobs, theirs[n:], strict=True)]
        lost = sum(not math.isfinite(x) for x in (*on_probe, *on_continued))
        if lost:  # every comparison with NaN is false: a gap that is none would pass as a small one
            raise GateFailed(
                f"parity: as version {version} {lost} log-probabilities of the probe are not finite on one side or both"
            )
        parts = (on_probe, on_continued)
        scores = [row[: len(p) - 1] for row, p in zip(learned, self.probes)]
        return Gap(max(map(_mean, parts)), max(map(_trimmed, parts)), scores)

    def _continue(self, version: int) -> list[Completion]:
        requests = [
            Request(f"probe-{version}-{i}", tuple(p), SamplingParams(CONTINUED, temperature=1.0, seed=derive_seed("probe", i)))
            for i, p in enumerate(self.probes)
        ]
        done = {c.request_id: c for c in self.sampler.exchange(requests)}
        while len(done) < len(requests):
            done |= {c.request_id: c for c in self.sampler.exchange([])}
        for completion in done.values():
            if completion.finish == "error":
                raise GateFailed(f"parity: the sampler failed on a probe: {completion.error}")
            if completion.version != version:
                raise GateFailed(
                    f"parity: the sampler answered as version {completion.version} after the sync of version {version}"
                )
        return [done[r.id] for r in requests]

    def _sync_canary(self, version: int, directory: str) -> tuple[Mapping[str, str], Gap]:
        digests = self.learner.write_canary(directory, self.dtype)
        self.sampler.sync(directory, CANARY_VERSIONS + version)
        self._same_tensors(CANARY_VERSIONS + version, digests)
        return digests, self._gap(CANARY_VERSIONS + version, directory)

    def _judge_canary(self, found: Gap, base: Sequence[Sequence[float]], names: Mapping[str, str]) -> float:
        gap, moved = found.mean, found.learned
        effect = _mean(
            [abs(a - b) for before, after in zip(base, moved, strict=True) for a, b in zip(before, after, strict=True)]
        )
        if effect < CANARY_EFFECT[self.dtype] * self._limit:
            raise GateFailed(f"parity: the canary moves the probe by {effect:.3g} nats a token: too little at {self._limit:.3g}")
        if gap > max(self._limit, CANARY_SHARE * effect):
            raise GateFailed(
                f"parity: the canary adapter moves the learner by {effect:.3g} nats a token, the sampler differs from that by "
                f"{gap:.3g}: a part of it is lost, transposed, mis-scaled or stale on its way ({_some(sorted(names))})"
            )
        return effect

    def _require(self, gap: Gap, version: int) -> None:
        if gap.typical > self._limit:
            raise GateFailed(
                f"parity: as version {version} the sampler's log-probabilities differ from the learner's by {gap.typical:.3g} "
                f"nats a token of the probe (its worst quarter left out), tolerance {self._limit:.3g}, though every tensor is "
                "equal: a stale prefix cache, or a scale or layout not applied (or, of a run that was moved to other devices at "
                "a resume, their rounding: parity.tolerance may be stated then)"
            )


def make_probes(openings: Sequence[Sequence[int]], count: int, longest: int) -> list[list[int]]:
    """``count`` token sequences made of the workflow's own openings, strung together to PROBE_TOKENS (at most ``longest``)."""
    probes = []
    for i in range(count):
        tokens: list[int] = []
        while len(tokens) < min(PROBE_TOKENS, longest):
            tokens += openings[(i + len(tokens)) % len(openings)]
        probes.append(tokens[: min(PROBE_TOKENS, longest)])
    return probes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _trimmed(values: Sequence[float]) -> float:
    """Mean without the largest quarter."""
    return _mean(sorted(values)[: max(1, len(values) * 3 // 4)])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
