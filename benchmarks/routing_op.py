"""The routing op on CPU against eager torch, torch.compile and vLLM's CPU router, forward and backward, beside its two bounds.

Ours is ``route_dispatch`` as a user calls it: choice, weights, counts, offsets, order and inverse. Eager torch is softmax, topk,
renormalization, stable argsort and bincount; torch.compile is the same function compiled. vLLM's router chooses and weighs, but
does not sort. All sides get the same logits on one thread and take turns within every case; medians are compared.

Two bounds stand beside the larger cases, and the larger bound is what a perfect implementation could reach with this method: the
bytes that must be read and written, at the speed of a copy of as many bytes here; and the vector instructions of the sorting
networks, at the measured rate of this core.

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


def instructions(experts: int, k: int, lanes: int) -> float:
    """Vector instructions a token: keys made, sorted by the lanes, and the lanes' lists merged; see csrc/topk.h."""
    n = next(n for n in (2, 4, 8, 16, 32) if n >= k)
    levels = n.bit_length() - 1
    sort = (levels * levels - levels + 4) * n // 4 - 1  # comparators of Batcher's odd-even merge sort
    merge = n + 2 * levels * n // 2  # the larger of two lists, and a bitonic merge
    vectors = -(-experts // lanes)
    chunks = -(-vectors // n)
    first = 2 * sort * min(1.0, vectors / n)
    return 3 * vectors + chunks * first + (chunks - 1) * merge + (lanes - 1) / lanes * (2 * n + merge)


def instruction_rate(lanes: int) -> float:
    """Vector instructions of double arithmetic that this core ends in a second, measured."""
    from frontier_tune.native import build

    code = f"""
    typedef double v __attribute__((vector_size({8 * lanes})));
    extern "C" double go(long n, double s) {{
      v a[12];
      for (int i = 0; i < 12; i++) a[i] = v{{}} + i;
      const v x = v{{}} + s;
      for (long j = 0; j < n; j++)
        for (int i = 0; i < 12; i++) a[i] = a[i] * x + x;
      double out = 0;
      for (int i = 0; i < 12; i++) out += a[i][0];
      return out;
    }}"""
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "rate.cpp", Path(scratch) / "rate.so"
        source.write_text(code)
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512"] if lanes == 8 else ["-O3", "-march=native"]
        subprocess.run([build.compiler(), *flags, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        go = ctypes.CDLL(str(library)).go
        go.argtypes, go.restype = (ctypes.c_long, ctypes.c_double), ctypes.c_double
        best = min(_seconds(lambda: go(2_000_000, 0.5)) for _ in range(5))
    return 24_000_000 / best


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def forward_rows(
    tokens: int, experts: int, k: int, dtype: Any, compiled: Any, rate: float, lanes: int, seconds: float
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
    groups, routes = experts, tokens * k
    moved = logits.nbytes + 16 * routes + 8 * groups + 4
    source = torch.zeros(max(1, moved // 8))
    target = torch.empty_like(source)
    sides["copy"] = lambda: target.copy_(source)
    taken = take_turns(sides, seconds)
    case = f"T {tokens} E {experts} K {k} {str(dtype).removeprefix('torch.')}"
    rows = [harness.compare(case, taken["ours"], taken["eager"], "eager", "us", bar(tokens, experts))]
    rows += [harness.compare(case, taken["ours"], taken[n], n, "us") for n in ("torch.compile", "vLLM router") if n in taken]
    if tokens >= 512:
        memory, vector = statistics.median(taken["copy"]), tokens * instructions(experts, k, lanes) / rate * 1e6
        larger = max(memory, vector)
        name = f"bound (memory {memory:.1f}, instructions {vector:.1f})"
        rows.append(harness.compare(case, taken["ours"], [larger], name, "us", 0.5 if tokens == 4096 else None))
    return rows


def backward_row(tokens: int, experts: int, k: int, seconds: float) -> harness.Row:
    import torch

    from frontier_tune.experts.routing import route

    logits, grad = torch.randn(tokens, experts, requires_grad=True), torch.randn(tokens, k)
    ours, theirs = route(logits, k)[0], eager(logits, k)[0]
    taken = take_turns(
        {
            name: lambda w=w: torch.autograd.grad(w, logits, grad, retain_graph=True)
            for name, w in (("ours", ours), ("eager", theirs))
        },  # type: ignore[misc]
        seconds,
    )
    return harness.compare(f"T {tokens} E {experts} K {k} backward", taken["ours"], taken["eager"], "eager", "us", 1.0)


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    args = options.parse_args()
    import torch

    from frontier_tune.learning import memory
    from frontier_tune.native import build

    memory.keep_freed()  # as in the learner: without it, every side's large results are given back and faulted in again
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lanes = LANES[build.load()]
    rate = instruction_rate(lanes)
    compiled = torch.compile(eager, dynamic=True)
    sizes = [(1, 16, 2), (64, 16, 2)] if args.quick else list(itertools.product(TOKENS, EXPERTS, CHOSEN))
    seconds = 0.02 if args.quick else 0.5
    machine = harness.machine()
    settings = {
        "threads": 1,
        "memory": "freed memory stays with the process, as in the learner",
        "instruction_set": build.load(),
        "vector_instructions_per_second": round(rate),
        "vllm": "its CPU router for softmax: topk and softmax over the chosen, without sorting",
        "torch_compile": "dynamic shapes, float32",
        "backward": "dL/dlogits from dL/dweights",
    }
    print(json.dumps({"settings": settings, "machine": machine}, indent=1))
    rows: list[harness.Row] = []
    for tokens, experts, k in sizes:
        rows += forward_rows(tokens, experts, k, torch.float32, compiled, rate, lanes, seconds)
        rows.append(backward_row(tokens, experts, k, seconds / 2))
        if experts == 128 and k == 8:
            rows += forward_rows(tokens, experts, k, torch.bfloat16, None, rate, lanes, seconds)
    if not harness.report("routing_op", rows, machine, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
