"""Tiny random bases of every family, as directories that the whole chain loads. No weights are downloaded.

H, I, 2I and E*r (r = 4) all differ, so that a transposed adapter can't fit by chance; sizes are what vLLM's CPU kernels take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = "say red green blue amber olive done the word is wanted reply with one of error usage got argument".split()
VOCABULARY = 320


def config(family: str = "qwen3_moe") -> Any:
    """A transformers configuration of ``family``: about 0.3 M parameters."""
    import transformers

    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    if family == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            **common, intermediate_size=160, moe_intermediate_size=96, head_dim=32, num_experts=6, norm_topk_prob=True, mlp_only_layers=[]
        )
    if family == "olmoe":
        return transformers.OlmoeConfig(**common | {"num_key_value_heads": 2}, intermediate_size=96, num_experts=6)
    if family == "mixtral":
        return transformers.MixtralConfig(**common, intermediate_size=96, num_local_experts=6, head_dim=32)
    if family == "llama":  # dense: to be refused
        del common["num_experts_per_tok"]
        return transformers.LlamaConfig(**common, intermediate_size=96)
    raise ValueError(f"no tiny base for family {family!r}")


def build_base(directory: Path, family: str = "qwen3_moe", seed: int = 0, std: float = 0.08) -> Path:
    """Write a random base of ``family`` into ``directory``: config.json, safetensors, tokenizer."""
    import torch
    import transformers

    from frontier_tune.bases.tokenizer import train_tokenizer

    torch.manual_seed(seed)
    model_config = config(family)
    model_config.initializer_range = std  # wide enough that adapters and routes matter
    model = transformers.AutoModelForCausalLM.from_config(model_config)
    model.save_pretrained(directory)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, VOCABULARY)
    tokenizer.save_pretrained(directory)
    return directory
