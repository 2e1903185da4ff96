"""The plugin's own promises; what it does to an engine is tested in tests/sampling."""

import pytest
import torch

from frontier_tune.contracts import BadInput
from frontier_tune.experts import vllm_plugin


def test_an_untested_vllm_is_refused():
    vllm_plugin.check_version("0.32.0+cpu")
    with pytest.raises(BadInput, match="tested with 0.32.0"):
        vllm_plugin.check_version("0.33.1")


@pytest.mark.slow
def test_register_changes_things_once():
    pytest.importorskip("vllm")
    first = vllm_plugin.register()
    assert vllm_plugin.register() == first
    assert len(first) >= 5 or torch.cuda.is_available()


@pytest.mark.slow
def test_rows_without_adapter_are_left_alone_and_others_get_their_own():
    pytest.importorskip("vllm")
    vllm_plugin.register()
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    g = torch.Generator().manual_seed(0)
    a = [torch.randn(3, 1, 4, 10, generator=g) for _ in range(2)]
    b = [torch.randn(3, 1, n, 4, generator=g) for n in (6, 5)]
    x, y = torch.randn(7, 10, generator=g), torch.randn(7, 11, generator=g)
    ids = (0, 21, 22, 0, 23, 21, 0)  # 0: no adapter
    wrapper = PunicaWrapperCPU(16, 16, "cpu")
    wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [21, 22, 23], 4, 100)
    got = y.clone()
    wrapper.add_lora_linear(got, x, tuple(a), tuple(b), 0.5, (6, 5))
    want = y.clone()
    for row, i in enumerate(ids):
        if i:
            want[row] += 0.5 * torch.cat([b[j][i - 21, 0] @ (a[j][i - 21, 0] @ x[row]) for j in range(2)])
    torch.testing.assert_close(got, want)
    assert torch.equal(got[[0, 3, 6]], y[[0, 3, 6]])


@pytest.mark.slow
def test_prompt_logprobs_with_an_adapter_capable_head():
    pytest.importorskip("vllm")
    vllm_plugin.register()
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper = PunicaWrapperCPU(16, 16, "cpu")
    wrapper.update_metadata(LoRAMapping((1, 1, 1), (1,), is_prefill=True), [1], 2, 100)
    y, x, zero = torch.ones(3, 8), torch.ones(3, 4), torch.zeros(1, 1, 8, 2)
    wrapper.add_lora_logits(y, x, torch.ones(1, 1, 2, 4), zero, 1.0)
    assert torch.equal(y, torch.ones(3, 8))
    with pytest.raises(ValueError, match="lm_head"):
        wrapper.add_lora_logits(y, x, torch.ones(1, 1, 2, 4), zero + 1, 1.0)


def test_experts_that_would_reach_no_module_are_renamed_or_refused():
    from types import SimpleNamespace

    from frontier_tune.experts import vllm_plugin_names

    def adapter(*names):
        return {n: SimpleNamespace(module_name=n) for n in names}

    mixtral = {"model.layers.0.block_sparse_moe.experts", "model.layers.0.self_attn.qkv_proj"}
    held = adapter("model.layers.0.mlp.experts", "model.layers.0.mlp.experts.base_layer", "model.layers.0.self_attn.o_proj")
    vllm_plugin_names.rename(held, mixtral)
    there = "model.layers.0.block_sparse_moe.experts"
    assert set(held) == {there, f"{there}.base_layer", "model.layers.0.self_attn.o_proj"}
    assert all(tensors.module_name == name for name, tensors in held.items())
    per_expert = adapter("model.layers.3.mlp.experts.7.up_proj")
    for fits, modules in ((per_expert, {"model.layers.3.mlp.experts"}), (adapter("a.q_proj"), mixtral)):
        before = set(fits)
        vllm_plugin_names.rename(fits, modules)
        assert set(fits) == before
    of_another_stage = adapter("model.layers.0.mlp.experts")
    vllm_plugin_names.rename(of_another_stage, {"model.layers.1.self_attn.qkv_proj"})  # a pipeline's rank without experts
    with pytest.raises(ValueError, match="adapts moe.experts of model.layers.0, and .* are called block_sparse"):
        vllm_plugin_names.rename(adapter("model.layers.0.moe.experts"), mixtral)
