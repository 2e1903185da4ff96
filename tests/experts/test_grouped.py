"""The Triton kernels of the expert layer against the torch path: on a GPU, else under Triton's interpreter where Triton is."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from frontier_tune.experts import lora_experts

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (torch's CPU wheels come without it)", allow_module_level=True)
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from frontier_tune.experts.grouped import experts, kernels  # noqa: E402

Inputs = tuple[list[Tensor], Tensor]
NAMES = ("out", "x", "routing", "A1", "B1", "A2", "B2")


def make(seed: int, t: int, e: int, k: int, h: int, i: int, r: int, used: int | None = None) -> Inputs:
    """x, routing, gate_up, down and PEFT's A and B of both: float64, exact in bfloat16. Experts from ``used`` on stay empty."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(t, h), (t, k), (e, 2 * i, h), (e, h, i), (e * r, h), (2 * i, r * e), (e * r, i), (h, r * e)]
    tensors = [torch.randn(s, generator=g).mul_(0.5).bfloat16().double().to(DEVICE) for s in shapes]
    picks = [torch.randperm(used or e, generator=g)[:k] for _ in range(t)]
    return tensors, (torch.stack(picks) if t else torch.empty(0, k, dtype=torch.long)).to(DEVICE)


def run(inputs: Inputs, dtype: torch.dtype, first: bool = True, second: bool = True) -> list[Tensor]:
    """Through ``lora_experts``: output, and gradients of x, the routing weights, and every A and B that takes part."""
    tensors, ids = inputs
    x, routing, gate_up, down, a1, b1, a2, b2 = (t.to(dtype) for t in tensors)
    leaves = [x, routing, *([a1, b1] if first else []), *([a2, b2] if second else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    wide, narrow = (a1, b1, 0.75) if first else None, (a2, b2, 3.0) if second else None
    out = lora_experts.swiglu_experts(x, ids, routing, gate_up, down, wide, narrow)
    probe = ((torch.arange(out.numel(), device=out.device) % 13 - 6) / 4).view_as(out).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, probe)]


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """``lora_experts`` sends what it can to the kernels, whatever the device. (Float64 stays with torch, and is the oracle.)"""
    monkeypatch.setattr(lora_experts, "_device_kernels", lambda x: experts)
    monkeypatch.setattr(lora_experts, "_native", lambda *_: False)


def close(mine: list[Tensor], true: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(NAMES, mine, true, strict=False):
        assert a.shape == b.shape, name
        if b.numel():
            scale = b.abs().max().item() or 1.0
            assert (a.double() - b).abs().max().item() <= tolerance * scale, name


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape_equals_the_torch_path_with_all_gradients(data: st.DataObject) -> None:
    e = data.draw(st.integers(1, 6), "experts")
    used = data.draw(st.integers(1, e), "used")
    k = data.draw(st.integers(1, used), "top_k")
    bounds = (("T", 0, 7), ("H", 1, 35), ("I", 1, 19), ("R", 1, 18))
    t, h, i, r = (data.draw(st.integers(low, high), n) for n, low, high in bounds)
    first, second = data.draw(st.sampled_from([(True, True), (True, True), (True, False), (False, True), (False, False)]), "LoRA")
    inputs = make(data.draw(st.integers(0, 999), "seed"), t, e, k, h, i, r, used)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_experts, "_device_kernels", lambda x: experts)
        patch.setattr(lora_experts, "_native", lambda *_: False)
        mine = run(inputs, torch.float32, first, second)
    close(mine, run(inputs, torch.float64, first, second), 2e-6)


