"""The routing op and the expert layer with LoRA on an NVIDIA GPU, at the sizes of an MoE block of Qwen3-30B-A3B.

Routing: ours is ``route_dispatch`` as a user calls it, with counts, offsets, order and inverse; eager torch is softmax, topk,
renormalization, stable argsort and counts (by scatter_add, since bincount waits for the device); torch.compile is the same
compiled; vLLM's is topk_softmax and moe_align_block_size, where vLLM's CUDA operators can be imported.

Experts (bfloat16, rank 16): forward at decode and prefill sizes, and forward with the gradients of the input and of every A and B
at prefill sizes. The tax is ours with LoRA over the fastest frozen block, ours or transformers' grouped_mm; PEFT's own stands
beside it. Weights are larger than the second-level cache, as in a model of many layers.

Everything is measured twice: launched as it is called, and replayed as a CUDA graph where it can be captured. Sides take turns,
and turn about; each sample is many calls between two CUDA events; medians are compared. Without an NVIDIA GPU nothing is
measured and the result says so; --quick under Triton's interpreter (TRITON_INTERPRET=1) then tells whether all of it runs.

    python benchmarks/gpu_experts.py --json benchmarks/results/gpu_experts.json
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402
from benchmarks.expert_lora_block import Block, build, with_peft  # noqa: E402

NAME, RANK = "gpu_experts", 16
DECODE, PREFILL = (1, 8, 64, 256), (4096, 16384)
BLOCK = Block(hidden=2048, width=768, experts=128, top_k=8, tokens=0)
QUICK = Block(hidden=32, width=16, experts=4, top_k=2, tokens=0)
ROUTING_BAR, TAX_BAR = 3.0, 1 / 1.10

Call = Callable[[], Any]


def why_not(quick: bool) -> str:
    """Why nothing can be run here; empty where it can."""
    import torch

    if torch.cuda.is_available() and torch.version.hip is None:
        return ""
    reason = "no NVIDIA GPU"
    if quick and importlib.util.find_spec("triton") is None:
        return f"{reason}, and no Triton whose interpreter could stand in"
    if quick and os.environ.get("TRITON_INTERPRET") != "1":
        return f"{reason}, and TRITON_INTERPRET=1 is not set"
    return "" if quick else reason


def seconds(call: Call, calls: int, gpu: bool) -> float:
    """Seconds a call, by the device's own clock where there is one."""
    import torch

    if not gpu:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls / 1e3


def take_turns(sides: Mapping[str, Call], samples: int, gpu: bool) -> dict[str, list[float]]:
    """Microseconds a call of each side; every other round goes through the sides backwards."""
    calls = {}
    for name, side in sides.items():
        seconds(side, 3 if gpu else 1, gpu)  # compiles, chooses tiles
        calls[name] = max(1, min(500, int(5e-3 / seconds(side, 3, gpu)))) if gpu else 1
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(samples):
        for name in list(sides) if n % 2 == 0 else list(sides)[::-1]:
            taken[name].append(seconds(sides[name], calls[name], gpu) * 1e6)
    return taken


def captured(call: Call) -> Call:
    """``call`` as a CUDA graph, to be replayed. Raises RuntimeError where it can't be one: it waits for the device, say."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(graph: Any = graph, kept: Any = kept) -> None:  # what the graph writes to must live
        graph.replay()

    return replay


def measured(
    case: str, sides: Mapping[str, Call], samples: int, gpu: bool, refused: dict[str, str]
) -> list[tuple[str, dict[str, list[float]]]]:
    """(case and way, times of the sides): launched, and as CUDA graphs of those that can be captured, if ours can."""
    ways = [(f"{case}, launched", take_turns(sides, samples, gpu))]
    if not gpu:
        return ways
    graphs = {}
    for name, side in sides.items():
        try:
            graphs[name] = captured(side)
        except RuntimeError as e:
            refused[f"{case}: {name}"] = str(e).splitlines()[0]
    if next(iter(sides)) in graphs and len(graphs) > 1:
        ways.append((f"{case}, CUDA graph", take_turns(graphs, samples, gpu)))
    return ways


def eager(logits: Any, k: int) -> tuple[Any, ...]:
    import torch

    weights, ids = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    flat = ids.flatten()
    counts = torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device).scatter_add_(0, flat, torch.ones_like(flat))
    return weights, ids, torch.argsort(flat, stable=True), counts


def of_vllm(logits: Any, k: int) -> Call | None:
    """vLLM's routing of ``logits`` by its CUDA operators, if they are there."""
    import torch

    try:
        from vllm import _custom_ops
        from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
    except ImportError:
        return None
    if not (logits.is_cuda and hasattr(torch.ops, "_moe_C") and hasattr(torch.ops._moe_C, "topk_softmax")):
        return None
    weights = torch.empty(logits.shape[0], k, device=logits.device)
    ids, source = (torch.empty_like(weights, dtype=torch.int32) for _ in range(2))

    def run() -> Any:
        _custom_ops.topk_softmax(weights, ids, source, logits, True)
        return moe_align_block_size(ids, 16, logits.shape[1])

    return run


