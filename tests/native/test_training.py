"""The training kernels of an expert layer against the formula in float64, each expert and token by hand, with every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from frontier_tune.experts import lora_experts
from frontier_tune.native import build

build.load()
ops = torch.ops.frontier_tune
Lora = tuple[Tensor, Tensor] | None


def formula(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, wide: Lora, narrow: Lora) -> Tensor:
    """PEFT's layout: A [E * R, in], B [out, R * E]; scales 1.5 and 0.5."""

    def effective(base: Tensor, lora: Lora, scale: float) -> Tensor:
        if lora is None:
            return base
        a = lora[0].view(len(base), -1, base.shape[2])
        b = lora[1].view(base.shape[1], a.shape[1], len(base))
        return base + scale * torch.einsum("ore,eri->eoi", b, a)

    up, out = effective(gate_up, wide, 1.5), effective(down, narrow, 0.5)
    gate, linear = torch.einsum("th,tkoh->tko", x, up[ids]).chunk(2, -1)
    return torch.einsum("tk,tkhi,tki->th", weights, out[ids], F.silu(gate) * linear)


def case(
    tokens: int, top_k: int, experts: int, hidden: int, width: int, ranks: tuple[int, int], seed: int
) -> tuple[Tensor, list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(experts, generator=g)[:top_k] for _ in range(tokens)]
    ids = torch.stack(picks) if picks else torch.empty(0, top_k, dtype=torch.long)
    r1, r2 = ranks
    sizes = [(tokens, hidden), (tokens, top_k), (experts, 2 * width, hidden), (experts, hidden, width)]
    sizes += [(experts * r1, hidden), (2 * width, experts * r1)] if r1 else []
    sizes += [(experts * r2, width), (hidden, experts * r2)] if r2 else []
    return ids, [torch.randn(*s, generator=g) * 0.3 for s in sizes]


def run(function, ids: Tensor, tensors: list[Tensor], ranks: tuple[int, int]) -> list[Tensor]:
    """Output, and the gradients of x, the weights and the adapters."""
    frozen, leaves = tensors[2:4], [t.clone().requires_grad_() for t in (*tensors[:2], *tensors[4:])]
    lora = iter(leaves[2:])
    wide, narrow = ((next(lora), next(lora)) if r else None for r in ranks)
    out = function(leaves[0], ids, leaves[1], *frozen, wide, narrow)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def ours(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, wide: Lora, narrow: Lora) -> Tensor:
    assert lora_experts._native(x, weights, gate_up, down)
    return lora_experts.swiglu_experts(x, ids, weights, gate_up, down, wide and (*wide, 1.5), narrow and (*narrow, 0.5))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 90),
    top_k=st.integers(1, 3),
    experts=st.integers(3, 6),
    hidden=st.sampled_from([16, 32, 48]),
    width=st.integers(1, 40),
    ranks=st.sampled_from([(0, 0), (3, 0), (0, 5), (8, 8), (1, 13), (16, 4), (20, 7)]),
    seed=st.integers(0, 99),
)
def test_the_formula_with_every_gradient(tokens, top_k, experts, hidden, width, ranks, seed):
    ids, tensors = case(tokens, top_k, experts, hidden, width, ranks, seed)
    exact = run(formula, ids, [t.double() for t in tensors], ranks)
    for mine, theirs in zip(run(ours, ids, tensors, ranks), exact, strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        assert mine.shape == theirs.shape and bool(((mine.double() - theirs).abs() <= 2e-5 * (scale + 1e-3)).all())


def test_an_expert_with_more_rows_than_a_task_takes_and_threads_change_no_bit():
    ids, tensors = case(1500, 2, 3, 32, 16, (4, 4), 1)
    ids[:, 0], ids[:, 1] = 0, 2  # 1500 rows for two, none for one
    exact = run(formula, ids, [t.double() for t in tensors], (4, 4))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(ours, ids, tensors, (4, 4)))
    finally:
        torch.set_num_threads(before)
    for a, b, theirs in zip(*results, exact, strict=True):
        assert torch.equal(a, b) and float((a - theirs).abs().max()) <= 2e-5 * float(theirs.abs().max())


def test_a_row_is_bitwise_the_same_whatever_the_others_are():
    ids, tensors = case(77, 2, 4, 32, 24, (4, 4), 2)
    together = run(ours, ids, tensors, (4, 4))[0]
    for some in (slice(40, 41), slice(3, 60)):
        part = [t[some] for t in tensors[:2]] + tensors[2:]
        assert torch.equal(run(ours, ids[some], part, (4, 4))[0], together[some])


def test_what_they_do_not_take_goes_the_other_way():
    _, (x, weights, gate_up, down) = case(4, 2, 3, 32, 16, (0, 0), 3)
    native = lora_experts._native
    assert native(x, weights, gate_up, down)
    assert not native(x.double(), weights, gate_up, down) and not native(x, weights.bfloat16(), gate_up, down)
    assert not native(x, weights, gate_up.requires_grad_(), down)
    assert not native(x[:, :24], weights, gate_up.detach()[..., :24], down[:, :24])


def test_wrong_input_is_refused_not_read():
    ids, (x, weights, gate_up, down, *lora) = case(4, 2, 3, 32, 16, (4, 4), 4)
    a1, b1, a2, b2 = (t.view(3, 4, -1).contiguous() for t in lora)
    kept = [torch.empty(8, dtype=torch.int32), torch.empty(4, dtype=torch.int32), *(torch.empty(101, n) for n in (32, 4, 4))]

    def call(x=x, ids=ids, gate_up=gate_up, wide=(a1, b1), kept=kept):
        out = torch.empty_like(x)
        ops.training_experts(x, ids, weights, gate_up, down, list(wide), [a2, b2], 1.0, 1.0, kept, out)

    call()
    for wrong in (
        {"ids": ids + 3},
        {"ids": ids.int()},
        {"x": x[:, :16].contiguous()},
        {"x": x.double()},
        {"gate_up": down},
        {"wide": (a1,)},
        {"wide": (a1, a2)},
        {"kept": kept[:4]},
        {"kept": [*kept[:2], kept[2][:90], *kept[3:]]},
    ):
        with pytest.raises(RuntimeError, match="frontier_tune::training_experts"):
            call(**wrong)
    rest = (
        torch.empty_like(x),
        torch.empty_like(weights),
        [torch.empty_like(t) for t in (a1, b1)],
        [torch.empty_like(t) for t in (a2, b2)],
    )
    for number, value in ((0, 8), (1, 7)):
        broken = [t.clone() for t in kept]
        broken[number][-1] = value
        with pytest.raises(RuntimeError, match="is what forward made"):
            ops.training_experts_backward(x, x, ids, weights, gate_up, down, [a1, b1], [a2, b2], 1.0, 1.0, broken, *rest)
