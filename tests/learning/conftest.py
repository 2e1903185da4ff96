"""Tiny random bases of several families, on disk as transformers saves them, and made-up trajectories on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from frontier_tune import recipe as recipes
from frontier_tune.contracts import EpisodeSpec, Task, Trajectory

VOCAB = 61
# H, I, 2I and E*r all differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "intermediate_size": 24, "head_dim": 8,
        "norm_topk_prob": True, "num_key_value_heads": 2,
    },
    "olmoe": {"num_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20, "num_key_value_heads": 2},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20, "num_key_value_heads": 2},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "intermediate_size": 24,
        "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": None,
        "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6, "n_shared_experts": 1,
    },
    # A window shorter than a sequence, on the first and third layer; a limit that holds many activations.
    "gpt_oss": {
        "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 20, "head_dim": 8, "num_key_value_heads": 2,
        "num_hidden_layers": 3, "sliding_window": 5, "swiglu_limit": 0.7,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 32, "rope_theta": 150000.0,
        },
    },
}  # fmt: skip


def _write_base(directory: Path, family: str, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2,
        "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():  # zero when they are new, and then no mistake would show
        if name.endswith((".bias", "_bias", ".sinks")):
            torch.nn.init.normal_(p, std=0.5)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def write_base() -> Callable[..., Path]:
    return _write_base


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def base(family: str = "qwen3_moe") -> Path:
        return root / family if (root / family).exists() else _write_base(root / family, family)

    return base


@pytest.fixture
def recipe() -> Callable[..., recipes.Recipe]:
    def make(*overrides: str) -> recipes.Recipe:
        learner = {"threads": 1, "device": "cpu", "warmup_steps": 0}
        small = {"adapter": {"rank": 3, "alpha": 6}, "learner": learner, "run": {"steps": 10}}
        return recipes.parse(small, overrides)

    return make


def trajectories(
    seed: int = 0, groups: int = 3, members: int = 3, temperature: float = 1.0
) -> tuple[list[Trajectory], list[float]]:
    """Groups that share a prompt; two sampled turns with an unsampled observation between and another at the end."""
    rng = np.random.default_rng(seed)
    out, advantages = [], []
    for g in range(groups):
        prompt = rng.integers(3, VOCAB, int(rng.integers(4, 12))).tolist()
        for m in range(members):
            parts = [(prompt, False)]
            for _ in range(2):
                parts.append((rng.integers(3, VOCAB, int(rng.integers(1, 6))).tolist(), True))
                parts.append((rng.integers(3, VOCAB, int(rng.integers(1, 4))).tolist(), False))
            tokens = [t for part, _ in parts for t in part]
            mask = [sampled for part, sampled in parts for _ in part]
            logprobs = [float(-rng.uniform(2, 6)) if s else 0.0 for s in mask]
            spec = EpisodeSpec(Task("kind", "train", {"g": g}), g, m, seed, temperature)
            out.append(Trajectory(spec, tokens, mask, logprobs, [0 if s else -1 for s in mask]))
            advantages.append(float(rng.normal()))
    return out, advantages


@pytest.fixture(scope="session")
def episodes() -> Callable[..., tuple[list[Trajectory], list[float]]]:
    return trajectories


def stock_logprobs(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Log-probability of every token but the first, by a stock forward of one unpadded sequence."""
    ids = torch.tensor([tokens])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


@pytest.fixture
def stock() -> Callable[[torch.nn.Module, list[int]], torch.Tensor]:
    return stock_logprobs
