"""The C++ ops under AddressSanitizer and UndefinedBehaviorSanitizer, on fuzzed shapes: nothing is read or written outside.

What AMX's tile instructions themselves load and store is not instrumented: there the scalar code around them is checked alone.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from frontier_tune.native import build

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1")

FUZZ = """
import random, torch
from frontier_tune.native import build
library = build.build(extra=%(flags)r)
build.build = lambda: library
from frontier_tune.experts.routing import route, route_dispatch
random.seed(0)
torch.manual_seed(0)
for case in range(250):
    tokens, experts = random.choice([0, 1, 3, 15, 16, 17, 33, 90]), random.randint(1, 140)
    k = random.randint(1, min(experts, random.choice([4, 12, 140])))
    options = dict(scoring=random.choice(["softmax", "sigmoid"]), renormalize=random.random() < 0.5)
    if random.random() < 0.3:
        options["bias"] = torch.randn(experts)
    if experts %% 4 == 0 and experts >= 8 and random.random() < 0.5:
        options |= dict(n_group=4, topk_group=random.randint(1, 4))
        k = min(k, experts // 4 * options["topk_group"])
    if random.random() < 0.2:
        options["forced"] = torch.randint(0, experts, (tokens, k))
    logits = torch.randn(tokens, experts).to(random.choice([torch.float32, torch.bfloat16]))
    logits = torch.where(torch.rand(tokens, experts) < 0.02, random.choice([torch.nan, -torch.inf, torch.inf, 0.0]), logits)
    slots = torch.randint(-1, 3, (tokens,)) if random.random() < 0.5 else None
    out = route_dispatch(logits, k, **options, slots=slots, adapters=3, codes=True)
    assert torch.equal(out.order.sort().values, torch.arange(tokens * k, dtype=torch.int32))
    logits.requires_grad_()
    route(logits, k, **options)[0].sum().backward()
for case in range(60):
    segments, rows = [], 0
    for s in range(random.randint(1, 6)):
        parent = random.choice([-1, s - 1, root, root]) if segments else -1
        root = s if parent < 0 else root
        segments.append([rows, random.choice([1, 7, 31, 33, 150, 300]), parent])
        rows += segments[-1][1]
    width, kv = random.choice([8, 16, 24, 32, 40, 256]), random.randint(1, 2)
    q, dout, dq, out = (torch.randn(rows, kv * (case %% 5 + 1), width) for _ in range(4))
    k, v, dk, dv = (torch.randn(rows, kv, width) for _ in range(4))
    lse, plan = torch.empty(q.shape[:2]), torch.tensor(segments)
    torch.ops.frontier_tune.packed_attention(q, k, v, plan, 0.1, out, lse)
    torch.ops.frontier_tune.packed_attention_backward(dout, q, k, v, out, lse, plan, 0.1, dq, dk, dv)
from frontier_tune.experts.lora_experts import swiglu_experts
for case in range(60):
    tokens, hidden = random.choice([1, 15, 17, 33, 90]), random.choice([16, 48])
    experts, width = random.randint(2, 6), random.randint(1, 40)
    r1, r2 = random.choice([(0, 0), (8, 8), (1, 13), (20, 3)])
    ids = torch.stack([torch.randperm(experts)[:2] for _ in range(tokens)])
    x, a1, b1, a2, b2 = (torch.randn(*s, requires_grad=True) for s in (
        (tokens, hidden), (experts * r1, hidden), (2 * width, experts * r1), (experts * r2, width), (hidden, experts * r2)))
    lora = ((a1, b1, 1.0), (a2, b2, 1.0)) if r1 else ()
    frozen = torch.randn(experts, 2 * width, hidden), torch.randn(experts, hidden, width)
    swiglu_experts(x, ids, torch.rand(tokens, 2), *frozen, *lora).sum().backward()
from frontier_tune.experts import native_experts
ops = torch.ops.frontier_tune
empty = torch.empty_like
for case in range(60):
    rows, width = random.choice([0, 1, 5, 33]), random.choice([1, 3, 7, 8, 15, 16, 17, 31, 33, 70])
    z, x, y, dy = (torch.randn(rows, width) * random.choice([0.0, 1.0, 90.0]) for _ in range(4))
    w, column, target = torch.randn(width), torch.randn(rows), torch.randint(0, width, (rows,))
    ops.rms_norm(x, w, 1e-6, y)
    ops.rms_norm_backward(dy, x, w, 1e-6, y)
    ops.add_rms_norm(x, y, w, 1e-6)
    ops.softmax_rows(z.clone(), target, *(empty(column) for _ in range(3)))
    ops.softmax_rows_backward(z, target, column, column, column, column)
    wide, h = torch.randn(rows, 2 * width), torch.randn(rows, width)
    ops.swiglu(wide, h)
    ops.swiglu_backward(wide, h, column, empty(h), empty(wide), empty(column))
    heads, positions = random.randint(1, 3), torch.randint(0, 9, (rows,))
    q, angle = torch.randn(rows, heads, 2 * width), torch.randn(rows, 2 * width)
    ops.rotary(q, angle, angle, case %% 2 == 0, empty(q))
    beside = torch.randn(rows, 2 * width * (heads + 1))[:, : 2 * width * heads]
    ops.rotary_cached(positions, beside, torch.randn(9, 2 * width), 2 * width)
    logits = torch.randn(rows, width + 3)[:, :width]
    logits[torch.rand(rows, width) < 0.05] = random.choice([torch.nan, -torch.inf, torch.inf, 0.0])
    seeds, heat = torch.randint(-(2**63), 2**63 - 1, (rows,)), torch.tensor([0.0, 0.01, 1.0, 9.0]).repeat(9)[:rows].contiguous()
    tokens, ranks = empty(seeds), empty(seeds)
    ops.sample_tokens(logits, heat, seeds, positions, tokens, empty(heat), ranks)
    assert ((tokens >= 0) & (tokens < width)).all()
    slots, rank, inner = torch.randint(-1, 2, (rows,)), random.randint(1, 9), random.choice([1, 16, 33])
    b = [torch.randn(2, 1, n, rank) for n in (width, 5)]
    ops.lora_linear(torch.randn(rows, width + 8), torch.randn(rows, inner), slots, [torch.randn(2, 1, rank, inner)] * 2, b, 1.0)
    n, hidden, width = random.randint(1, 6), random.choice([32, 64, 96]), random.choice([32, 64])
    rank = random.choice([rank, 16, 17, 33, 40])
    dtype = torch.bfloat16 if case %% 3 == 0 else torch.float32
    adapters = native_experts.Adapters.empty(2, n, hidden, width, rank, dtype)
    sides = ((hidden, width), (hidden, width), (width, hidden))
    adapters.set(1, *((torch.randn(n, rank, i), torch.randn(n, o, rank)) for i, o in sides))
    packed = [native_experts.pack(torch.randn(n, *s).to(dtype)) for s in ((2 * width, hidden), (hidden, width))]
    ids = torch.randint(0, n, (rows, random.randint(1, 3)))
    given = torch.randn(rows, hidden).to(dtype), ids, torch.rand(ids.shape), *packed
    native_experts.forward(*given, *((slots, adapters) if case %% 2 else ()))
torch.set_num_threads(3)
route_dispatch(torch.randn(3000, 70), 6)
try:
    route(torch.full((2, 4), torch.nan), 1, strict=True)
except RuntimeError as error:
    print("refused:", error)
print("clean")
"""


def runtime(name: str) -> str:
    """The sanitizer's library, which has to be loaded before Python; empty where the compiler has none."""
    done = subprocess.run([build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"])
def test_fuzzed_shapes_are_clean(isa: str, run_python) -> None:
    libraries = [runtime("libasan.so"), runtime("libubsan.so"), runtime("libstdc++.so.6")]
    if not all(libraries) or shutil.which("g++") is None:
        pytest.skip("the compiler brings no sanitizers")
    out = run_python(
        FUZZ % {"flags": FLAGS},
        FRONTIER_TUNE_ISA=isa,
        LD_PRELOAD=":".join(libraries),
        # Python frees nothing at its end; torch's own library loads after the sanitizer and defines what it also defines
        ASAN_OPTIONS="detect_leaks=0:detect_odr_violation=0",
    )
    assert out.strip().endswith("clean") and "has no routing" in out
