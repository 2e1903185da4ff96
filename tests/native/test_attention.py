"""The packed attention kernel against dense attention in float64 and against torch's own kernels, outputs and gradients."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from frontier_tune.learning import attention, packing
from frontier_tune.learning.packing import Packed, pack
from frontier_tune.native import build

build.load()
ops = torch.ops.frontier_tune


def dense(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float) -> Tensor:
    """softmax over exactly the rows that each sequence's own tokens name, from ``packed.rows`` alone."""
    seen = torch.zeros(q.shape[0], q.shape[0], dtype=torch.bool)
    for rows in packed.rows:
        at = torch.from_numpy(rows)
        seen[at[:, None], at[None]] |= torch.ones(len(rows), len(rows)).tril().bool()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def case(lengths: list[int], shared: int, share: int, kv_heads: int, width: int, seed: int) -> tuple[Packed, list[Tensor]]:
    """Sequences with a common prompt and, here and there, a branch in common; one group, and one sequence of no group."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    prompt = [rng.randrange(50) for _ in range(shared)]
    sequences = [[*prompt, *(rng.randrange(50) for _ in range(n))] for n in lengths]
    for one, other in pairwise(sequences):
        if rng.random() < 0.5:
            other[: len(one) // 2] = one[: len(one) // 2]
    packed = pack([*sequences, [7] * 9], [0] * len(lengths) + [1])
    rows, heads = len(packed.tokens_T), share * kv_heads
    return packed, [torch.randn(rows, n, width, generator=g) for n in (heads, kv_heads, kv_heads, heads)]


def gradients(function, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = function(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]


def native(packed: Packed, tensors: list[Tensor], scale: float) -> list[Tensor]:
    return gradients(lambda *x: attention._NativeAttention.apply(*x, packed, scale), *tensors)


def agree(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        assert a.shape == b.shape and (a.double() - b.double()).abs().max() <= tolerance * max(1, float(b.abs().max())), name


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    shared=st.integers(0, 70),
    share=st.sampled_from([1, 2, 3, 4, 5, 8]),
    kv_heads=st.integers(1, 2),
    width=st.sampled_from([8, 24, 32, 40, 64, 128]),
    seed=st.integers(0, 99),
)
def test_dense_attention_and_its_gradients(lengths, shared, share, kv_heads, width, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MIN_SAVED_ROWS", 1)
        packed, tensors = case(lengths, shared, share, kv_heads, width, seed)
    scale = width**-0.5
    exact = gradients(lambda *x: dense(*x, packed, scale), *(t.double() for t in tensors))
    ours = native(packed, tensors, scale)
    agree(ours, exact)
    agree(ours, gradients(lambda *x: attention._PackedAttentionCPU.apply(*x, packed, scale), *tensors))


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_more_keys_than_one_pass_takes(spread: float):
    """Several passes over the keys, with scores that move the largest one from pass to pass, and weights of exactly zero."""
    packed, tensors = case([700, 3, 350], 300, 2, 1, 32, 1)
    tensors[0] *= spread
    exact = gradients(lambda *x: dense(*x, packed, 0.2), *(t.double() for t in tensors))
    agree(native(packed, tensors, 0.2), exact, 1e-5 * spread)


def test_the_number_of_threads_changes_no_bit():
    packed, tensors = case([60, 61, 120], 100, 2, 2, 32, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(native(packed, tensors, 0.2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_is_not_finite_shows_and_stays_in_its_sequence():
    packed, (q, k, v, dout) = case([20, 40], 10, 1, 1, 32, 4)
    bad, others = int(packed.rows[1][-1]), torch.from_numpy(packed.rows[0])
    for tensor, value in ((q, torch.nan), (k, torch.nan), (v, torch.inf), (q, torch.inf)):
        kept = tensor[bad].clone()
        tensor[bad] = value
        out, dq, _, _ = native(packed, [q, k, v, dout], 0.2)
        assert not out[bad].isfinite().any() and out[others].isfinite().all()
        assert not dq[bad].isfinite().any() and dq[others].isfinite().all()
        tensor[bad] = kept


def test_the_model_takes_the_kernel_for_its_widths_and_types():
    q = torch.empty(3, 2, 32)
    assert attention._native(q) and not attention._native(q.double()) and not attention._native(q[..., :12])


def test_wrong_plans_and_sizes_are_refused_not_read():
    q, lse = torch.randn(6, 2, 16), torch.empty(6, 2)

    def call(segments: list[list[int]], q: Tensor = q, k: Tensor = q) -> None:
        ops.packed_attention(q, k, k, torch.tensor(segments, dtype=torch.long), 1.0, torch.empty_like(q), lse)

    call([[0, 2, -1], [2, 4, 0]])
    for segments in (
        [[0, 0, -1]],
        [[0, 5, -1]],
        [[0, 7, -1]],
        [[1, 5, -1]],
        [[0, 6, 0]],
        [[0, 2, -1], [2, 4, 1]],
        [[0, 2, -1], [2, 2, -1], [4, 2, 0]],
        [[0, 2, -1], [2, 4, -2]],
        [[0, 6, -1], [6, 0, 0]],
    ):
        with pytest.raises(RuntimeError, match="segment"):
            call(segments)
    for wrong in (q.double(), q[..., :12], q[:, :0], q.transpose(0, 1)):
        with pytest.raises(RuntimeError, match="frontier_tune::packed_attention"):
            call([[0, 6, -1]], wrong)
    with pytest.raises(RuntimeError, match="multiple of kv_heads"):
        call([[0, 6, -1]], q, torch.randn(6, 3, 16))
