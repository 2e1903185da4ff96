"""What adapters over the experts cost in vLLM on CPU: one layer alone, and engines end to end.

Layer: the expert layer with one adapter for all rows, and with several mixed with base rows, against the fastest layer without
adapters there is (vLLM's own kernel, or ours). Weights of several layers take turns, as in a model, so that caches help nobody.
``rho = r [(s + 1) / (3 I) + 1 / H]`` is the arithmetic share of the low-rank path (s = 2: gate and up have an A each).
Engine: tokens a second with one adapter, with several adapters mixed with base rows, and with base rows alone in the engine with
LoRA, against the fastest engine without LoRA: stock vLLM compiled, or ours. Memory: what the adapters add to the process.

    python benchmarks/adapter_tax.py --json benchmarks/results/adapter_tax.json                  # all pieces, one after another
    python benchmarks/adapter_tax.py --piece "engine, float32" --json ...                        # one: the file's other rows stay
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

RANK = 8


@dataclass(frozen=True)
class Shape:
    hidden: int
    width: int
    experts: int
    top_k: int
    layers: int = 4

    @property
    def name(self) -> str:
        return f"H {self.hidden} I {self.width} E {self.experts} K {self.top_k}"

    @property
    def rho(self) -> float:
        return RANK * (3 / (3 * self.width) + 1 / self.hidden)


SHAPES = [Shape(256, 128, 16, 2), Shape(512, 384, 32, 4)]
TOKENS = (1, 8, 64, 128)
ENGINE = Shape(512, 1024, 32, 4)  # the bars are for a model whose experts are half of a step or more
QUICK_SHAPES, QUICK_TOKENS, QUICK_ENGINE = [Shape(64, 32, 4, 2, 2)], (1, 8), Shape(64, 32, 4, 2, 2)
DTYPES = ("float32", "bfloat16")
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
PIECES = [f"{what}, {dtype}" for dtype in DTYPES for what in ("layer", "engine")]


def layers(shape: Shape, slots: int, dtype: Any, isa: str) -> list[dict[str, Any]]:
    import torch
    from vllm._custom_ops import cpu_prepack_moe_weight

    from frontier_tune.experts import native_experts

    torch.manual_seed(0)
    made = []
    for _ in range(shape.layers):
        w13 = (torch.randn(shape.experts, 2 * shape.width, shape.hidden) * 0.05).to(dtype)
        w2 = (torch.randn(shape.experts, shape.hidden, shape.width) * 0.05).to(dtype)
        adapters = native_experts.Adapters.empty(slots, shape.experts, shape.hidden, shape.width, RANK, dtype)
        for s in range(slots):
            sizes = ((shape.hidden, shape.width), (shape.hidden, shape.width), (shape.width, shape.hidden))
            pairs = [(torch.randn(shape.experts, RANK, i) * 0.05, torch.randn(shape.experts, o, RANK) * 0.05) for i, o in sizes]
            adapters.set(s, *pairs)
        made.append(
            {
                "ours": (native_experts.pack(w13), native_experts.pack(w2)),
                "stock": (cpu_prepack_moe_weight(w13, isa), cpu_prepack_moe_weight(w2, isa)),
                "adapters": adapters,
            }
        )
    return made


def take_turns(
    cases: Mapping[str, Callable[[], object]], samples: int, warm_s: float, timed_s: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Microseconds of one call of each; a sample is the calls of ``timed_s`` behind those of ``warm_s``.

    In a model a step finds in caches what the step before left there. Here a case finds what another left, and the stock kernel
    has weights of its own: whatever follows it, or itself after ours, takes ten to twenty calls to reach its speed.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    one_s = {}
    for name, run in cases.items():
        run()
        start = time.perf_counter()
        run()
        one_s[name] = time.perf_counter() - start
    for _ in range(samples):
        for name, run in cases.items():
            for _ in range(round(warm_s / one_s[name])):
                run()
            passes = max(1, round(timed_s / one_s[name]))
            start = clock()
            for _ in range(passes):
                run()
            taken[name].append((clock() - start) / passes * 1e6)
    return taken


def layer_rows(
    shape: Shape, dtype_name: str, slots: int, samples: int, tokens: Sequence[int], quick: bool, clock: Callable[[], float]
) -> list[harness.Row]:
    import torch
    from vllm._custom_ops import cpu_fused_moe

    from frontier_tune.experts import native_experts

    dtype = getattr(torch, dtype_name)
    isa = "amx" if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"  # as vLLM chooses
    if isa == "amx":
        torch.cpu._init_amx()  # the kernel gives its registers to processes that ask for them
    made, rows = layers(shape, slots, dtype, isa), []
    for count in tokens:
        x, out = torch.randn(count, shape.hidden).to(dtype), torch.empty(count, shape.hidden, dtype=dtype)
        ids = torch.stack([torch.randperm(shape.experts)[: shape.top_k] for _ in range(count)]).to(torch.int32)
        weights = torch.rand(count, shape.top_k)
        one, mixed = torch.zeros(count, dtype=torch.long), torch.arange(count) % (slots + 1) - 1

        def ours(slot: Any, x: Any = x, ids: Any = ids, weights: Any = weights, out: Any = out) -> Callable[[], None]:
            def run() -> None:
                for layer in made:
                    w13, w2 = layer["ours"]
                    native_experts.forward(x, ids, weights, w13, w2, slot, layer["adapters"], out=out)

            return run

        def stock(x: Any = x, ids: Any = ids, weights: Any = weights, out: Any = out) -> None:
            for layer in made:
                cpu_fused_moe(out, x, *layer["stock"], None, None, weights, ids, "silu", isa, False)

        cases = {"one": ours(one), "mixed": ours(mixed), "none": ours(None), "stock": stock}
        times = take_turns(cases, samples, *((0.0, 0.0) if quick else (0.1, 0.03)), clock)
        taken = {name: [t / len(made) for t in own] for name, own in times.items()}
        base = min(("none", "stock"), key=lambda name: statistics.median(taken[name]))
        label = {"none": "ours without adapters", "stock": f"vLLM without LoRA ({isa})"}[base]
        bar = None if quick else 1 / (1 + 1.5 * shape.rho + 0.03)
        title = f"layer, {dtype_name}, {shape.name}, T {count}"
        rows += [
            harness.compare(f"{title}, one adapter", taken["one"], taken[base], label, "us", bar),
            harness.compare(f"{title}, {slots} adapters and base rows", taken["mixed"], taken[base], label, "us"),
            harness.compare(f"{title}, base rows", taken["none"], taken["stock"], f"vLLM without LoRA ({isa})", "us"),
        ]
    return rows


def write(
    path: Path | None, pieces: dict[str, list[harness.Row]], machine: dict[str, Any], settings: dict[str, Any], clock: str
) -> bool:
    """Report ``pieces``; rows of other pieces that ``path`` has already are kept, with where and when they were measured."""
    old = json.loads(path.read_text()) if path is not None and path.is_file() else {"rows": [], "settings": {}}
    where = old["settings"].get("pieces", {})
    rows: list[harness.Row] = []
    for name in PIECES:
        if name in pieces:
            date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            where[name] = {"commit": harness.commit(), "date": date, "load_average_1min": machine["load_average_1min"]}
            where[name]["clock"] = clock if name.startswith("layer") else "wall"
            rows += pieces[name]
        elif name in where:
            rows += [harness.Row(**row) for row in old["rows"] if row["case"].startswith(name)]
    return harness.report("adapter_tax", rows, machine, settings | {"pieces": where}, path)


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--samples", type=int, default=11, help="of a layer; engines have --rounds")
    options.add_argument("--rounds", type=int, default=9, help="of the engines; a slow machine makes fewer")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="of a layer; cpu is one thread's own time, for a machine that is not quiet",
    )  # fmt: skip
    options.add_argument("--slots", type=int, default=8, help="adapters in the mixed case")
    options.add_argument("--piece", choices=PIECES, action="append", help="measure this alone; may be given several times")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    from benchmarks import adapter_tax_engine

    if args.worker:
        adapter_tax_engine.work(args.worker)
        return
    from frontier_tune.sampling import environment

    if args.clock == "cpu":
        args.threads = 1
    environment.apply(args.threads)
    machine = harness.machine()
    shapes, tokens, engine = (QUICK_SHAPES, QUICK_TOKENS, QUICK_ENGINE) if args.quick else (SHAPES, TOKENS, ENGINE)
    samples, slots = (1, min(args.slots, 2)) if args.quick else (args.samples, args.slots)
    pieces: dict[str, list[harness.Row]] = {}
    for name in args.piece or PIECES:
        what, dtype = name.split(", ")
        if what == "layer":
            pieces[name] = [
                row for s in shapes for row in layer_rows(s, dtype, slots, samples, tokens, args.quick, CLOCKS[args.clock])
            ]
        else:
            load = adapter_tax_engine.Load(dtype, args.threads, slots, *((4, 4) if args.quick else (64, 48)), not args.quick)
            pieces[name] = adapter_tax_engine.rows(engine, load, min(args.rounds, samples), args.quick)
    settings = {
        "rank": RANK, "threads": args.threads, "slots": slots, "shapes": [asdict(s) for s in shapes],
        "rho": {s.name: round(s.rho, 4) for s in shapes},
    }  # fmt: skip
    if not write(args.json, pieces, machine, settings, args.clock):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
