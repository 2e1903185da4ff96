"""The op under transformers' routers, and the same choice in the trainer and in the sampler."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from frontier_tune.contracts import BadInput
from frontier_tune.experts.routing import reference, trainer


def build(config: transformers.PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):  # initialized too small to tell experts apart
            torch.nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_a_model_gives_the_same(family: str, renormalize: bool, make_config) -> None:
    config = make_config(family)
    if hasattr(config, "norm_topk_prob"):
        config.norm_topk_prob = renormalize
    model = build(config)
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = model(ids, labels=ids)
    stock = torch.autograd.grad(expected.loss, list(model.parameters()), allow_unused=True)
    assert trainer.install(model) == len([n for n, _ in model.named_modules() if n.endswith((".gate", ".router"))]) > 0
    assert trainer.install(model) > 0  # any number of times
    out = model(ids, labels=ids)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
    for a, b in zip(ours, stock):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_bfloat16_models_route_in_float32(make_config) -> None:
    model = build(make_config("qwen3_moe")).bfloat16()
    trainer.install(model)
    router = next(m for m in model.modules() if isinstance(m, Qwen3MoeTopKRouter))
    hidden = torch.randn(50, 64, dtype=torch.bfloat16)
    logits, weights, ids = router(hidden)
    assert logits.dtype == weights.dtype == torch.float32 and ids.dtype == torch.int64
    exact = torch.nn.functional.linear(hidden.double(), router.weight.double())
    torch.testing.assert_close(logits.double(), exact, atol=1e-4, rtol=1e-4)
    assert model(torch.tensor([[3, 4, 5]])).logits.isfinite().all()


def test_deepseek_stays_stock(make_config) -> None:
    model = build(make_config("deepseek_v3"))
    assert trainer.install(model) == 0


def test_another_convention_is_refused(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Qwen3MoeTopKRouter.forward

    def doubled(self, hidden_states):
        logits, weights, ids = stock(self, hidden_states)
        return logits, 2 * weights, ids

    monkeypatch.setattr(Qwen3MoeTopKRouter, "forward", doubled)
    model = build(make_config("qwen3_moe"))
    with pytest.raises(BadInput, match="routes otherwise"):
        trainer.install(model)


def test_nan_reaches_nobody_in_silence(make_config) -> None:
    model = build(make_config("qwen3_moe"))
    trainer.install(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="has no routing"):
        model(torch.tensor([[3, 4, 5]]))


@pytest.mark.slow
def test_trainer_and_sampler_choose_alike() -> None:
    """10^6 rows with many ties: the same experts, in the same order, with the same weights."""
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    from frontier_tune.experts.vllm_plugin_router import install

    class Config:
        num_experts, num_experts_per_tok, hidden_size, norm_topk_prob = 64, 8, 64, True

    changed = install()
    assert changed == install()
    router = Qwen3MoeTopKRouter(Config())
    with torch.no_grad():
        router.weight.copy_(torch.eye(64))  # logits are the hidden states themselves
    sampler = CPURouter(top_k=8, global_num_experts=64, renormalize=True)
    forward = trainer.RouterForward(router, True)
    generator, tied, rows = torch.Generator().manual_seed(0), 0, 50_000
    with torch.no_grad():
        for chunk in range(20):
            logits = torch.randn(rows, 64, generator=generator).bfloat16()
            ours, weights, ids = forward(logits)
            their_weights, their_ids = sampler._compute_routing(logits, logits if chunk % 2 else logits.float(), None)
            assert torch.equal(ours, logits.float()) and torch.equal(ids.int(), their_ids) and torch.equal(weights, their_weights)
            if chunk < 2:
                assert torch.equal(ids, reference.choose(logits.float(), 8))
                nine = logits.float().topk(9).values
                tied += int((nine[:, 7] == nine[:, 8]).sum())
    assert tied > 2000  # of 10^5: at these, a router of another order would choose other experts


@pytest.mark.slow
def test_the_sampler_keeps_other_conventions() -> None:
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.fused_moe.router import cpu_router

    from frontier_tune.experts.vllm_plugin_router import install

    install()
    bias, logits = torch.randn(16), torch.randn(5, 16)
    options = dict(use_grouped_topk=True, num_expert_group=4, topk_group=2, scoring_func="sigmoid", e_score_correction_bias=bias)
    router = cpu_router.CPURouter(top_k=3, global_num_experts=16, **options)
    got = router._compute_routing(logits, logits, None)
    want = cpu_router._grouped_topk(logits, 3, True, 4, 2, "sigmoid", 1.0, bias)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