def routing_rows(block: Block, samples: int, quick: bool, gpu: bool, refused: dict[str, str]) -> list[harness.Row]:
    import torch

    from frontier_tune.experts.routing import op, triton_kernel

    k = block.top_k
    logits = torch.randn(block.tokens, block.experts, generator=torch.Generator().manual_seed(0)).to("cuda" if gpu else "cpu")
    sides: dict[str, Call] = {
        "ours": (lambda: op.route_dispatch(logits, k)) if gpu else (lambda: triton_kernel.route_dispatch(logits, None, None, k)),
        "eager torch": lambda: eager(logits, k),
    }
    if gpu:
        compiled = torch.compile(eager, dynamic=False)
        sides["torch.compile"] = lambda: compiled(logits, k)
        if (theirs := of_vllm(logits, k)) is not None:
            sides["vLLM topk_softmax + moe_align_block_size"] = theirs
    rows = []
    case = f"routing, T {block.tokens} E {block.experts} K {k}"
    for way, taken in measured(case, sides, samples, gpu, refused):
        for name in list(taken)[1:]:
            gate = name == "eager torch" and block.tokens in DECODE and way.endswith("launched") and not quick
            rows.append(harness.compare(way, taken["ours"], taken[name], name, "us", ROUTING_BAR if gate else None))
    return rows


class Experts:
    """One MoE block's experts four ways, on the device, frozen but for LoRA of rank 16."""

    def __init__(self, block: Block, gpu: bool) -> None:
        import torch

        from frontier_tune.experts import lora_experts

        if not gpu:  # bfloat16 is not of the CPU's own training kernels, and the interpreter stands in for the device
            from frontier_tune.experts.grouped import experts as grouped

            lora_experts._device_kernels = lambda x: grouped
        self.block, self.device = block, "cuda" if gpu else "cpu"

        def make(implementation: str) -> Any:
            with torch.device(self.device):
                return build(block, implementation).to(torch.bfloat16)

        frozen = make("grouped_mm")
        adapted, stock = with_peft(make("grouped_mm"), RANK).to(self.device), with_peft(make("grouped_mm"), RANK).to(self.device)
        lora_experts.install(adapted)
        self.sides = {
            "ours with LoRA": (adapted.base_model.model.experts, [p for p in adapted.parameters() if p.requires_grad]),
            "ours frozen": (lambda *a: lora_experts.swiglu_experts(*a, frozen.gate_up_proj, frozen.down_proj), []),
            "transformers grouped_mm frozen": (frozen, []),
            "PEFT with LoRA (grouped_mm)": (stock.base_model.model.experts, [p for p in stock.parameters() if p.requires_grad]),
        }

    def calls(self, tokens: int, backward: bool) -> dict[str, Call]:
        import torch

        g = torch.Generator().manual_seed(1)
        x, dy = (torch.randn(tokens, self.block.hidden, generator=g).to(self.device, torch.bfloat16) for _ in range(2))
        ids = torch.rand(tokens, self.block.experts, generator=g).topk(self.block.top_k).indices.to(self.device)
        weights = torch.rand(tokens, self.block.top_k, generator=g).to(self.device, torch.bfloat16)

        def forward(layer: Any) -> Call:
            def run() -> Any:
                with torch.no_grad():
                    return layer(x, ids, weights)

            return run

        def step(layer: Any, parameters: list[Any]) -> Call:
            def run() -> Any:
                inputs = x.detach().requires_grad_()
                return torch.autograd.grad(layer(inputs, ids, weights), [inputs, *parameters], dy)

            return run

        return {name: step(*side) if backward else forward(side[0]) for name, side in self.sides.items()}


def expert_rows(
    experts: Experts, tokens: int, backward: bool, samples: int, quick: bool, gpu: bool, refused: dict[str, str]
) -> list[harness.Row]:
    """Ours with LoRA against the fastest frozen block, which is the gate, and against the others."""
    b = experts.block
    what = "forward + backward" if backward else "forward"
    case = f"experts, {what}, T {tokens} H {b.hidden} I {b.width} E {b.experts} K {b.top_k}, rank {RANK}"
    rows = []
    for way, taken in measured(case, experts.calls(tokens, backward), samples, gpu, refused):
        ours = taken.pop("ours with LoRA")
        fastest = min((n for n in taken if n.endswith("frozen")), key=lambda n: statistics.median(taken[n]))
        rows.append(harness.compare(way, ours, taken[fastest], fastest, "us", None if quick else TAX_BAR))
        rows += [harness.compare(way, ours, taken[name], name, "us") for name in taken if name != fastest]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--samples", type=int, default=31)
    args = options.parse_args(arguments)
    machine = harness.machine()
    settings: dict[str, Any] = {
        "dtype": "bfloat16; logits float32",
        "rank": RANK,
        "gates": "routing, launched, at decode sizes: at least 3 times as fast as eager torch; experts with LoRA: at most 1.10 "
        "times the time of the fastest frozen block",
    }
    if reason := why_not(args.quick):
        harness.not_run(NAME, reason, machine, settings, args.json)
        return
    import torch

    gpu = torch.cuda.is_available()
    samples = 1 if args.quick else args.samples
    decode, prefill = ((1,), (3,)) if args.quick else (DECODE, PREFILL)
    shape = QUICK if args.quick else BLOCK
    settings |= {"device": torch.cuda.get_device_name() if gpu else "Triton's interpreter: the figures mean nothing"}
    refused: dict[str, str] = {}
    rows: list[harness.Row] = []
    for tokens in (*decode, *prefill):
        rows += routing_rows(replace(shape, tokens=tokens), samples, args.quick, gpu, refused)
    experts = Experts(shape, gpu)
    for tokens in (*decode, *prefill):
        rows += expert_rows(experts, tokens, False, samples, args.quick, gpu, refused)
    for tokens in prefill:
        rows += expert_rows(experts, tokens, True, samples, args.quick, gpu, refused)
    if not harness.report(NAME, rows, machine, settings | {"not captured": refused}, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
