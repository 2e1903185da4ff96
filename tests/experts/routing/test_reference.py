"""The oracle itself, against torch and transformers, and its gradients in float64."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from frontier_tune.experts.routing import reference


class Config:
    num_experts = num_local_experts = n_routed_experts = 24
    num_experts_per_tok, hidden_size, norm_topk_prob = 4, 16, True
    n_group, topk_group, routed_scaling_factor = 4, 2, 2.5


def hidden(router: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.nn.init.normal_(router.weight)
    return torch.randn(200, 16, dtype=dtype)


@pytest.mark.parametrize("router_class", [Qwen3MoeTopKRouter, OlmoeTopKRouter, MixtralTopKRouter])
@pytest.mark.parametrize("renormalize", [True, False])
def test_softmax_as_transformers(router_class: type, renormalize: bool) -> None:
    config = Config()
    config.norm_topk_prob = renormalize
    router = router_class(config)
    logits, weights, ids = router(hidden(router))
    ours = reference.route(logits, 4, renormalize=renormalize or router_class is MixtralTopKRouter)
    assert torch.equal(ours[1], ids.int())
    torch.testing.assert_close(ours[0], weights, atol=1e-6, rtol=0)


def test_groups_and_bias_as_deepseek() -> None:
    router = DeepseekV3TopkRouter(Config())
    router.e_score_correction_bias.normal_(std=0.2)
    logits, weights, ids = router(hidden(router))
    ours = reference.route(logits, 4, scoring="sigmoid", bias=router.e_score_correction_bias, n_group=4, topk_group=2, scale=2.5)
    order = ids.argsort(-1)  # theirs come in no order
    assert torch.equal(ours[1].sort(-1).values, ids.gather(1, order).int())
    mine = ours[0].gather(1, ours[1].long().argsort(-1))
    torch.testing.assert_close(mine, weights.gather(1, order), atol=1e-6, rtol=0)


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0], [0.0, -0.0, 0.0, -0.0, 0.0]])
    assert reference.route(logits, 3)[1].tolist() == [[1, 2, 4], [0, 1, 2]]
    groups = reference.choose(torch.zeros(1, 8), 3, "sigmoid", n_group=4, topk_group=2)
    assert groups.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("forced", [False, True])
def test_gradients(scoring: reference.Scoring, renormalize: bool, forced: bool) -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    routes = torch.randint(0, 7, (5, 3)) if forced else None
    torch.autograd.gradcheck(
        lambda x: reference.route(x, 3, scoring=scoring, renormalize=renormalize, scale=1.7, forced=routes)[0], (logits,)
    )


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_written_gradients_are_those_of_autograd(scoring: reference.Scoring, renormalize: bool) -> None:
    logits, grad = torch.randn(6, 9).requires_grad_(), torch.randn(6, 4)
    forced = torch.randint(0, 9, (6, 4))
    weights, ids = reference.route(logits, 4, scoring=scoring, renormalize=renormalize, scale=1.7, forced=forced)
    weights.backward(grad)
    written = reference.backward(grad, logits.detach(), ids, weights.detach(), scoring == "sigmoid", renormalize, 1.7)
    torch.testing.assert_close(written, logits.grad)


def test_dispatch_sorts_by_expert_then_slot() -> None:
    ids, slots = torch.tensor([[2, 0], [0, 1], [2, 1]]), torch.tensor([-1, 1, 0])
    counts, offsets, order, inverse = reference.dispatch(ids, 3, slots, adapters=2)
    assert counts.tolist() == [1, 0, 1, 0, 1, 1, 1, 1, 0]
    assert offsets.tolist() == [0, 1, 1, 2, 2, 3, 4, 5, 6, 6]
    assert order.tolist() == [1, 2, 5, 3, 0, 4]
    assert inverse[order.long()].tolist() == list(range(6))
