"""The routing op on CPU against eager torch, torch.compile and vLLM's CPU router, forward and backward, beside its two bounds.

Ours is ``route_dispatch`` as a user calls it: choice, weights, counts, offsets, order and inverse. Eager torch is softmax, topk,
renormalization, stable argsort and bincount; torch.compile is the same function compiled. vLLM's router chooses and weighs, but
does not sort. All sides get the same logits on one thread and take turns within every case; medians are compared.

Two bounds stand beside the larger cases; the larger of them is what a perfect implementation could reach with this method. The
memory bound: the bytes that must be read, at the speed at which torch sums as many here, and those that must be written, at the
speed at which it clears as many. The instruction bound: the instructions of the method, counted below from csrc/select.h and
csrc/route.h, at the measured rates of this core for vector and for scalar arithmetic. A backward pass also has torch's engine to
pay, whose time for a view is added to its bound.

    python benchmarks/routing_op.py --json benchmarks/results/routing_op.json
"""

from __future__ import annotations

import ctypes
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

TOKENS, EXPERTS, CHOSEN = (1, 8, 64, 512, 4096), (16, 64, 128, 512), (2, 4, 8)
LANES = {"avx512": 8, "avx2": 4, "portable": 2}  # doubles in a vector


def bar(tokens: int, experts: int) -> float | None:
    """The forward pass: at least this many times as fast as eager torch. (The backward pass: no slower.)"""
    if tokens == 4096:
        return 20.0 if experts >= 64 else None
    return {1: 2.0, 8: 2.0, 64: 4.0}.get(tokens)