def test_experts_of_several_tiles_of_rows(by_triton: None) -> None:
    inputs = make(1, 18, 5, 2, 17, 9, 5, used=2)  # 18 rows for each of two, in tiles of 16
    close(run(inputs, torch.float32), run(inputs, torch.float64), 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_as_near_to_the_truth_as_the_torch_path(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    inputs = make(2, 5, 3, 2, 18, 9, 3)
    true = run(inputs, torch.float64)
    by_torch = run(inputs, dtype)
    monkeypatch.setattr(lora_experts, "_device_kernels", lambda x: experts)
    mine = run(inputs, dtype)
    for name, a, b, c in zip(NAMES, mine, by_torch, true, strict=True):
        assert a.dtype == b.dtype == dtype, name
        ours, theirs = ((t.double() - c).norm() / c.norm() for t in (a, b))
        assert ours <= 1.2 * theirs + torch.finfo(dtype).eps / 4, name


def test_master_adapters_stay_float32_over_a_bfloat16_base(by_triton: None) -> None:
    tensors, ids = make(3, 3, 3, 2, 12, 10, 3)
    x, routing, gate_up, down = (t.bfloat16() for t in tensors[:4])
    lora = [t.float().requires_grad_() for t in tensors[4:]]
    routing = routing.float()  # as routers give them
    out = lora_experts.swiglu_experts(x, ids, routing, gate_up, down, (*lora[:2], 1.0), (*lora[2:], 1.0))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora)


def test_inference_and_checkpointing_give_the_same(by_triton: None) -> None:
    tensors, ids = make(4, 3, 3, 2, 12, 10, 3)
    x, routing, gate_up, down, *lora = (t.float() for t in tensors)
    leaves = [t.requires_grad_() for t in (x, *lora)]

    def layer(x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        return lora_experts.swiglu_experts(x, ids, routing, gate_up, down, (a1, b1, 0.5), (a2, b2, 2.0))

    out = layer(*leaves)
    with torch.no_grad():
        assert torch.equal(layer(*leaves), out)
    again = checkpoint(layer, *leaves, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(again.sum(), leaves), strict=True):
        assert torch.equal(a, b)


def test_an_expert_that_does_not_exist_makes_its_token_nan_and_no_other(by_triton: None) -> None:
    inputs = make(5, 5, 4, 2, 12, 10, 3)
    before = run(inputs, torch.float32)
    inputs[1][2, 1], inputs[1][4, 0] = 4, -1
    out, dx, *_ = run(inputs, torch.float32)
    for now, then in ((out, before[0]), (dx, before[1])):
        assert now[[2, 4]].isnan().all()
        torch.testing.assert_close(now[[0, 1, 3]], then[[0, 1, 3]])


def test_what_the_kernels_do_not_take_stays_with_torch(monkeypatch: pytest.MonkeyPatch, by_triton: None) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("not to be run")

    monkeypatch.setattr(experts, "swiglu_experts", never)
    inputs = make(6, 3, 2, 1, 8, 6, 2)
    run(inputs, torch.float64)
    wide = make(6, 3, 2, 1, 8, 6, experts.MOST_RANK + 1)
    run(wide, torch.float32)
    x, routing, gate_up, down = (t.float() for t in inputs[0][:4])
    trainable = gate_up.requires_grad_()
    lora_experts.swiglu_experts(x, inputs[1], routing, trainable, down).sum().backward()
    assert trainable.grad is not None


def test_the_gate_passes_what_is_right_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "_CASES", experts._CASES[:1])
    lora_experts._verified.cache_clear()
    device = torch.zeros(0, device=DEVICE).device
    assert lora_experts._verified(device, torch.float32) is experts
    assert lora_experts._verified(device, torch.float64) is None
    monkeypatch.setattr(experts, "verify", None)
    assert lora_experts._verified(device, torch.float32) is experts
    lora_experts._verified.cache_clear()


def test_the_gate_opens_within_a_layer_that_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's first forward may be a checkpointed one; what the gate compares is none of that layer's tensors."""
    monkeypatch.setattr(experts, "_CASES", experts._CASES[:1])
    lora_experts._verified.cache_clear()
    x = torch.arange(3.0, device=DEVICE).requires_grad_()

    def layer(x: Tensor) -> Tensor:
        assert lora_experts._verified(x.device, torch.float32) is experts
        return x * x

    checkpoint(layer, x, use_reentrant=False).sum().backward()
    lora_experts._verified.cache_clear()
    assert torch.equal(x.grad, 2 * x.detach())


@pytest.mark.parametrize("need", [True, False])
def test_what_the_tuner_measures_leaves_nothing_in_the_result(
    monkeypatch: pytest.MonkeyPatch, by_triton: None, need: bool
) -> None:
    """It runs the kernel with every width of tiles on the call's own tensors, and wipes ``reset_to_zero`` in between."""
    tensors, ids = make(8, 6, 3, 2, 8, 40, 2)
    x, routing, gate_up, down, *lora = (t.float() for t in tensors)
    leaves = [t.requires_grad_() for t in (*([routing] if need else []), *lora)]
    launch, kernel = experts._launch, kernels.down_backward_kernel
    wiped = experts._tuned(kernel, 4).reset_to_zero

    def found() -> tuple[Tensor, ...]:
        out = lora_experts.swiglu_experts(x, ids, routing, gate_up, down, (*lora[:2], 0.75), (*lora[2:], 3.0))
        return torch.autograd.grad(out.sum(), leaves)

    def measured(which: object, tiles: int, columns: int, like: Tensor, *arguments: object, **constants: object) -> None:
        launch(which, tiles, columns, like, *arguments, **constants)
        if which is kernel:
            for name in wiped:
                arguments[kernel.arg_names.index(name)].zero_()
            kernel[(tiles * triton.cdiv(columns, 32),)](*arguments, BLOCK_N=32, BLOCK_K=16, **constants)

    want = found()
    monkeypatch.setattr(experts, "_launch", measured)
    for mine, true in zip(found(), want, strict=True):
        torch.testing.assert_close(mine, true, atol=1e-4, rtol=1e-5)
    assert x.abs().max() > 0


@triton.jit
def _unweighted(  # type: ignore[no-untyped-def]
    rows, inverse, offsets, routing, out, E, N, TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """A wrong kernel: ``combine_kernel`` that forgets the routing weights."""
    n = tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_N], tl.float32)
    for j in range(TOP_K):
        row = tl.load(inverse + tl.program_id(0) * TOP_K + j)
        acc += tl.load(rows + row * N + n, mask=n < N, other=0.0)
    tl.store(out + tl.program_id(0) * N + n, acc, mask=n < N)


