"""Gradients of the op against the oracle's, finite differences, and how torch sees the op."""

from __future__ import annotations

import pytest
import torch

from frontier_tune.experts.routing import op, reference, route, route_dispatch

SCORINGS = ["softmax", "sigmoid"]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("experts,k", [(1, 1), (5, 2), (33, 4), (128, 8)])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_equals_the_reference(
    scoring: op.Scoring, renormalize: bool, experts: int, k: int, forced: bool, dtype: torch.dtype
) -> None:
    logits = (3 * torch.randn(29, experts)).to(dtype)
    logits[2, 0] = logits[4, 0] = -torch.inf if experts > 1 else 0.0
    options = dict(scoring=scoring, renormalize=renormalize, scale=1.5)
    if forced:
        options["forced"] = torch.randint(0, experts, (29, k))
    grad = torch.randn(29, k)
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    route(mine, k, **options)[0].backward(grad)
    reference.route(theirs.double(), k, **options)[0].backward(grad.double())
    assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-6, rtol=1e-5)
    else:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=2e-2)
    again = logits.clone().requires_grad_()
    route_dispatch(again, k, **options).weights.backward(grad)
    assert torch.equal(again.grad, mine.grad)


@pytest.mark.parametrize("name", ["route", "route_dispatch"])
def test_the_registered_operator_has_the_same_gradient(name: str) -> None:
    op.register()
    mine, grad = torch.randn(6, 9).requires_grad_(), torch.randn(6, 3)
    theirs = mine.detach().clone().requires_grad_()
    getattr(op, name)(mine, 3)[0].backward(grad)
    dispatch = (None, 0, 0) if name == "route_dispatch" else ()
    getattr(torch.ops.frontier_tune, name)(theirs, None, None, 3, False, True, 1.0, 1, 1, False, *dispatch)[0].backward(grad)
    assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("name", ["route", "route_dispatch"])
def test_what_is_left_out_of_a_call_has_the_defaults_of_the_schema(name: str) -> None:
    op.register()
    operator, logits = getattr(torch.ops.frontier_tune, name), torch.randn(5, 9)
    short, long = operator(logits, None, None, 3), operator(logits, None, None, 3, False, True, 1.0, 1, 1, False)
    assert all(torch.equal(a, b) for a, b in zip(short, long))
    with torch.device("meta"):
        shapes = operator(torch.empty(5, 9), None, None, 3)
    assert [t.shape for t in shapes] == [t.shape for t in short]


def test_a_gradient_of_the_gradient_is_refused() -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(route(logits, 2)[0].square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("renormalize", [True, False])
def test_gradient_equals_finite_differences(scoring: op.Scoring, renormalize: bool) -> None:
    logits, grad = torch.randn(3, 10).requires_grad_(), torch.randn(3, 4)
    ids = route(logits, 4, scoring=scoring)[1]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (route(x, 4, scoring=scoring, renormalize=renormalize, forced=ids)[0].double() * grad).sum()

    loss(logits).backward()
    for t in range(3):
        for e in range(10):
            step = torch.zeros(3, 10)
            step[t, e] = 1e-2
            with torch.no_grad():
                slope = (loss(logits + step) - loss(logits - step)) / 2e-2
            assert abs(float(slope - logits.grad[t, e])) < 1e-4


def test_no_gradient_reaches_anything_but_the_logits() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    out = route_dispatch(logits, 2)
    assert out.weights.requires_grad and not out.ids.requires_grad and not out.plan.requires_grad
    with torch.no_grad():
        assert not route(logits, 2)[0].requires_grad


def test_where_all_chosen_scores_are_zero() -> None:
    logits = torch.full((2, 6), -torch.inf)
    logits[:, 5] = 0.0
    logits.requires_grad_()
    weights, _ = route(logits, 2, forced=torch.zeros(2, 2, dtype=torch.int64))
    weights.sum().backward()
    assert weights.tolist() == [[0.0, 0.0]] * 2 and not logits.grad.any()


@pytest.mark.parametrize("name", ["route", "route_dispatch"])
def test_opcheck(name: str) -> None:
    op.register()
    dispatch = (torch.tensor([0, -1, 1]), 2, 1) if name == "route_dispatch" else ()
    for grad in (False, True):
        for bias in (None, torch.zeros(16)):
            logits = torch.randn(3, 16, requires_grad=grad)
            arguments = (logits, bias, None, 4, False, True, 1.0, 4, 2 if bias is not None else 4, False, *dispatch)
            torch.library.opcheck(getattr(torch.ops.frontier_tune, name).default, arguments)


def test_opcheck_without_gradient() -> None:
    op.register()
    arguments = (torch.randn(3, 16), None, torch.zeros(3, 2, dtype=torch.int32), 2, True, True, 1.0, 1, 1, False)
    torch.library.opcheck(torch.ops.frontier_tune.route_forward.default, arguments)
    torch.library.opcheck(torch.ops.frontier_tune.route_dispatch_forward.default, (*arguments, None, 0, 2))
    weights, ids = route(torch.randn(3, 16), 2)
    backward = torch.ops.frontier_tune.route_backward.default
    torch.library.opcheck(backward, (torch.randn(3, 2), torch.randn(3, 16), ids, weights, False, False, 1.0))


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    def layer(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = route_dispatch(x @ w, 2)
        return out.weights * 2, out.order + out.counts.sum()

    op.register()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for tokens in (1, 5, 64):
        x, w = torch.randn(tokens, 8), torch.randn(8, 16, requires_grad=True)
        eager, fast = layer(x, w), compiled(x, w)
        torch.testing.assert_close(fast[0], eager[0])
        assert torch.equal(fast[1], eager[1])
        expected = torch.autograd.grad(eager[0].square().sum(), w)
        torch.testing.assert_close(torch.autograd.grad(fast[0].square().sum(), w), expected)
