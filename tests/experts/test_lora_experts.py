"""Against stock PEFT on stock transformers (eager experts), and against finite differences."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from frontier_tune.contracts import BadInput
from frontier_tune.experts import gates, lora_experts
from frontier_tune.experts.lora_experts import swiglu_experts

# H, I, 2I and E*r all differ: a transposed or mixed-up tensor can't fit by accident.
SIZES = {
    "qwen3_moe": {
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "intermediate_size": 24, "head_dim": 8,
        "norm_topk_prob": True,
    },
    "olmoe": {"num_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 20},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20},
    "gpt_oss": {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20, "head_dim": 8, "swiglu_limit": 0.7},
}  # fmt: skip


def tiny(family: str, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2, **{**SIZES[family], **changes},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager").eval()
    for name, p in model.named_parameters():
        if name.endswith("_bias"):
            nn.init.normal_(p, std=0.5)
    return model


def with_lora(model: nn.Module, parameters=("gate_up_proj", "down_proj"), rank: int = 3) -> nn.Module:
    config = LoraConfig(
        r=rank, lora_alpha=5, target_modules=["q_proj", "v_proj"], target_parameters=[f"mlp.experts.{p}" for p in parameters]
    )
    peft = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, p in peft.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.2)
    return peft


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Largest deviation against the largest value: fp32 sums of other orders differ most where terms cancel."""
    scale = theirs.abs().max().item() or 1.0
    assert (ours - theirs).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("parameters", [("gate_up_proj", "down_proj"), ("down_proj",), ("gate_up_proj",)])
@pytest.mark.parametrize("family", list(SIZES))
def test_outputs_and_every_gradient_equal_stock_peft(family: str, parameters: tuple[str, ...]) -> None:
    stock = with_lora(tiny(family), parameters)
    ours = copy.deepcopy(stock)
    assert lora_experts.install(ours) == 2
    ids = torch.randint(0, 61, (3, 11), generator=torch.Generator().manual_seed(2))
    logits = []
    for model in (stock, ours):
        out = model(input_ids=ids, use_cache=False).logits
        out.log_softmax(-1).gather(-1, ids[..., None]).sum().backward()
        logits.append(out.detach())
    close(logits[1], logits[0])
    compared = 0
    for (name, theirs), (_, mine) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        assert (theirs.grad is None) == (mine.grad is None), name
        if theirs.grad is not None:
            assert theirs.grad.abs().max() > 0, name
            close(mine.grad, theirs.grad)
            compared += 1
    assert compared == 2 * (4 + 2 * len(parameters))


def test_disabling_merging_saving_and_loading_stay_pefts(tmp_path) -> None:
    stock = with_lora(tiny("qwen3_moe"))
    ours = copy.deepcopy(stock)
    lora_experts.install(ours)
    ids = torch.arange(12)[None]

    def both():
        with torch.no_grad():
            return [m(input_ids=ids, use_cache=False).logits for m in (ours, stock)]

    with ours.disable_adapter(), stock.disable_adapter():
        mine, theirs = both()
        close(mine, theirs)
    adapted = both()[0]
    assert (adapted - mine).abs().max() > 0.05
    ours.save_pretrained(tmp_path)
    fresh = lora_experts.install(model := get_peft_model(tiny("qwen3_moe"), ours.peft_config["default"]))
    assert fresh == 2
    model.load_adapter(tmp_path, "default")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, adapted)
    ours.merge_adapter()
    stock.merge_adapter()
    close(*both())
    ours.unmerge_adapter()
    stock.unmerge_adapter()
    close(both()[0], adapted)
    ours.merge_adapter()
    stock.merge_adapter()
    with ours.disable_adapter(), stock.disable_adapter():  # merged weights are no base
        again, theirs = both()
        close(again, theirs)
        close(again, mine)


def test_two_adapters_at_once_are_left_to_peft() -> None:
    stock = with_lora(tiny("qwen3_moe"))
    stock.add_adapter("second", stock.peft_config["default"])
    ours = copy.deepcopy(stock)
    lora_experts.install(ours)
    for m in (stock, ours):
        m.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        ids = torch.arange(7)[None]
        close(ours(input_ids=ids, use_cache=False).logits, stock(input_ids=ids, use_cache=False).logits)


def test_bfloat16_base_keeps_float32_adapter() -> None:
    model = with_lora(tiny("qwen3_moe", torch.bfloat16))
    lora_experts.install(model)
    model(input_ids=torch.arange(9)[None], use_cache=False).logits.float().sum().backward()
    lora = [p for n, p in model.named_parameters() if "experts" in n and "lora_" in n]
    assert lora and all(p.dtype == p.grad.dtype == torch.float32 for p in lora)


