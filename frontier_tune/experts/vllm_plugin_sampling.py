"""Sampling on CPU in one pass over the logits: the token, its log-probability and its rank from one kernel.

vLLM's CPU path reads the logits six times and draws a number from a generator of each seeded request. Here a draw is a function
of the request's seed and of how many tokens it has (``native/csrc/sample.h``): the same whatever else is in the batch, and
nothing has to be taken back where a prompt is read in several steps.

Engines of another ``logprobs_mode`` or with float64 noise keep the stock path. That is a choice of the whole engine: a request's
draws never depend on what the other requests of its batch ask for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from frontier_tune.native import build

_stock_forward = Sampler.forward
_stock_sample = CPUModelRunner._sample
_GREEDY = 1e-5  # as in vLLM and in the kernel


def draws(batch: Any) -> tuple[Tensor, Tensor]:
    """What the draw of each row of vLLM's input batch follows from: its request's seed and the number of its output tokens,
    both [N] int64. A request without a seed gets a new one from torch's generator each time."""
    rows = batch.num_reqs
    seeds, counts = torch.randint(2**63 - 1, (rows,)), torch.zeros(rows, dtype=torch.long)
    if batch.generators:
        at = np.fromiter(batch.generators, np.int64)
        own = np.fromiter((g.initial_seed() for g in batch.generators.values()), np.uint64)
        seeds.numpy()[at] = own.view(np.int64)
        counts.numpy()[at] = batch.num_tokens_no_spec[at] - batch.num_prompt_tokens[at]
    return seeds, counts


def _sample(self: Any, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
    """Hands the draws to the sampler, which doesn't see the batch."""
    if spec_decode_metadata is None:
        self.sampler.draws = draws(self.input_batch)
    try:
        return _stock_sample(self, logits, spec_decode_metadata)
    finally:
        self.sampler.draws = None


def _mended(sampler: Any, mode: str) -> bool:
    return mode == "processed_logprobs" and not sampler.use_fp64_gumbel and getattr(sampler, "draws", None) is not None


def _reshaped(logits: Tensor, metadata: Any) -> tuple[Tensor, Tensor]:
    """Logits with min-p, top-k and top-p applied where any request asks for them, and the temperature still to be applied."""
    temperature = metadata.temperature
    processors = metadata.logitsprocs.argmax_invariant
    idle = all(type(p) is MinPLogitsProcessor and not p.min_p_count for p in processors)
    if idle and metadata.top_k is None and metadata.top_p is None:
        return logits, temperature
    logits = logits / torch.where(temperature < _GREEDY, 1.0, temperature)[:, None]
    for processor in processors:
        logits = processor.apply(logits)
    logits = apply_top_k_top_p(logits, metadata.top_k, metadata.top_p)
    return logits, torch.where(temperature < _GREEDY, 0.0, 1.0)


def _forward(
    self: Any, logits: Tensor, sampling_metadata: Any, predict_bonus_token: bool = False, logprobs_mode_override: Any = None
) -> SamplerOutput:
    metadata = sampling_metadata
    if metadata.all_greedy or not _mended(self, logprobs_mode_override or self.logprobs_mode):
        return _stock_forward(self, logits, metadata, predict_bonus_token, logprobs_mode_override)
    seeds, counts = self.draws
    logits = self.apply_logits_processors(logits.to(torch.float32), metadata, predict_bonus_token)
    logits, temperature = _reshaped(logits, metadata)
    rows = logits.shape[0]
    tokens, ranks, logprobs = torch.empty(rows, dtype=torch.long), torch.empty(rows, dtype=torch.long), torch.empty(rows)
    torch.ops.frontier_tune.sample_tokens(logits, temperature, seeds, counts, tokens, logprobs, ranks)
    return SamplerOutput(
        sampled_token_ids=tokens.to(torch.int32)[:, None],
        logprobs_tensors=_logprobs(self, logits, temperature, metadata, tokens, logprobs, ranks),
    )


def _logprobs(
    sampler: Any, logits: Tensor, temperature: Tensor, metadata: Any, tokens: Tensor, logprobs: Tensor, ranks: Tensor
) -> LogprobsTensors | None:
    """What was asked for besides the tokens. Only a request for other tokens' log-probabilities needs the whole rows."""
    most, chosen = metadata.max_num_logprobs, metadata.logprob_token_ids
    if most == 0 and not chosen:
        return LogprobsTensors(tokens.to(torch.int32)[:, None], logprobs[:, None], ranks)
    if most is None and not chosen:
        return None
    whole = sampler.compute_logprobs(logits / torch.where(temperature < _GREEDY, 1.0, temperature)[:, None])
    if chosen:
        found: LogprobsTensors | None = sampler.gather_specific_token_logprobs(whole, chosen, tokens)
        return found
    if most == -1:
        return LogprobsTensors(torch.empty(0), whole, torch.empty(0))
    gathered: LogprobsTensors = sampler.gather_logprobs(whole, most, token_ids=tokens)
    return gathered


def install() -> list[str]:
    """Before any engine is built. Returns what was changed."""
    build.load()
    sampler: Any = Sampler
    runner: Any = CPUModelRunner
    sampler.forward, runner._sample = _forward, _sample
    return ["tokens are drawn in one pass, each by its request's seed and place"]
