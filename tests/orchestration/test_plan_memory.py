"""The plan's figures for the learner against what torch allocates and keeps, on tiny bases of every family that is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import plan_memory
from frontier_tune.orchestration.plan import activations, sizes

TINY = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3}
CASES = {c.name: replace(c, config=c.config | TINY, sequences=4, length=128) for c in plan_memory.CASES}


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3-MoE",
        "Qwen3-MoE, bfloat16",
        "OLMoE",
        "Mixtral",
        "gpt-oss",
        "DeepSeek-V3",
        "Qwen3-MoE, layers run again",
        "DeepSeek-V3, layers run again",
    ],
)
def test_the_learner_takes_what_was_planned(name: str) -> None:
    plan, found = plan_memory.planned(CASES[name]), plan_memory.measured(CASES[name], resident=False)
    assert found["base"] == plan["base"] and found["adapter and its optimizer"] == plan["adapter and its optimizer"]
    assert plan["kept for backward"] == pytest.approx(found["kept for backward"], rel=0.05)
    assert plan["peak of activations and gradient"] == pytest.approx(found["peak of activations and gradient"], rel=0.1)


@pytest.mark.parametrize("name", ["Qwen3-MoE, bfloat16"])
def test_what_a_gpu_s_attention_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that GPUs take, run here: tensors of the same shapes are kept."""
    from frontier_tune.learning import attention

    monkeypatch.setattr(attention, "shares_prefixes", lambda device: False)
    plan, found = plan_memory.planned(CASES[name], "cuda"), plan_memory.measured(CASES[name], resident=False)
    assert plan["kept for backward"] == pytest.approx(found["kept for backward"], rel=0.05)
    assert plan["kept for backward"] > plan_memory.planned(CASES[name])["kept for backward"]


def need(rows: int, predicting: int | None = None, **changes: Any) -> activations.Need:
    z = sizes.sizes(plan_memory.base_config(CASES["Qwen3-MoE"]))
    setting = activations.Setting("float32", 8, ("q_proj", "o_proj"), True, **changes)
    return activations.need(z, setting, activations.Batch(rows, rows if predicting is None else predicting), 10_000)


def test_the_whole_logits_are_never_held() -> None:
    """Beyond a chunk a row costs nothing of the vocabulary: two vocabularies differ by the same bytes at any length."""
    chunk_rows = (1 << 24) // 512
    assert need(chunk_rows // 2).kept["logits"] == chunk_rows // 2 * 512 * 4
    assert need(4 * chunk_rows).kept["logits"] == 0


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    whole, again = need(4096), need(4096, checkpointing=True)
    assert again.kept["inputs of layers"] == 3 * 4096 * 64 * 4
    assert again.peak < whole.peak and "experts" not in again.kept


def test_the_last_layer_s_experts_see_the_predicting_rows_alone() -> None:
    every, half = need(4096).kept, need(4096, 2048).kept
    assert half["experts"] < every["experts"] and half["attention"] == every["attention"]
    third = every["experts"] / 3
    assert every["experts"] - half["experts"] == pytest.approx(third / 2, rel=1e-6)