def take_turns(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Microseconds a call, as medians want them: each sample of a side is followed by one of the next side."""
    calls = {}
    for name, side in sides.items():
        for _ in range(3):
            side()
        start = time.perf_counter()
        side()
        calls[name] = max(1, int(2e-4 / (time.perf_counter() - start)))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(taken.values()))) < 7:
        for name, side in sides.items():
            n = calls[name]
            start = time.perf_counter()
            for _ in range(n):
                side()
            taken[name].append((time.perf_counter() - start) / n * 1e6)
    return taken


def eager(logits: Any, k: int) -> tuple[Any, ...]:
    import torch

    weights, ids = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    flat = ids.flatten()
    return weights, ids, torch.argsort(flat, stable=True), torch.bincount(flat, minlength=logits.shape[1])


def _log2(n: int) -> int:
    return n.bit_length() - 1


def _sorting(n: int) -> int:
    """Comparators of Batcher's odd-even merge sort."""
    return (_log2(n) ** 2 - _log2(n) + 4) * n // 4 - 1


def instructions(experts: int, k: int, lanes: int) -> tuple[float, float]:
    """Vector and scalar instructions a token. A load or store that is not part of an arithmetic instruction counts as one."""
    n = next(n for n in (2, 4, 8, 16, 32) if n >= k)
    sort, merge = 2 * _sorting(n), n + _log2(n) * n  # a merge: the larger of two lists, and a bitonic merge
    if lanes == 8 and n <= 8 and experts <= 1024:  # select.h: 16 rows at a time
        columns, key, out = 96, 8, 6 * k
        slots, choice = float(experts), float(columns + experts)
        if experts > 16:
            slots = experts * (1 - (1 - k / 16) ** (16 / experts))  # candidates of a row of independent logits
            barrier = 16 // n * sort + (16 // n - 1) * n + (16 // n - 2) * _log2(n) * n + n - 1
            choice = columns + barrier + 16 * (5 * -(-experts // 16) + 5) + slots * (13 + 16)  # a gather is 16 loads
        chunks = max(1.0, slots / n)
        choice += slots * key + 2 * (chunks * sort + (chunks - 1) * merge) + out
    else:  # topk.h: a row at a time, as lists of the lanes, which are merged in pairs
        vectors = -(-experts // lanes)
        chunks = -(-vectors // n)
        row = 3 * vectors + chunks * sort * min(1.0, vectors / n) + (chunks - 1) * merge + (lanes - 1) / lanes * (2 * n + merge)
        choice = 2 * lanes * (row + 6 * k / lanes)
    weights = 24 * k + 20 + 2 * (k * _log2(n) + k)  # exp, and from lanes to rows
    place = 20 * k  # of 16 routes: gather, add, load, two stores
    return (choice + weights + place) / (2 * lanes), 7 * k  # a route: five to count it, two to put it where it belongs


def backward_instructions(experts: int, k: int, lanes: int) -> tuple[float, float]:
    return experts / (2 * lanes), 8 * k + 4


def instruction_rates(lanes: int) -> tuple[float, float]:
    """Vector instructions of double arithmetic, and scalar ones of integers, that this core ends in a second, measured."""
    from frontier_tune.native import build

    code = f"""
    typedef double v __attribute__((vector_size({8 * lanes})));
    extern "C" double vector(long n, double s) {{
      v a[12];
      for (int i = 0; i < 12; i++) a[i] = v{{}} + i;
      const v x = v{{}} + s;
      for (long j = 0; j < n; j++)
        for (int i = 0; i < 12; i++) a[i] = a[i] * x + x;
      double out = 0;
      for (int i = 0; i < 12; i++) out += a[i][0];
      return out;
    }}
    extern "C" __attribute__((optimize("no-tree-vectorize,no-tree-slp-vectorize"))) double scalar(long n, double s) {{
      unsigned long a[12], x = (unsigned long)(s * 1e9), out = 0;
      for (int i = 0; i < 12; i++) a[i] = i;
      for (long j = 0; j < n; j++)
    #pragma GCC unroll 12
        for (int i = 0; i < 12; i++) a[i] = i % 2 ? a[i] + x : a[i] ^ x;
      for (int i = 0; i < 12; i++) out += a[i];
      return out;
    }}"""
    with tempfile.TemporaryDirectory() as scratch:
        source, path = Path(scratch) / "rate.cpp", Path(scratch) / "rate.so"
        source.write_text(code)
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512"] if lanes == 8 else ["-O3", "-march=native"]
        subprocess.run([build.compiler(), *flags, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
        for go in (library.vector, library.scalar):
            go.argtypes, go.restype = (ctypes.c_long, ctypes.c_double), ctypes.c_double
        vector = min(_seconds(lambda: library.vector(2_000_000, 0.5)) for _ in range(5))
        scalar = min(_seconds(lambda: library.scalar(2_000_000, 0.5)) for _ in range(5))
    return 24_000_000 / vector, 24_000_000 / scalar


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bound_row(
    case: str, taken: dict[str, list[float]], counted: tuple[float, float], tokens: int, rates: tuple[float, float]
) -> harness.Row:
    memory = statistics.median(taken["read"]) + statistics.median(taken["write"])
    needed = sum(tokens * n / rate * 1e6 for n, rate in zip(counted, rates))
    name, larger = f"bound (memory {memory:.1f}, instructions {needed:.1f}", max(memory, needed)
    if "engine" in taken:
        engine = statistics.median(taken["engine"])
        name, larger = f"{name}; engine {engine:.1f}", larger + engine
    return harness.compare(case, taken["ours"], [larger], name + ")", "us", 0.5 if tokens == 4096 else None)


def memory_sides(read: int, write: int) -> dict[str, Callable[[], Any]]:
    """Reading and writing so many bytes."""
    import torch

    source, target = torch.zeros(read // 4), torch.empty(write // 4)
    return {"read": lambda: source.sum(), "write": lambda: target.zero_()}


def forward_rows(
    tokens: int, experts: int, k: int, dtype: Any, compiled: Any, rates: tuple[float, float], lanes: int, seconds: float
) -> list[harness.Row]:
    import torch

    from frontier_tune.experts.routing import route_dispatch

    logits = torch.randn(tokens, experts, dtype=dtype)
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: route_dispatch(logits, k), "eager": lambda: eager(logits, k)}
    if compiled is not None:
        sides["torch.compile"] = lambda: compiled(logits, k)
    try:
        from vllm.model_executor.layers.fused_moe.router.cpu_router import _softmax_topk
    except ImportError:
        pass
    else:
        sides["vLLM router"] = lambda: _softmax_topk(logits, k, True)
    taken = take_turns(sides | memory_sides(logits.nbytes, 16 * tokens * k + 8 * experts + 4), seconds)
    case = f"T {tokens} E {experts} K {k} {str(dtype).removeprefix('torch.')}"
    rows = [harness.compare(case, taken["ours"], taken["eager"], "eager", "us", bar(tokens, experts))]
    rows += [harness.compare(case, taken["ours"], taken[n], n, "us") for n in ("torch.compile", "vLLM router") if n in taken]
    if tokens >= 512:
        rows.append(bound_row(case, taken, instructions(experts, k, lanes), tokens, rates))
    return rows


def backward_rows(tokens: int, experts: int, k: int, rates: tuple[float, float], lanes: int, seconds: float) -> list[harness.Row]:
    import torch

    from frontier_tune.experts.routing import route

    logits, grad = torch.randn(tokens, experts, requires_grad=True), torch.randn(tokens, k)
    ours, theirs, view, flat = route(logits, k)[0], eager(logits, k)[0], logits.view(-1), torch.randn(tokens * experts)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: torch.autograd.grad(ours, logits, grad, retain_graph=True),
        "eager": lambda: torch.autograd.grad(theirs, logits, grad, retain_graph=True),
        "engine": lambda: torch.autograd.grad(view, logits, flat, retain_graph=True),
    }
    taken = take_turns(sides | memory_sides(12 * tokens * k, logits.nbytes), seconds)
    case = f"T {tokens} E {experts} K {k} backward"
    rows = [harness.compare(case, taken["ours"], taken["eager"], "eager", "us", 1.0)]
    rows.append(harness.compare(case, taken["ours"], taken["engine"], "torch's engine alone", "us"))
    if tokens >= 512:
        rows.append(bound_row(case, taken, backward_instructions(experts, k, lanes), tokens, rates))
    return rows


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    args = options.parse_args()
    import torch

    from frontier_tune.learning import memory
    from frontier_tune.native import build

    memory.keep_freed()  # as in the learner: without it, every side's large results are given back and faulted in again
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lanes = LANES[build.load().removesuffix("_bf16")]
    rates = instruction_rates(lanes)
    compiled = torch.compile(eager, dynamic=True)
    sizes = [(1, 16, 2), (64, 16, 2)] if args.quick else list(itertools.product(TOKENS, EXPERTS, CHOSEN))
    seconds = 0.02 if args.quick else 0.5
    machine = harness.machine()
    settings = {
        "threads": 1,
        "memory": "freed memory stays with the process, as in the learner",
        "instruction_set": build.load(),
        "vector_instructions_per_second": round(rates[0]),
        "scalar_instructions_per_second": round(rates[1]),
        "vllm": "its CPU router for softmax: topk and softmax over the chosen, without sorting",
        "torch_compile": "dynamic shapes, float32",
        "backward": "dL/dlogits from dL/dweights",
    }
    print(json.dumps({"settings": settings, "machine": machine}, indent=1))
    rows: list[harness.Row] = []
    for tokens, experts, k in sizes:
        rows += forward_rows(tokens, experts, k, torch.float32, compiled, rates, lanes, seconds)
        rows += backward_rows(tokens, experts, k, rates, lanes, seconds / 2)
        if experts == 128 and k == 8:
            rows += forward_rows(tokens, experts, k, torch.bfloat16, None, rates, lanes, seconds)
    if not harness.report("routing_op", rows, machine, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
