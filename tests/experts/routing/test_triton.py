"""The Triton kernels against the oracle: on a GPU, else under Triton's interpreter where Triton is installed."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from frontier_tune.experts.routing import reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (torch's CPU wheels come without it)", allow_module_level=True)
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

from frontier_tune.experts.routing import triton_kernel  # noqa: E402


@pytest.mark.parametrize("tokens", [0, 1, 3, 17, 70])
@pytest.mark.parametrize("experts,k", [(1, 1), (5, 2), (16, 2), (33, 7), (128, 8)])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_equals_the_reference(tokens: int, experts: int, k: int, scoring: reference.Scoring, renormalize: bool) -> None:
    logits = torch.randn(tokens, experts).bfloat16().float().to(DEVICE)
    if tokens > 2 and experts > 2:
        logits[1, 0], logits[2, 1], logits[0] = -torch.inf, torch.nan, 0.0
    slots = torch.randint(-1, 2, (tokens,), device=DEVICE)
    weights, ids = reference.route(logits, k, scoring=scoring, renormalize=renormalize, scale=1.5)
    arguments = (logits, None, None, k, scoring == "sigmoid", renormalize, 1.5, 1, 1, False)
    got = triton_kernel.route_dispatch(*arguments, slots, 2, 1)
    alone = triton_kernel.route(*arguments)
    assert torch.equal(got[1], ids) and torch.equal(alone[1], ids)
    for mine in (got[0], alone[0]):
        torch.testing.assert_close(mine, weights, atol=1e-6, rtol=3e-6, equal_nan=True)
    plan = torch.cat(reference.dispatch(ids, experts, slots, 2))
    assert torch.equal(got[2][: plan.numel()], plan)
    assert torch.equal(got[2][plan.numel() :].view(torch.uint8)[: ids.numel()].int(), ids.flatten())


@pytest.mark.parametrize("forced", [False, True])
def test_bias_and_forced_routes(forced: bool) -> None:
    logits, bias = torch.randn(9, 20, device=DEVICE), torch.randn(20, device=DEVICE)
    routes = torch.randint(0, 20, (9, 3), device=DEVICE).int() if forced else None
    weights, ids = reference.route(logits, 3, scoring="sigmoid", bias=None if forced else bias, forced=routes)
    got = triton_kernel.route(logits, None if forced else bias, routes, 3, True, True, 1.0, 1, 1, False)
    assert torch.equal(got[1], ids)
    torch.testing.assert_close(got[0], weights, atol=1e-6, rtol=3e-6)


def test_verify() -> None:
    triton_kernel.verify(DEVICE)


@pytest.mark.parametrize(
    ("name", "faulty"),
    [
        ("route", lambda x, bias, forced, k: bias is not None),
        ("route", lambda x, bias, forced, k: forced is not None),
        ("route", lambda x, bias, forced, k: x.dtype == torch.bfloat16),
        ("route", lambda x, bias, forced, k: x.shape[0] * k > triton_kernel.MOST_ROUTES),
        ("route_dispatch", lambda x, bias, forced, k: bias is forced is None and x.dtype == torch.float32),
    ],
)
def test_a_fault_in_any_variant_is_found(monkeypatch: pytest.MonkeyPatch, name: str, faulty: Any) -> None:
    """The gate before a device is trusted: training goes through all of these, and a wrong weight would never show elsewhere."""
    stock = getattr(triton_kernel, name)

    def with_fault(x: torch.Tensor, bias: Any, forced: Any, k: int, *rest: Any) -> Any:
        weights, *others = stock(x, bias, forced, k, *rest)
        return (weights * (1.01 if faulty(x, bias, forced, k) else 1.0), *others)

    monkeypatch.setattr(triton_kernel, name, with_fault)
    with pytest.raises(RuntimeError, match="differ from their reference on"):
        triton_kernel.verify(DEVICE)
