"""Every kernel against torch in float64 or torch's autograd, on each instruction set that this machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from frontier_tune.experts import native_experts
from frontier_tune.native import build

build.load()
ops = torch.ops.frontier_tune
sizes = st.integers(1, 70)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size)))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> bool:
    scale = float(theirs.abs().max()) if theirs.numel() else 1.0
    return ours.shape == theirs.shape and bool(((ours.double() - theirs.double()).abs() <= tolerance * (1 + scale)).all())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), width=sizes, seed=st.integers(0, 99))
def test_rms_norm_and_its_gradient(rows, width, seed):
    x, w, dy = random(rows, width, seed=seed), random(width, seed=seed).abs(), random(rows, width, seed=seed + 1)
    y, dx = torch.empty_like(x), torch.empty_like(x)
    ops.rms_norm(x, w, 1e-6, y)
    ops.rms_norm_backward(dy, x, w, 1e-6, dx)
    xd = x.double().requires_grad_()
    expected = F.rms_norm(xd, (width,), w.double(), 1e-6)
    assert close(y, expected.detach())
    if rows:
        expected.backward(dy.double())
        assert close(dx, xd.grad)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 9), width=sizes)
def test_add_rms_norm_works_in_place(rows, width):
    x, residual, w = random(rows, width), random(rows, width, seed=1), random(width).abs()
    total = x.double() + residual.double()
    ops.add_rms_norm(x, residual, w, 1e-6)
    assert close(residual, total) and close(x, F.rms_norm(total, (width,), w.double(), 1e-6))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), width=sizes, seed=st.integers(0, 99))
def test_swiglu_and_its_gradient(rows, width, seed):
    z, dh, w = 3 * random(rows, 2 * width, seed=seed), random(rows, width, seed=seed), random(rows, seed=seed)
    h, again, dz, dw = torch.empty(rows, width), torch.empty(rows, width), torch.empty_like(z), torch.empty(rows)
    ops.swiglu(z, h)
    ops.swiglu_backward(z, dh, w, again, dz, dw)
    zd, wd = z.double().requires_grad_(), w.double().requires_grad_()
    expected = F.silu(zd[:, :width]) * zd[:, width:]
    assert close(h, expected.detach()) and close(again, expected.detach())
    (expected * wd[:, None] * dh.double()).sum().backward()
    assert close(dz, zd.grad) and close(dw, wd.grad)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 9), heads=st.integers(1, 4), half=st.integers(1, 40))
def test_rotary_and_its_transpose(rows, heads, half):
    x, cos, sin = random(rows, heads, 2 * half), random(rows, 2 * half, seed=1), random(rows, 2 * half, seed=2)
    y, back = torch.empty_like(x), torch.empty_like(x)
    ops.rotary(x, cos, sin, False, y)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    assert close(y, x.double() * cos[:, None].double() + turned.double() * sin[:, None].double())
    dy = random(rows, heads, 2 * half, seed=3)
    ops.rotary(dy, cos, sin, True, back)
    assert close((y * dy).sum(), (x * back).sum(), 1e-4)  # <R x, dy> = <x, R^T dy>


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), width=sizes, spread=st.sampled_from([0.1, 3.0, 60.0]))
def test_softmax_rows(rows, width, spread):
    z, target = spread * random(rows, width), torch.arange(rows) % width
    expected = torch.log_softmax(z.double(), 1)
    p, out = z.clone(), [torch.empty(rows) for _ in range(3)]
    ops.softmax_rows(p, target, *out)
    assert close(p, expected.exp()) and close(out[0], z.double().logsumexp(1))
    assert close(out[1], expected.gather(1, target[:, None])[:, 0])
    assert close(out[2], -(expected.exp() * expected).sum(1))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), width=sizes, spread=st.sampled_from([0.1, 3.0, 60.0]))
def test_softmax_rows_backward(rows, width, spread):
    z, target = spread * random(rows, width), torch.arange(rows) % width
    dlogprob, dentropy = random(rows), random(rows, seed=1)
    exact = z.double().requires_grad_()
    whole = torch.log_softmax(exact, 1)
    logprob, entropy = whole.gather(1, target[:, None])[:, 0], -(whole.exp() * whole).sum(1)
    (logprob @ dlogprob.double() + entropy @ dentropy.double()).backward()
    ops.softmax_rows_backward(z, target, exact.logsumexp(1).float().detach(), entropy.float().detach(), dlogprob, dentropy)
    assert close(z, exact.grad, 2e-5 * max(1.0, spread))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 20), rank=st.integers(1, 9), seed=st.integers(0, 99))
def test_lora_linear_gives_each_row_its_own_adapter(rows, rank, seed):
    slots, widths, inner = 3, (33, 7), 40
    x, y = random(rows, inner, seed=seed), random(rows, sum(widths), seed=seed)
    slot = torch.randint(-1, slots, (rows,), generator=torch.Generator().manual_seed(seed))
    a = [random(slots, 1, rank, inner, seed=seed + i) for i in range(2)]
    b = [random(slots, 1, n, rank, seed=seed + i) for i, n in enumerate(widths)]
    expected = y.double()
    for t, s in enumerate(slot.tolist()):
        if s >= 0:
            expected[t] += 0.5 * torch.cat(
                [bi[s, 0].double() @ (ai[s, 0].double() @ x[t].double()) for ai, bi in zip(a, b, strict=True)]
            )
    ops.lora_linear(y, x, slot, a, b, 0.5)
    assert close(y, expected)


# ---- the expert layer

E, H, WIDTH, R, SLOTS = 5, 64, 32, 3, 2


def layer(seed: int = 0) -> tuple[Tensor, Tensor, native_experts.Adapters, list[list[tuple[Tensor, Tensor]]]]:
    gate_up, down = random(E, 2 * WIDTH, H, seed=seed) * 0.1, random(E, H, WIDTH, seed=seed) * 0.1
    adapters = native_experts.Adapters.empty(SLOTS, E, H, WIDTH, R)
    raw = []
    for s in range(SLOTS):
        n = seed + 10 * s
        pairs = [
            (random(E, R, i, seed=n + p) * 0.1, random(E, o, R, seed=n + p))
            for p, (i, o) in enumerate([(H, WIDTH), (H, WIDTH), (WIDTH, H)])
        ]
        adapters.set(s, *pairs)
        raw.append(pairs)
    return gate_up, down, adapters, raw


def oracle(x, ids, weights, slots, gate_up, down, raw) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(x.shape[0]):
        v = x[t].double()
        for e, w in zip(ids[t].tolist(), weights[t].tolist(), strict=True):

            def low(p: int, v: Tensor, e: int = e, s: int = int(slots[t])) -> Tensor | float:
                return raw[s][p][1][e].double() @ (raw[s][p][0][e].double() @ v) if s >= 0 else 0.0

            z = gate_up[e].double() @ v
            h = F.silu(z[:WIDTH] + low(0, v)) * (z[WIDTH:] + low(1, v))
            out[t] += w * (down[e].double() @ h + low(2, h))
    return out


def batch(tokens: int, top_k: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = (
        torch.stack([torch.randperm(E, generator=g)[:top_k] for _ in range(tokens)])
        if tokens
        else torch.empty(0, top_k, dtype=torch.long)
    )
    return (
        random(tokens, H, seed=seed),
        ids,
        torch.rand(tokens, top_k, generator=g),
        torch.randint(-1, SLOTS, (tokens,), generator=g),
    )


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 90), top_k=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_expert_layer_is_the_formula(tokens, top_k, seed):
    gate_up, down, adapters, raw = layer()
    x, ids, weights, slots = batch(tokens, top_k, seed)
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    ours = native_experts.forward(x, ids, weights, *packed, slots, adapters)
    assert close(ours, oracle(x, ids, weights, slots, gate_up, down, raw))
    base = native_experts.forward(x, ids, weights, *packed)
    assert close(base, oracle(x, ids, weights, torch.full_like(slots, -1), gate_up, down, raw))


@pytest.mark.parametrize("dtype", native_experts.DTYPES)
def test_packed_weights_are_read_back(dtype):
    weight = random(3, 64, 96, seed=5).to(dtype)
    packed = native_experts.pack(weight)
    assert not torch.equal(packed, weight) and torch.equal(native_experts.unpack(packed), weight)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 90), seed=st.integers(0, 99), threads=st.sampled_from([1, 2]))
def test_a_row_is_bitwise_the_same_whatever_the_others_are(tokens, seed, threads):
    gate_up, down, adapters, _ = layer()
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    x, ids, weights, slots = batch(tokens, 2, seed)
    row, before = seed % tokens, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = native_experts.forward(x, ids, weights, *packed, slots, adapters)[row]
        others = torch.where(torch.arange(tokens) == row, slots, (slots + 2) % 3 - 1)
        exchanged = native_experts.forward(x, ids, weights, *packed, others, adapters)[row]
        one = slice(row, row + 1)
        alone = native_experts.forward(x[one], ids[one], weights[one], *packed, slots[one], adapters)[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, exchanged) and torch.equal(together, alone)


def test_a_zero_adapter_is_the_base_exactly():
    gate_up, down, _, _ = layer()
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    x, ids, weights, _ = batch(20, 2, 1)
    zero = native_experts.Adapters.empty(1, E, H, WIDTH, R)
    assert torch.equal(
        native_experts.forward(x, ids, weights, *packed),
        native_experts.forward(x, ids, weights, *packed, torch.zeros(20, dtype=torch.long), zero),
    )


def test_wrong_input_is_refused_not_read():
    gate_up, down, adapters, _ = layer()
    packed = native_experts.pack(gate_up), native_experts.pack(down)
    x, ids, weights, slots = batch(4, 2, 1)
    for wrong in (
        lambda: native_experts.forward(x, ids + E, weights, *packed, slots, adapters),
        lambda: native_experts.forward(x, ids, weights, *packed, slots + SLOTS, adapters),
        lambda: native_experts.forward(x.double(), ids, weights, *packed, slots, adapters),
        lambda: native_experts.forward(x[:, :32], ids, weights, *packed, slots, adapters),
        lambda: native_experts.forward(x, ids, weights, packed[1], packed[0], slots, adapters),
        lambda: native_experts.forward(x, ids, weights, *packed, slots[:2], adapters),
    ):
        with pytest.raises(RuntimeError, match="frontier_tune::experts"):
            wrong()


def sampled(logits: Tensor, temperature: Tensor, seeds: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    tokens, ranks, logprobs = torch.empty(rows, dtype=torch.long), torch.empty(rows, dtype=torch.long), torch.empty(rows)
    counts = torch.zeros(rows, dtype=torch.long) if counts is None else counts
    ops.sample_tokens(logits, temperature, seeds, counts, tokens, logprobs, ranks)
    return tokens, logprobs, ranks


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 9), width=st.integers(1, 200), seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 30.0]))
def test_sampled_tokens_report_what_torch_says_of_them(rows, width, seed, scale):
    logits = scale * random(rows, width + 3, seed=seed)[:, :width]  # rows that don't lie one behind the other
    temperature = torch.tensor([0.0, 0.3, 1.0, 2.5]).repeat(3)[:rows].contiguous()
    tokens, logprobs, ranks = sampled(logits, temperature, torch.arange(rows) + seed)
    greedy = temperature == 0
    expected = (logits.double() / temperature.double().masked_fill(greedy, 1)[:, None]).log_softmax(-1)
    assert close(logprobs, expected.gather(1, tokens[:, None])[:, 0].float())
    assert torch.equal(ranks, (logits >= logits.gather(1, tokens[:, None])).sum(-1))
    assert (ranks[greedy] >= 1).all() and torch.equal(logits.gather(1, tokens[:, None])[greedy, 0], logits[greedy].amax(-1))


@pytest.mark.parametrize("vary", ["seeds", "counts"])
def test_sampled_tokens_have_the_softmax_distribution(vary):
    """Chi-squared over what differs between draws: requests, or one request's places. 37 tokens: vectors and a rest."""
    draws, width = 60_000, 37
    row = random(width, seed=3) * 2
    row[5] = -torch.inf
    varied, fixed = torch.arange(draws), torch.full((draws,), 7)
    seeds, counts = (varied, fixed) if vary == "seeds" else (fixed, varied)
    tokens, logprobs, _ = sampled(row.expand(draws, width).contiguous(), torch.full((draws,), 0.8), seeds, counts)
    expected = (row.double() / 0.8).softmax(0) * draws
    found = torch.bincount(tokens, minlength=width).double()
    common = expected > 5
    chi_squared = float(((found - expected)[common] ** 2 / expected[common]).sum())
    assert found[5] == 0 and chi_squared < 36 + 5 * (2 * 36) ** 0.5
    pairs = torch.corrcoef(torch.stack([logprobs[:-1], logprobs[1:]]))[0, 1]
    assert abs(float(pairs)) < 5 / draws**0.5  # neighbours know nothing of each other