def test_refuses_models_without_matching_experts() -> None:
    dense = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "qwen3", vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=24,
        )
    )  # fmt: skip
    with pytest.raises(BadInput, match="no expert parameters matched"):
        lora_experts.install(get_peft_model(dense, LoraConfig(target_modules=["q_proj"])))
    gelu = tiny("qwen3_moe", hidden_act="gelu")
    with pytest.raises(BadInput, match="not SiLU"):
        lora_experts.install(with_lora(gelu))


def test_refuses_experts_that_gate_in_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss' layout with a gate that computes something else than its gate does."""
    experts = type(tiny("gpt_oss").model.layers[0].mlp.experts)
    stock = experts._apply_gate
    monkeypatch.setattr(experts, "_apply_gate", lambda self, z: stock(self, z.clamp(max=0.5)))
    with pytest.raises(BadInput, match="transposed or have biases"):
        lora_experts.install(with_lora(tiny("gpt_oss")))


def make(seed: int, t: int, e: int, k: int, h: int, i: int, r: int, used: int | None = None):
    """Random float64 tensors; only the first ``used`` experts are ever chosen."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    picks = [torch.randperm(used or e, generator=g)[:k] for _ in range(t)]
    pick = torch.stack(picks) if t else torch.empty(0, k, dtype=torch.long)
    lora = [rand(e * r, h), rand(2 * i, r * e), rand(e * r, i), rand(h, r * e)]
    return rand(t, h), pick, rand(t, k).softmax(-1), rand(e, 2 * i, h), rand(e, h, i), lora


def reference(x, pick, weight, gate_up, down, lora, s1, s2):
    """The formula, one token and one expert at a time, over merged weights as PEFT defines them."""
    e = gate_up.shape[0]
    a1, b1, a2, b2 = lora
    delta1 = s1 * torch.einsum("ore,eri->eoi", b1.reshape(b1.shape[0], -1, e), a1.reshape(e, -1, a1.shape[1]))
    delta2 = s2 * torch.einsum("ore,eri->eoi", b2.reshape(b2.shape[0], -1, e), a2.reshape(e, -1, a2.shape[1]))
    rows = []
    for t in range(x.shape[0]):
        total = torch.zeros_like(x[t])
        for j in range(pick.shape[1]):
            w1, w2 = (gate_up + delta1)[pick[t, j]], (down + delta2)[pick[t, j]]
            gate, up = (w1 @ x[t]).chunk(2)
            total = total + weight[t, j] * (w2 @ (nn.functional.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows) if rows else x * 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_equals_the_formula_with_all_gradients(data) -> None:
    e = data.draw(st.integers(1, 6), "experts")
    used = data.draw(st.integers(1, e), "used")  # the other experts stay empty
    k = data.draw(st.integers(1, used), "top_k")
    t, h, i, r = (data.draw(st.integers(lo, hi), n) for n, lo, hi in (("T", 0, 9), ("H", 1, 7), ("I", 1, 6), ("R", 1, 4)))
    x, pick, weight, gate_up, down, lora = make(data.draw(st.integers(0, 999), "seed"), t, e, k, h, i, r, used)
    leaves = [v.clone().requires_grad_() for v in (x, weight, gate_up, down, *lora)]
    twins = [v.detach().clone().requires_grad_() for v in leaves]
    out = swiglu_experts(leaves[0], pick, *leaves[1:4], (leaves[4], leaves[5], 0.5), (leaves[6], leaves[7], 2.0))
    want = reference(twins[0], pick, *twins[1:4], twins[4:], 0.5, 2.0)
    torch.testing.assert_close(out, want, atol=1e-10, rtol=1e-10)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (out * probe).sum().backward()
    (want * probe).sum().backward()
    for mine, theirs in zip(leaves, twins, strict=True):
        expect = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad, expect, atol=1e-9, rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_clamped_gates_with_biases_equal_transformers_for_any_shape(data) -> None:
    """GptOssExperts over weights merged as PEFT defines them, in float64: all gradients, those of biases included."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts

    e = data.draw(st.integers(1, 6), "experts")
    used = data.draw(st.integers(1, e), "used")
    k = data.draw(st.integers(1, used), "top_k")
    t, h, i, r = (data.draw(st.integers(lo, hi), n) for n, lo, hi in (("T", 0, 9), ("H", 1, 7), ("I", 1, 6), ("R", 1, 4)))
    seed = data.draw(st.integers(0, 999), "seed")
    x, pick, weight, gate_up, down, lora = make(seed, t, e, k, h, i, r, used)
    g = torch.Generator().manual_seed(seed)
    biases = [torch.randn(e, n, generator=g, dtype=torch.float64) for n in (2 * i, h)]
    leaves = [v.clone().requires_grad_() for v in (x, weight, gate_up.mT.contiguous(), down.mT.contiguous(), *lora, *biases)]
    twins = [v.detach().clone().requires_grad_() for v in leaves]
    stock = GptOssExperts(GptOssConfig(hidden_size=h, intermediate_size=i, num_local_experts=e))
    gate = gates.of(stock)
    assert gate == gates.ClampedSwiGLU(1.702, 7.0)
    x_, w_, up_, down_, a1, b1, a2, b2, c1, c2 = leaves
    out = swiglu_experts(x_, pick, w_, up_.mT, down_.mT, (a1, b1, 0.5), (a2, b2, 2.0), gate, (c1, c2))
    x_, w_, up_, down_, a1, b1, a2, b2, c1, c2 = twins
    delta1 = 0.5 * torch.einsum("ore,eri->eio", b1.reshape(b1.shape[0], -1, e), a1.reshape(e, -1, a1.shape[1]))
    delta2 = 2.0 * torch.einsum("ore,eri->eio", b2.reshape(b2.shape[0], -1, e), a2.reshape(e, -1, a2.shape[1]))
    parameters = {
        "gate_up_proj": up_ + delta1, "down_proj": down_ + delta2, "gate_up_proj_bias": c1, "down_proj_bias": c2
    }  # fmt: skip
    want = torch.func.functional_call(stock, parameters, (x_, pick, w_))
    torch.testing.assert_close(out, want, atol=1e-10, rtol=1e-10)
    probe = torch.randn(out.shape, generator=g, dtype=torch.float64)
    (out * probe).sum().backward()
    if t:
        (want * probe).sum().backward()
    for mine, theirs in zip(leaves, twins, strict=True):
        expect = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad, expect, atol=1e-8, rtol=1e-8)


