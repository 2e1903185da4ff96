"""The expert layer in bfloat16 against the formula in float64, on the rounded numbers that it is given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from frontier_tune.experts import native_experts

EXPERTS, HIDDEN, WIDTH, RANK, SLOTS = 4, 64, 96, 3, 2
Pairs = list[tuple[Tensor, Tensor]]


def random(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size))).bfloat16()


def layer(rank: int) -> tuple[Tensor, Tensor, native_experts.Adapters, list[Pairs]]:
    gate_up, down = random(EXPERTS, 2 * WIDTH, HIDDEN, seed=0) * 0.1, random(EXPERTS, HIDDEN, WIDTH, seed=1) * 0.1
    adapters = native_experts.Adapters.empty(SLOTS, EXPERTS, HIDDEN, WIDTH, rank, torch.bfloat16)
    raw = []
    for slot in range(SLOTS):
        sizes = ((HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN))
        pairs = [
            (random(EXPERTS, rank, i, seed=10 * slot + p) * 0.1, random(EXPERTS, o, rank, seed=10 * slot + p))
            for p, (i, o) in enumerate(sizes)
        ]
        adapters.set(slot, *pairs)
        raw.append(pairs)
    return gate_up, down, adapters, raw


def batch(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(EXPERTS, generator=g)[:2] for _ in range(tokens)])
    slots = torch.randint(-1, SLOTS, (tokens,), generator=g)
    return random(tokens, HIDDEN, seed=seed), ids, torch.rand(tokens, 2, generator=g), slots


def formula(x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, gate_up: Tensor, down: Tensor, raw: list[Pairs]) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, (experts, slot) in enumerate(zip(ids.tolist(), slots.tolist(), strict=True)):
        for e, weight in zip(experts, weights[t].tolist(), strict=True):

            def low(p: int, v: Tensor, e: int = e, slot: int = slot) -> Tensor | float:
                return raw[slot][p][1][e].double() @ (raw[slot][p][0][e].double() @ v) if slot >= 0 else 0.0

            z = gate_up[e].double() @ x[t].double()
            h = F.silu(z[:WIDTH] + low(0, x[t].double())) * (z[WIDTH:] + low(1, x[t].double()))
            h = h.bfloat16().double()  # as between any two layers in bfloat16
            out[t] += weight * (down[e].double() @ h + low(2, h))
    return out


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 40), rank=st.sampled_from([1, 3, 8, 16, 17, 35]), seed=st.integers(0, 99))
def test_it_is_the_formula_to_the_last_bits(tokens, rank, seed):
    gate_up, down, adapters, raw = layer(rank)
    x, ids, weights, slots = batch(tokens, seed)
    ours = native_experts.forward(x, ids, weights, native_experts.pack(gate_up), native_experts.pack(down), slots, adapters)
    exact = formula(x, ids, weights, slots, gate_up, down, raw)
    # The result is rounded once, to 8 bits; h, near a tie, may be rounded the other way.
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).abs().le(2**-8 * exact.abs() + 2**-8 * exact.abs().max()).all()


@settings(max_examples=15, deadline=None)
@given(tokens=st.one_of(st.integers(1, 40), st.integers(41, 200)), rank=st.sampled_from([RANK, 8, 35]), seed=st.integers(0, 99))
def test_a_row_is_bitwise_the_same_whatever_the_others_are(tokens, rank, seed):
    gate_up, down, adapters, _ = layer(rank)
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    x, ids, weights, slots = batch(tokens, seed)
    row = seed % tokens
    together = native_experts.forward(x, ids, weights, *packed, slots, adapters)[row]
    others = torch.where(torch.arange(tokens) == row, slots, (slots + 2) % 3 - 1)
    exchanged = native_experts.forward(x, ids, weights, *packed, others, adapters)[row]
    one = slice(row, row + 1)
    alone = native_experts.forward(x[one], ids[one], weights[one], *packed, slots[one], adapters)[0]
    assert torch.equal(together, exchanged) and torch.equal(together, alone)


def test_a_zero_adapter_is_the_base_exactly_and_numbers_that_are_none_stay_in_their_rows():
    gate_up, down, adapters, _ = layer(RANK)
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    x, ids, weights, _ = batch(20, 1)
    base = native_experts.forward(x, ids, weights, *packed)
    slots = torch.arange(20) % 3 - 1
    zero = native_experts.Adapters.empty(SLOTS, EXPERTS, HIDDEN, WIDTH, RANK, torch.bfloat16)
    assert torch.equal(base, native_experts.forward(x, ids, weights, *packed, slots, zero))
    adapters.tensor[1] = torch.nan
    broken = native_experts.forward(x, ids, weights, *packed, slots, adapters)
    assert broken[slots == 1].isnan().all() and broken[slots != 1].isfinite().all()
    assert torch.equal(broken[slots < 0], base[slots < 0])


def test_a_layer_too_large_for_caches_gives_the_same_bits():
    """On AMX the low-rank path of such a layer has an order of its own, but for the additions."""
    _, _, adapters, _ = layer(8)
    many = 17 * 2**20 // (3 * HIDDEN * WIDTH * 2)
    gate_up, down = random(many, 2 * WIDTH, HIDDEN, seed=0) * 0.1, random(many, HIDDEN, WIDTH, seed=1) * 0.1
    large = native_experts.Adapters.empty(SLOTS, many, HIDDEN, WIDTH, 8, torch.bfloat16)
    large.tensor[:, :EXPERTS] = adapters.tensor
    near = [native_experts.pack(w[:EXPERTS]) for w in (gate_up, down)]
    far = [native_experts.pack(w) for w in (gate_up, down)]
    for tokens in (1, 7, 30, 120):
        x, ids, weights, mixed = batch(tokens, tokens)
        for slots in (mixed, torch.zeros_like(mixed), torch.full_like(mixed, -1)):
            expected = native_experts.forward(x, ids, weights, *near, slots, adapters)
            assert torch.equal(native_experts.forward(x, ids, weights, *far, slots, large), expected)


def test_an_expert_that_a_token_has_twice_and_more_rows_than_tokens():
    gate_up, down, adapters, raw = layer(RANK)
    x, _, weights, slots = batch(50, 3)
    ids = torch.full((50, 2), 1)
    ours = native_experts.forward(x, ids, weights, native_experts.pack(gate_up), native_experts.pack(down), slots, adapters)
    exact = formula(x, ids, weights, slots, gate_up, down, raw)
    assert (ours.double() - exact).abs().max() <= 2**-7 * exact.abs().max()


def test_types_are_not_mixed():
    gate_up, down, adapters, _ = layer(RANK)
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    x, ids, weights, slots = batch(4, 1)
    whole = native_experts.Adapters.empty(SLOTS, EXPERTS, HIDDEN, WIDTH, RANK)
    for wrong in (
        lambda: native_experts.forward(x.float(), ids, weights, *packed, slots, adapters),
        lambda: native_experts.forward(x, ids, weights, *(p.float() for p in packed), slots, adapters),
        lambda: native_experts.forward(x, ids, weights, *packed, slots, whole),
    ):
        with pytest.raises(RuntimeError, match="frontier_tune::experts: takes contiguous"):
            wrong()
