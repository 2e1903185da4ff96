"""Every way in which an adapter can be wrong is refused by name or told apart by its digests."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from frontier_tune.contracts import BadInput
from frontier_tune.experts import canonical, families, resident
from frontier_tune.recipe import Adapter

RANK, ALPHA = 3, 4.0
GATE_UP_A = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
GATE_UP_B = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight"
DOWN_A = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"


@pytest.fixture
def saved(make_config, randomize, tmp_path):
    config = make_config("qwen3_moe")
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), families.peft_config(Adapter(rank=RANK, alpha=ALPHA), config)
    )
    randomize(model)
    model.save_pretrained(tmp_path)
    return tmp_path, config


def rewrite(path, change):
    tensors = load_file(path / canonical.WEIGHTS)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path / canonical.WEIGHTS)


def test_dropped_experts_are_named_and_counted(saved):
    path, config = saved
    rewrite(path, lambda t: [t.pop(k) for k in list(t) if ".experts." in k])
    with pytest.raises(canonical.AdapterMismatch, match=r"8 missing \(layers.0.experts.gate_up.A"):
        canonical.load(path, config)


def test_a_tensor_that_is_not_used_is_named(saved):
    path, config = saved
    rewrite(path, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(RANK, 64)}))
    with pytest.raises(canonical.AdapterMismatch, match=r"1 not used \(base_model.model.lm_head"):
        canonical.load(path, config)


def test_a_transposed_adapter_is_refused(saved):
    """peft 0.18 had A on the output's side for this layout."""
    path, config = saved

    def old_layout(t):
        t[GATE_UP_A], t[GATE_UP_B] = t[GATE_UP_B].T, t[GATE_UP_A].T

    rewrite(path, old_layout)
    with pytest.raises(canonical.AdapterMismatch, match="2 of another shape"):
        canonical.load(path, config)


def test_alpha_and_the_order_of_experts_show_in_the_digests(saved):
    path, config = saved
    before = canonical.digests(canonical.load(path, config))
    peft = json.loads((path / canonical.CONFIG).read_text())
    (path / canonical.CONFIG).write_text(json.dumps(peft | {"lora_alpha": 1.0}))
    after = canonical.digests(canonical.load(path, config))
    assert {n for n in before if before[n] != after[n]} == {n for n in before if n.endswith(".B")}
    (path / canonical.CONFIG).write_text(json.dumps(peft))

    def rank_major(t):  # same shape, experts and ranks exchanged
        t[DOWN_A] = t[DOWN_A].reshape(5, RANK, -1).transpose(0, 1).reshape(t[DOWN_A].shape)

    rewrite(path, rank_major)
    after = canonical.digests(canonical.load(path, config))
    assert [n for n in before if before[n] != after[n]] == ["layers.0.experts.down.A"]


def test_another_base_or_an_unusable_adapter_is_refused(saved, make_config, tmp_path):
    path, config = saved
    with pytest.raises(canonical.AdapterMismatch):
        canonical.load(path, make_config("olmoe"))
    peft = json.loads((path / canonical.CONFIG).read_text())
    for change, words in (
        ({"use_dora": True}, "plain LoRA adapters work here; this one is LORA with use_dora; turn it into a plain one"),
        ({"fan_in_fan_out": True}, "is LORA with fan_in_fan_out"),
        ({"peft_type": "ADALORA"}, "is ADALORA; turn"),
        ({"bias": "all"}, "is LORA with bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"r": None}, "r is None; it must be a number above 0"),
        ({"target_modules": "all.*"}, "pattern"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "match 0 or some"),
        ({"target_modules": ["gate"]}, "match 0 modules"),
    ):
        (path / canonical.CONFIG).write_text(json.dumps(peft | change))
        with pytest.raises(BadInput, match=words):
            canonical.load(path, config)
    with pytest.raises(BadInput, match="no adapter here"):
        canonical.load(tmp_path / "nowhere", config)


def test_names_for_vllm(saved, make_config, tmp_path):
    path, config = saved
    resident.write_for_vllm(path, tmp_path / "out", config)
    before, after = load_file(path / canonical.WEIGHTS), load_file(tmp_path / "out" / canonical.WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    mixtral, oss = families.FAMILIES["mixtral"], families.FAMILIES["gpt_oss"]
    assert resident.vllm_name(GATE_UP_A, mixtral) == GATE_UP_A.replace(".mlp.experts.", ".block_sparse_moe.experts.")
    attention = "base_model.model.model.layers.11.self_attn.q_proj.lora_A.weight"
    assert resident.vllm_name(attention, mixtral) == attention
    assert resident.vllm_name(attention, oss) == attention.replace("self_attn", "attn")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))
def test_digests_tell_values_shapes_and_dtypes_apart(shape, dtype, seed):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert canonical.digest(t) == canonical.digest(t.clone()) == canonical.digest(t.mT.contiguous().mT if t.ndim > 1 else t)
    other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
    assert len({canonical.digest(x) for x in (t, t + 1, t.unsqueeze(0), t.to(other))}) == 4