def test_finite_differences_through_a_clamped_gate() -> None:
    x, pick, weight, gate_up, down, lora = make(3, 4, 4, 2, 5, 3, 2, used=3)
    biases = [torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for n in (6, 5)]
    gate = gates.ClampedSwiGLU(1.702, 2.0)  # many values are held by it, and none is within a difference of it

    def f(x, weight, gate_up, down, a1, b1, a2, b2, c1, c2):
        return swiglu_experts(x, pick, weight, gate_up, down, (a1, b1, 0.5), (a2, b2, 2.0), gate, (c1, c2))

    assert torch.autograd.gradcheck(f, [v.requires_grad_() for v in (x, weight, gate_up, down, *lora, *biases)])


@pytest.mark.parametrize("t", [0, 1, 4])
def test_finite_differences(t: int) -> None:
    x, pick, weight, gate_up, down, lora = make(3, t, 4, 2, 5, 3, 2, used=3)
    inputs = [v.requires_grad_() for v in (x, weight, gate_up, down, *lora)]

    def f(x, weight, gate_up, down, a1, b1, a2, b2):
        return swiglu_experts(x, pick, weight, gate_up, down, (a1, b1, 0.5), (a2, b2, 2.0))

    assert torch.autograd.gradcheck(f, inputs)


def test_without_lora_frozen_and_fully_trainable() -> None:
    x, pick, weight, gate_up, down, _ = make(4, 6, 4, 2, 5, 3, 2)
    assert torch.autograd.gradcheck(
        lambda *a: swiglu_experts(a[0], pick, *a[1:]), [v.requires_grad_() for v in (x, weight, gate_up, down)]
    )
    frozen = swiglu_experts(x, pick, weight.detach(), gate_up.detach(), down.detach())
    frozen.sum().backward()
    assert gate_up.grad is None


def test_backward_makes_no_tensor_of_weight_size() -> None:
    """No merged copy and no dW: nothing with E * out * in elements is allocated, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    x, pick, weight, gate_up, down, lora = make(5, 8, 6, 2, 32, 24, 2)
    limit, weights = down.numel(), {w.untyped_storage().data_ptr() for w in (gate_up, down)}
    biggest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in weights:
                    biggest = max(biggest, value.numel())
            return out

    inputs = [v.requires_grad_() for v in (x, weight, *lora)]
    with Watch():
        out = swiglu_experts(inputs[0], pick, inputs[1], gate_up, down, (*inputs[2:4], 1.0), (*inputs[4:6], 1.0))
        out.sum().backward()
    assert 0 < biggest < limit / 4


def test_config_class_is_what_the_learner_meets() -> None:
    """transformers 5 stores Qwen3-MoE experts as [E, 2I, H] and [E, H, I]; a change there must be seen here first."""
    experts = tiny("qwen3_moe").model.layers[0].mlp.experts
    assert isinstance(tiny("qwen3_moe").config, Qwen3MoeConfig)
    assert experts.gate_up_proj.shape == (5, 40, 32) and experts.down_proj.shape == (5, 32, 20)


def test_on_a_cpu_no_gpu_kernel_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a CPU has kernels of its own")

    monkeypatch.setattr(lora_experts, "_verified", never)
    x, pick, weight, gate_up, down, lora = (t.float() if isinstance(t, Tensor) else t for t in make(8, 4, 3, 2, 5, 3, 2))
    out = swiglu_experts(x, pick.long(), weight, gate_up, down, (*(t.float() for t in lora[:2]), 1.0), None)
    assert out.isfinite().all()