def test_a_draw_depends_on_its_own_row_alone():
    logits, seeds, heat = random(8, 100), torch.arange(8), torch.full((8,), 1.0)
    tokens, logprobs, _ = sampled(logits, heat, seeds)
    order = torch.tensor([5, 1, 7])
    again = sampled(logits[order], heat[:3], seeds[order])
    assert torch.equal(again[0], tokens[order]) and torch.equal(again[1], logprobs[order])
    assert len({tuple(sampled(logits, heat, seeds, torch.full((8,), n))[0].tolist()) for n in range(5)}) == 5


def test_logits_that_are_not_numbers_are_seen_in_the_log_probability():
    logits = random(3, 40)
    logits[1, 7], logits[2] = torch.nan, -torch.inf
    tokens, logprobs, _ = sampled(logits, torch.ones(3), torch.arange(3))
    assert logprobs[0].isfinite() and not logprobs[1:].isfinite().any() and (tokens < 40).all()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 9), heads=st.integers(1, 4), half=st.integers(1, 40))
def test_rotary_by_position_works_in_place(rows, heads, half):
    width, x = 2 * half, random(rows, heads * 2 * half + 5)[:, : heads * 2 * half]
    angles = random(11, half).double()
    at = torch.randint(11, (rows,), generator=torch.Generator().manual_seed(rows))
    u, v = x.double().view(rows, heads, width).chunk(2, -1)
    cos, sin = angles.cos()[at][:, None], angles.sin()[at][:, None]
    expected = torch.cat([u * cos - v * sin, v * cos + u * sin], -1).view(rows, heads * width)
    ops.rotary_cached(at, x, torch.cat([angles.cos(), angles.sin()], -1).float(), width)
    assert close(x, expected.float())
    with pytest.raises(RuntimeError, match="position is out of range"):
        ops.rotary_cached(torch.full((1,), 11), torch.zeros(1, width), torch.zeros(11, width), width)


