"""Tiny random bases of every family, as directories that the whole chain loads. No weights are downloaded.

H, I, 2I and E*r (r = 4) all differ, so that a transposed adapter can't fit by chance; sizes are what vLLM's CPU kernels take.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue", "amber", "olive")
OPENING = "reply with the word wanted for {number}"
WORDS = "say red green blue amber olive done the word is wanted reply with for one of error usage got argument".split()
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
            **common,
            intermediate_size=160,
            moe_intermediate_size=96,
            head_dim=32,
            num_experts=6,
            norm_topk_prob=True,
            mlp_only_layers=[],
        )
    if family == "olmoe":
        return transformers.OlmoeConfig(**common | {"num_key_value_heads": 2}, intermediate_size=96, num_experts=6)
    if family == "mixtral":
        return transformers.MixtralConfig(**common, intermediate_size=96, num_local_experts=6, head_dim=32)
    if family == "gpt_oss":  # a window shorter than most prompts, on the first layer
        rope = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                "original_max_position_embeddings": 128, "rope_theta": 150000.0}  # fmt: skip
        return transformers.GptOssConfig(
            **common, intermediate_size=96, num_local_experts=6, head_dim=32, sliding_window=16, rope_parameters=rope
        )
    if family == "llama":  # dense: to be refused
        del common["num_experts_per_tok"]
        return transformers.LlamaConfig(**common, intermediate_size=96)
    raise ValueError(f"no tiny base for family {family!r}")


def build_base(directory: Path, family: str = "qwen3_moe", seed: int = 0, std: float = 0.08, lessons: int = 0) -> Path:
    """Write a base of ``family`` into ``directory``: config.json, safetensors, tokenizer.

    Random, but for ``lessons``: so many supervised steps on the toy workflow with a colour drawn at random for an answer. They
    teach the grammar and not the task, so that a policy has something to learn from reward.
    """
    import torch
    import transformers

    from frontier_tune.bases.tokenizer import encode_dialogue, train_tokenizer
    from frontier_tune.contracts import Message
    from frontier_tune.sdk.grammar import compact_dialogue

    torch.manual_seed(seed)
    model_config = config(family)
    model_config.initializer_range = std  # wide enough that adapters and routes matter
    model = transformers.AutoModelForCausalLM.from_config(model_config)
    for name, parameter in model.named_parameters():
        if family == "gpt_oss" and name.endswith((".bias", "_bias", ".sinks")):  # zero when they are new: mistakes would not show
            torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    draw = random.Random(seed)
    for _ in range(lessons):
        rows = []
        for _ in range(16):
            said = draw.choice(COLOURS)
            text = [
                Message("user", OPENING.format(number=draw.randrange(10_000))),
                Message("assistant", f"say {said}"),
            ]
            rows.append(encode_dialogue(tokenizer, compact_dialogue(text)))
        longest = max(len(ids) for ids, _ in rows)
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        labels = torch.tensor(
            [[t if m else -100 for t, m in zip(i, mask, strict=True)] + [-100] * (longest - len(i)) for i, mask in rows]
        )
        model(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_workspace(directory: Path, base: Path, recipe: dict[str, Any] | None = None) -> Path:
    """A workspace with the toy workflow and a recipe of seconds; returns the recipe's path. ``recipe`` overrides its sections."""
    import shutil

    import yaml

    shutil.copytree(Path(__file__).parent / "toy_env" / "envs", directory / "envs", ignore=shutil.ignore_patterns("__pycache__"))
    content: dict[str, Any] = {
        "base": str(base),
        "environment": {
            "path": "envs/echo",
            "train_tasks": 40,
            "heldout_tasks": 20,
            "general_tasks": 0,
            "max_turns": 2,
            "max_tokens_per_turn": 12,
        },
        "algorithm": {"groups_per_step": 4, "group_size": 4},
        "adapter": {"rank": 4, "alpha": 8},
        "learner": {"threads": 1, "learning_rate": 0.01, "tokens_per_microbatch": 2048},
        "sampler": {"threads": 1, "kv_cache_mb": 32, "max_model_len": 512, "max_sequences": 32},
        "run": {"steps": 3, "checkpoint_every": 1, "eval_tasks": 5},
        "parity": {"canary_every": 2},
        "tracking": {"wandb": "off"},
    }
    for section, values in (recipe or {}).items():
        content[section] = {**content[section], **values} if isinstance(values, dict) and section in content else values
    path = directory / "recipes" / "echo.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(content))
    return path
