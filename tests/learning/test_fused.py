import copy

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3_moe import modeling_qwen3_moe

from frontier_tune.learning import fused


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
def test_a_patched_model_gives_the_stock_outputs_and_gradients(bases, family: str) -> None:
    from peft import LoraConfig, get_peft_model

    stock = AutoModelForCausalLM.from_pretrained(bases(family), attn_implementation="eager")
    stock = get_peft_model(stock, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    for name, p in stock.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    ours = copy.deepcopy(stock)
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    theirs_out = stock(input_ids=ids, use_cache=False).logits
    theirs_out.square().sum().backward()
    counts = fused.install(ours)
    assert counts["linears"] == 8 and counts["norms"] >= 5
    ours_out = ours(input_ids=ids, use_cache=False).logits
    ours_out.square().sum().backward()
    torch.testing.assert_close(ours_out, theirs_out, rtol=1e-5, atol=1e-5)
    for (name, a), (_, b) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        if b.grad is not None:
            assert (a.grad - b.grad).abs().max() <= 2e-5 * b.grad.abs().max(), name


def test_rotary_is_replaced_once_per_modelling_file(bases) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases("qwen3_moe"))
    fused.install(model)
    assert modeling_qwen3_moe.apply_rotary_pos_emb is fused.rotary
    assert fused.install(model)["rotary"] == 0


def test_rotary_equals_transformers() -> None:
    q, k = torch.randn(2, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))  # Llama's own function is never replaced here
    angle = torch.linspace(0, 3, 2 * 7 * 4).view(2, 7, 4).repeat(1, 1, 2)
    for mine, theirs in zip(
        fused.rotary(q, k, angle.cos(), angle.sin()), apply_rotary_pos_emb(q, k, angle.cos(), angle.sin()), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, generator=g, dtype=torch.float64).requires_grad_()
    w = torch.rand(6, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: fused._RMSNorm.apply(x, w, 1e-6), (x,))
    assert torch.autograd.gradcheck(lambda x, w: fused._RMSNorm.apply(x, w, 1e-6), (x, w.clone().requires_grad_()))
    cos, sin = torch.randn(2, 4, 6, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: fused._Rotary.apply(x, cos, sin), (x,))
    rows, weight = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.randn(4, 6, generator=g, dtype=torch.float64)
    a, b = torch.randn(2, 6, generator=g, dtype=torch.float64), torch.randn(4, 2, generator=g, dtype=torch.float64)
    inputs = [v.requires_grad_() for v in (rows, a, b)]
    assert torch.autograd.gradcheck(lambda x, a, b: fused._LoRALinear.apply(x, weight, a, b, 0.5), inputs)


def test_a_norm_that_computes_something_else_stays_stock() -> None:
    class CentredRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8), requires_grad=False)
            self.variance_epsilon = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.layer_norm(x, (8,), self.weight)

    norm = CentredRMSNorm()
    assert fused.install(norm)["norms"] == 0 and "forward" not in norm.__dict__
