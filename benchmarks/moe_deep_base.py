"""A base with random weights and the routing of Qwen3-30B-A3B: 48 layers, 8 of 128 experts a token; small in all else.

The nano base has 4 layers and 2 of 8 experts: few of its tokens change routes. How often routes flip, and what that does to
log-probabilities, depends on how many choices a token goes through, which random weights have as trained ones do. What
the sampled tokens say means nothing.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from frontier_tune.learning.batch import Sample
    from frontier_tune.sampling.engine import VLLMSampler

LAYERS, EXPERTS, TOP_K, VOCABULARY = 48, 128, 8, 2048
PEAKED = 4.0  # factor on the last norm: the distribution over tokens is then as uneven as a language model's, not flat
PROMPTS, GROUP, PROMPT_TOKENS, TOKENS = 32, 4, 64, 64


def build(directory: Path, layers: int = LAYERS, experts: int = EXPERTS) -> None:
    """Write the base (75 M parameters, bfloat16) without a tokenizer."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=experts,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        initializer_range=0.06,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.mul_(PEAKED)
    model.to(torch.bfloat16).save_pretrained(directory)


def recipe(quick: bool = False) -> Any:
    """Of sampler and learner for this base: a fresh adapter on the attention alone, which changes nothing."""
    from frontier_tune import recipe as recipes

    return recipes.parse(
        {
            "adapter": {"experts": False},
            "algorithm": {"replay": "sampler", "proximal": "learner"},
            "learner": {"threads": 1, "tokens_per_microbatch": 2048},
            "sampler": {
                "dtype": "bfloat16",
                "threads": 1,
                "kv_cache_mb": 64,
                "max_model_len": 256,
                "max_sequences": 16 if quick else 64,
            },
        }
    )


def sampled(sampler: VLLMSampler, prompts: int = PROMPTS) -> list[Sample]:
    """Continuations of random prompts, with their routes; the members of a group continue one prompt."""
    from frontier_tune.contracts import Request, SamplingParams
    from frontier_tune.learning.batch import Sample

    draw = random.Random(0)
    opened = [[draw.randrange(2, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(prompts)]
    requests = [
        Request(f"{g}-{m}", tuple(p), SamplingParams(TOKENS, seed=1000 * g + m))
        for g, p in enumerate(opened)
        for m in range(GROUP)
    ]
    done = {c.request_id: c for c in sampler.exchange(requests)}
    while len(done) < len(requests):
        done |= {c.request_id: c for c in sampler.exchange([])}
    members = []
    for r in requests:
        c = done[r.id]
        if c.finish == "error":
            raise SystemExit(f"the sampler failed on {r.id}: {c.error}")
        target = np.arange(PROMPT_TOKENS, PROMPT_TOKENS + len(c.tokens))
        logprob = np.asarray(c.logprobs, np.float64)
        tokens = [*r.tokens, *c.tokens]
        members.append(Sample(int(r.id.split("-")[0]), tokens, target, logprob, np.zeros(len(target)), 1.0, routes=c.routes))
    return members