@pytest.mark.parametrize("fault", ["wrong kernel", "scale left out", "gradient of A off", "does not compile", "no compiler"])
def test_the_gate_refuses_what_differs_loudly_and_torch_goes_on(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    inputs = make(7, 4, 3, 2, 8, 6, 2)
    true = run(inputs, torch.float32)
    project, outer = experts._project, experts._outer
    if fault == "wrong kernel":
        monkeypatch.setattr(kernels, "combine_kernel", _unweighted)
    elif fault == "scale left out":
        monkeypatch.setattr(experts, "_project", lambda left, plan, w, a, b, scale, keep: project(left, plan, w, a, b, 1.0, keep))
    elif fault == "gradient of A off":
        monkeypatch.setattr(experts, "_outer", lambda *a, **k: outer(*a, **k) * (0.99 if "gather" in k else 1.0))
    else:

        def broken(*_: object) -> None:
            raise triton.TritonError("no such instruction") if fault == "does not compile" else RuntimeError("no C compiler")

        monkeypatch.setattr(experts, "_project", broken)
    lora_experts._verified.cache_clear()
    monkeypatch.setattr(lora_experts, "_device_kernels", lambda x: lora_experts._verified(x.device, x.dtype))
    compiled = {"does not compile": "do not run.*no such instruction", "no compiler": "do not run.*no C compiler"}
    said = ({"gradient of A off": "gradient of A1 by 1.0e-02"} | compiled).get(fault, "the output by")
    with pytest.warns(RuntimeWarning, match=said):
        mine = run(inputs, torch.float32)
    lora_experts._verified.cache_clear()
    for a, b in zip(mine, true, strict=True):
        assert torch.equal(a, b)
