"""The C++ op against the oracle: every size, tie, infinity and option."""

from __future__ import annotations

import contextlib
import io

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from frontier_tune.contracts import BadInput
from frontier_tune.experts.routing import Dispatch, reference, route, route_dispatch
from frontier_tune.native import build

DTYPES = [torch.float32, torch.bfloat16]


@st.composite
def calls(draw: st.DrawFn) -> tuple[torch.Tensor, int, dict]:
    tokens, experts = draw(st.sampled_from([0, 1, 2, 7, 16, 17, 40])), draw(st.integers(1, 150))
    k = draw(st.integers(1, experts)) if draw(st.booleans()) else draw(st.integers(1, min(experts, 9)))
    options: dict = {
        "scoring": draw(st.sampled_from(["softmax", "sigmoid"])),
        "renormalize": draw(st.booleans()),
        "scale": draw(st.sampled_from([1.0, 2.5])),
    }
    torch.manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(tokens, experts) * draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))
    ties = draw(st.sampled_from(["none", "bfloat16", "integers"]))
    logits = {"none": logits, "bfloat16": logits.bfloat16().float(), "integers": logits.round()}[ties]
    if draw(st.booleans()):  # masked experts, though never all of a row
        mask = torch.rand(tokens, experts) < 0.3
        mask[:, -1] = False
        logits = logits.masked_fill(mask, -torch.inf)
    if draw(st.booleans()):
        logits = torch.where(torch.rand(tokens, experts) < 0.2, -torch.zeros(()), logits)
    if draw(st.booleans()) and ties == "integers":
        # a bias and scores of few bits: sums are exact, so that the choice is the same to the last tie
        options["scoring"], logits = "sigmoid", torch.where(logits > 0, 100.0, torch.where(logits < 0, -100.0, 0.0))
        options["bias"] = torch.randint(-4, 5, (experts,)) / 8
    groups = draw(st.sampled_from([1, 2, 4]))
    if groups > 1 and options.get("bias") is not None and experts % groups == 0 and experts // groups >= 2:
        options["n_group"], options["topk_group"] = groups, draw(st.integers(1, groups))
        k = min(k, experts // groups * options["topk_group"])
    return logits.to(draw(st.sampled_from(DTYPES))), k, options


def same(
    ours: Dispatch, logits: torch.Tensor, k: int, options: dict, slots: torch.Tensor | None = None, adapters: int = 0
) -> None:
    weights, ids = reference.route(logits, k, **options)
    assert torch.equal(ours.ids, ids)
    torch.testing.assert_close(ours.weights, weights, atol=1e-6, rtol=3e-6, equal_nan=True)
    experts = logits.shape[1]
    expected = reference.dispatch(ids, experts, slots, adapters)
    for mine, theirs in zip((ours.counts, ours.offsets, ours.order, ours.inverse), expected):
        assert torch.equal(mine, theirs)


@settings(max_examples=150, deadline=None)
@given(calls())
def test_equals_the_reference(call: tuple[torch.Tensor, int, dict]) -> None:
    logits, k, options = call
    same(route_dispatch(logits, k, **options), logits, k, options)
    alone = route(logits, k, **options)
    both = route_dispatch(logits, k, **options)
    assert torch.equal(alone[0], both.weights) and torch.equal(alone[1], both.ids)


@settings(max_examples=40, deadline=None)
@given(calls(), st.integers(1, 4), st.booleans())
def test_dispatch_by_adapter(call: tuple[torch.Tensor, int, dict], adapters: int, empty: bool) -> None:
    logits, k, options = call
    slots = torch.randint(-1, adapters, (logits.shape[0],))
    if empty:
        slots = slots.clamp(max=-1)
    out = route_dispatch(logits, k, **options, slots=slots, adapters=adapters, codes=True)
    same(out, logits, k, options, slots, adapters)
    assert out.codes is not None and out.codes.dtype == torch.uint8 and torch.equal(out.codes.int(), out.ids)
    order, group = out.order.long(), (out.ids * (adapters + 1) + slots[:, None].int() + 1).flatten()
    assert torch.equal(out.inverse[order], torch.arange(order.numel(), dtype=torch.int32))
    assert (group[order].diff() >= 0).all() and int(out.counts.sum()) == order.numel() == int(out.offsets[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("experts", [1, 3, 16, 17, 129, 300, 1000])
@pytest.mark.parametrize("k", [1, 2, 3, 8, 9, 16, 20, 32, 40])
def test_every_width(dtype: torch.dtype, experts: int, k: int) -> None:
    if k > experts:
        return
    logits = torch.randn(37, experts).bfloat16().to(dtype)
    out = route_dispatch(logits, k, codes=True)
    same(out, logits, k, {})
    assert out.codes is not None and torch.equal(out.codes.int(), out.ids)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("experts", [15, 16, 17, 31, 64, 65, 128, 200, 1024, 1025])
@pytest.mark.parametrize("k", [1, 2, 4, 5, 8])
def test_whole_blocks(dtype: torch.dtype, experts: int, k: int) -> None:
    """16 tokens at a time: from no ties to nothing but ties, and with the best logits where one vector lane sees them all."""
    logits = torch.randn(16 * 8, experts)
    logits[16:32] = logits[16:32].round()
    logits[32:48] = 0.0
    logits[33:48:2, 1::3] = -0.0
    logits[48:64, ::16] += 10.0  # of 64 experts the four best are in one lane: all the others are candidates, too
    logits[64:80] *= 1e-42  # subnormal
    logits[80:96] -= 1e30
    logits[96:112, 1:] = -torch.inf
    logits[112:128, experts // 2] = torch.nan
    logits = logits.to(dtype)
    out = route_dispatch(logits, k, codes=experts <= 256)
    same(out, logits, k, {})
    assert torch.equal(route(logits[:48], k)[1], torch.cat([route(row[None], k)[1] for row in logits[:48]]))


@pytest.mark.parametrize("tokens,experts", [(4096, 64), (700, 512)])
def test_threads_give_the_same(tokens: int, experts: int) -> None:
    logits, slots = torch.randn(tokens, experts), torch.randint(-1, 3, (tokens,))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = route_dispatch(logits, 6, slots=slots, adapters=3)
        torch.set_num_threads(3)
        three = route_dispatch(logits, 6, slots=slots, adapters=3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], three[:3]))
    same(one, logits, 6, {}, slots, 3)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["one", "row"])
@pytest.mark.parametrize("k", [2, 40])
def test_nan_and_infinities(scoring: str, dtype: torch.dtype, value: float, where: str, k: int) -> None:
    clean = torch.randn(21, 50).to(dtype)
    logits = clean.clone()
    logits[5, 30 if where == "one" else slice(None)] = value
    for sign in (1, -1):  # a NaN has a sign, too
        bits = logits.clone()
        bits[5] = torch.copysign(bits[5], bits[5].new_tensor(sign)) if value != value else bits[5]
        out = route_dispatch(bits, k, scoring=scoring)
        same(out, bits, k, {"scoring": scoring})
        others = torch.arange(21) != 5
        assert torch.equal(out.ids[others], route(clean, k, scoring=scoring)[1][others]) and out.weights[others].isfinite().all()
        bad = value != value or (scoring == "softmax" and (value > 0 or where == "row"))
        assert bool(out.weights[5].isnan().all()) == bad == (not bool(out.weights[5].isfinite().all()))
        if bad:
            with pytest.raises(RuntimeError, match="token 5 of 21 has no routing"):
                route(bits, k, scoring=scoring, strict=True)
        else:
            route(bits, k, scoring=scoring, strict=True)


def test_a_bias_that_is_not_finite_leaves_no_routing() -> None:
    bias = torch.zeros(8)
    bias[3] = torch.inf
    weights, ids = route(torch.randn(3, 8), 2, bias=bias)
    assert weights.isnan().all() and ids.tolist() == [[0, 1]] * 3


def test_forced_routes() -> None:
    logits = torch.randn(30, 12)
    routes = torch.randint(0, 12, (30, 3))
    for dtype in (torch.uint8, torch.int32, torch.int64):
        out = route_dispatch(logits, 3, renormalize=False, forced=routes.to(dtype))
        same(out, logits, 3, {"renormalize": False, "forced": routes})
    own = route_dispatch(logits, 3, codes=True)
    again = route_dispatch(logits, 3, forced=own.codes)
    assert torch.equal(own.weights, again.weights) and torch.equal(own.order, again.order)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets_choose_the_same(isa: str, run_python) -> None:
    code = """
import torch
from frontier_tune.experts.routing import route_dispatch
torch.manual_seed(0)
for experts, k in ((5, 2), (16, 2), (17, 4), (64, 8), (129, 16), (40, 33)):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(50, experts).bfloat16().to(dtype)
        x[3, 1], x[4, :3], x[5, 2] = -torch.inf, -0.0, torch.nan
        out = route_dispatch(x, k, renormalize=k == 8)
        print(out.plan.tolist(), out.ids.tolist(), [[round(w, 5) for w in r] for r in out.weights.tolist()])
"""
    with contextlib.redirect_stdout(io.StringIO()) as ours:
        exec(code, {})
    assert run_python(code, FRONTIER_TUNE_ISA=isa) == ours.getvalue()


@pytest.mark.parametrize(
    "arguments,options,message",
    [
        ((torch.zeros(2, 4, dtype=torch.float16), 2), {}, "float32 or bfloat16"),
        ((torch.zeros(4), 2), {}, r"\[T, E\]"),
        ((torch.zeros(2, 4), 5), {}, "k is between 1"),
        ((torch.zeros(2, 4), 0), {}, "k is between 1"),
        ((torch.zeros(2, 4), 2), {"n_group": 3}, "n_group divides E"),
        ((torch.zeros(2, 4), 3), {"n_group": 2}, "the chosen groups k or more"),
        ((torch.zeros(2, 4), 2), {"bias": torch.zeros(3)}, "bias is contiguous"),
        ((torch.zeros(2, 4), 2), {"scale": 0.0}, "scale is positive"),
        ((torch.zeros(2, 4), 2), {"forced": torch.full((2, 2), 4)}, "names an expert that there is not"),
        ((torch.zeros(2, 4), 2), {"forced": torch.full((2, 2), 2**32 + 1)}, "names an expert that there is not"),
        ((torch.zeros(2, 4), 2), {"forced": torch.full((2, 2), -(2**32))}, "names an expert that there is not"),
        ((torch.zeros(2, 4), 2), {"forced": torch.full((2, 2), -1)}, "names an expert that there is not"),
        ((torch.zeros(2, 4), 2), {"forced": torch.zeros(2, 1, dtype=torch.int64)}, r"forced routes are .*\[T, k\]"),
        ((torch.zeros(2, 4), 2), {"slots": torch.tensor([0, 2]), "adapters": 2}, "a slot is not between"),
        ((torch.zeros(2, 4), 2), {"slots": torch.tensor([0]), "adapters": 2}, r"slots are contiguous int64 \[T\]"),
    ],
)
def test_bad_input_is_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        route_dispatch(*arguments, **options)


def test_forced_routes_are_integers() -> None:
    with pytest.raises(BadInput, match="ids of experts are integers, not torch.float32"):
        route_dispatch(torch.zeros(2, 4), 2, forced=torch.full((2, 2), 1.9))


def test_unknown_scoring() -> None:
    with pytest.raises(BadInput, match="softmax and sigmoid"):
        route(torch.zeros(1, 4), 2, scoring="relu")  # type: ignore[arg-type]


def test_instruction_set_is_one_of_ours() -> None:
    assert build.load() in build.NAMES