def test_sizes_of_nothing_are_refused_not_divided_by():
    """A division by zero in native code ends the process."""
    none, two = torch.empty(2, 0), torch.empty(2)
    long = torch.zeros(2, dtype=torch.long)
    for wrong in (
        lambda: ops.softmax_rows(none, long, two, two, two),
        lambda: ops.softmax_rows_backward(none, long, two, two, two, two),
        lambda: ops.swiglu(none, none),
        lambda: ops.swiglu_backward(none, none, two, none, none, two),
        lambda: ops.rotary(torch.empty(2, 0, 4), torch.empty(2, 4), torch.empty(2, 4), False, torch.empty(2, 0, 4)),
        lambda: native_experts.forward(
            torch.randn(3, H), torch.empty(3, 0), torch.empty(3, 0), *(torch.empty(s) for s in ((E, 2 * WIDTH, H), (E, H, WIDTH)))
        ),
    ):
        with pytest.raises(RuntimeError, match="frontier_tune::"):
            wrong()


@pytest.mark.slow
def test_every_instruction_set_passes_the_same_tests():
    """In a process each: the choice is made once. Those that this processor lacks fall back, and are skipped."""
    done = {}
    here, bf16 = Path(__file__), "test_experts_bf16.py"
    for name in build.NAMES:
        environment = os.environ | {"FRONTIER_TUNE_ISA": name}
        code = "import json, torch; from frontier_tune.native import build; build.load(); isa = torch.ops.frontier_tune.isa; "
        code += "print(json.dumps([build.NAMES[isa(half)] for half in (False, True)]))"
        chosen = json.loads(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        )
        whole = (here.name, "test_attention.py", "test_training.py") if chosen[0] == name != build.load() else ()
        half = (bf16,) if chosen[1] == name != build.NAMES[ops.isa(True)] else ()
        if whole or half:
            tests = [str(here.with_name(name)) for name in (*whole, *half)]
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
            done[name] = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for name, run in done.items():
        assert run.returncode == 0, f"{name}:\n{run.stdout[-2000:]}"
