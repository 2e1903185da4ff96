"""Tiny random models of every family. H, I, 2I and E*r (r = 3) all differ, so that a transposed adapter can't fit by chance."""

import pytest
import torch
import transformers

COMMON = dict(vocab_size=96, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
              pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip


def tiny_config(family: str):
    make = {
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **COMMON, num_hidden_layers=3, intermediate_size=160, moe_intermediate_size=96, head_dim=32, num_experts=5,
            num_experts_per_tok=2, mlp_only_layers=[1], norm_topk_prob=True),
        "olmoe": lambda: transformers.OlmoeConfig(
            **COMMON, num_hidden_layers=2, intermediate_size=96, num_experts=5, num_experts_per_tok=2),
        "mixtral": lambda: transformers.MixtralConfig(
            **COMMON, num_hidden_layers=2, intermediate_size=96, num_local_experts=5, num_experts_per_tok=2),
        "gpt_oss": lambda: transformers.GptOssConfig(
            **COMMON, num_hidden_layers=2, intermediate_size=96, head_dim=32, num_local_experts=5, num_experts_per_tok=2,
            layer_types=["full_attention", "full_attention"]),
        "deepseek_v3": lambda: transformers.DeepseekV3Config(
            **(COMMON | {"num_key_value_heads": 2}), num_hidden_layers=2, intermediate_size=160, moe_intermediate_size=96,
            n_routed_experts=5, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=24,
            kv_lora_rank=16, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=32),
    }  # fmt: skip
    return make[family]()


def perturb(model, seed: int = 0, std: float = 0.05) -> None:
    """Fill LoRA weights with noise: a fresh B is zero and would hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * std)


@pytest.fixture
def make_config():
    return tiny_config


@pytest.fixture
def randomize():
    return perturb
