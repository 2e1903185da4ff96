"""What an adapter over the experts costs in vLLM on CPU, float32: one layer alone, and an engine end to end.

Layer: the expert layer with one adapter for all rows, and with several mixed with base rows, against the fastest layer without
adapters there is (vLLM's own kernel, or ours). Weights of several layers take turns, as in a model, so that caches help nobody.
``rho = r [(s + 1) / (3 I) + 1 / H]`` is the arithmetic share of the low-rank path (s = 2: gate and up have an A each).
Engine: tokens a second with one adapter against the same model in an engine without LoRA; base rows in the LoRA engine, too.

    python benchmarks/adapter_tax.py --json benchmarks/results/adapter_tax.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
ENGINE = Shape(512, 384, 32, 4)
QUICK_SHAPES, QUICK_TOKENS, QUICK_ENGINE = [Shape(64, 32, 4, 2, 2)], (1, 8), Shape(64, 32, 4, 2, 2)


def layers(shape: Shape, slots: int) -> list[dict[str, Any]]:
    import torch
    from vllm._custom_ops import cpu_prepack_moe_weight

    from frontier_tune.experts import native_experts

    torch.manual_seed(0)
    made = []
    for _ in range(shape.layers):
        w13 = torch.randn(shape.experts, 2 * shape.width, shape.hidden) * 0.05
        w2 = torch.randn(shape.experts, shape.hidden, shape.width) * 0.05
        adapters = native_experts.Adapters.empty(slots, shape.experts, shape.hidden, shape.width, RANK)
        for s in range(slots):
            sizes = ((shape.hidden, shape.width), (shape.hidden, shape.width), (shape.width, shape.hidden))
            pairs = [(torch.randn(shape.experts, RANK, i) * 0.05, torch.randn(shape.experts, o, RANK) * 0.05) for i, o in sizes]
            adapters.set(s, *pairs)
        made.append(
            {
                "ours": (native_experts.pack(w13), native_experts.pack(w2)),
                "stock": (cpu_prepack_moe_weight(w13, "vec"), cpu_prepack_moe_weight(w2, "vec")),
                "adapters": adapters,
            }
        )
    return made


def layer_rows(shape: Shape, tokens: int, slots: int, samples: int, quick: bool) -> list[harness.Row]:
    """Median of interleaved samples, each as many passes over all layers as take some milliseconds."""
    import torch
    from vllm._custom_ops import cpu_fused_moe

    from frontier_tune.experts import native_experts

    made = layers(shape, slots)
    x, out = torch.randn(tokens, shape.hidden), torch.empty(tokens, shape.hidden)
    ids = torch.stack([torch.randperm(shape.experts)[: shape.top_k] for _ in range(tokens)]).to(torch.int32)
    weights = torch.rand(tokens, shape.top_k)
    one, mixed = torch.zeros(tokens, dtype=torch.long), torch.arange(tokens) % (slots + 1) - 1

    def ours(slot: Any) -> Callable[[dict[str, Any]], object]:
        return lambda layer: native_experts.forward(x, ids, weights, *layer["ours"], slot, layer["adapters"], out=out)

    def stock(layer: dict[str, Any]) -> object:
        return cpu_fused_moe(out, x, *layer["stock"], None, None, weights, ids, "silu", "vec", False)

    cases = {"one": ours(one), "mixed": ours(mixed), "none": ours(None), "stock": stock}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    passes = max(1, 2000 // tokens)
    for n in range(samples + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            for _ in range(passes):
                for layer in made:
                    run(layer)
            if n:
                taken[name].append((time.perf_counter() - start) / passes / len(made) * 1e6)
    base = min(("none", "stock"), key=lambda name: statistics.median(taken[name]))
    label = {"none": "ours without adapters", "stock": "vLLM without LoRA"}[base]
    bar = None if quick else 1 / (1 + 1.5 * shape.rho + 0.03)
    title = f"expert layer, {shape.name}, T {tokens}"
    return [
        harness.compare(f"{title}, one adapter", taken["one"], taken[base], label, "us", bar),
        harness.compare(f"{title}, {slots} adapters and base rows", taken["mixed"], taken[base], label, "us"),
        harness.compare(f"{title}, base rows", taken["none"], taken["stock"], "vLLM without LoRA", "us"),
    ]


def engine_worker(task: dict[str, Any]) -> None:
    """One engine, in a process of its own: prints tokens a second for each line on stdin ("base" or "adapter")."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from frontier_tune import recipe
    from frontier_tune.contracts import Request, SamplingParams
    from frontier_tune.sampling.engine import VLLMSampler

    settings = recipe.Sampler(threads=task["threads"], max_sequences=task["batch"], max_model_len=512)
    adapter = recipe.Adapter(rank=RANK, alpha=2.0 * RANK, attention=False) if task["lora"] else None
    with VLLMSampler(task["base"], settings, adapter, log_file=Path(task["scratch"]) / "engine.log") as sampler:
        channel.write("ready\n")
        channel.flush()
        for number, line in enumerate(sys.stdin):
            if line.strip() == "adapter" and sampler.version() == 0:
                sampler.sync(task["adapter"], 1)
            requests = [
                Request(f"{number}-{i}", tuple(range(2, 34)), SamplingParams(task["tokens"], 1.0, seed=i))
                for i in range(task["batch"])
            ]
            start, done = time.perf_counter(), len(sampler.exchange(requests))
            while done < len(requests):
                done += len(sampler.exchange([]))
            channel.write(f"{len(requests) * task['tokens'] / (time.perf_counter() - start)}\n")
            channel.flush()


def engine_rows(shape: Shape, samples: int, threads: int, batch: int, tokens: int, bar: float | None) -> list[harness.Row]:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from frontier_tune import recipe
    from frontier_tune.experts.families import peft_config
    from frontier_tune.sampling.environment import engine_environment

    with tempfile.TemporaryDirectory(prefix="adapter-tax-") as scratch:
        torch.manual_seed(0)
        heads = max(2, shape.hidden // 64)
        config = Qwen3MoeConfig(
            vocab_size=1024, hidden_size=shape.hidden, moe_intermediate_size=shape.width, intermediate_size=2 * shape.hidden,
            num_hidden_layers=shape.layers, num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=64,
            num_experts=shape.experts, num_experts_per_tok=shape.top_k, norm_topk_prob=True, tie_word_embeddings=True,
            max_position_embeddings=512,
        )  # fmt: skip
        Qwen3MoeForCausalLM(config).save_pretrained(f"{scratch}/base")
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(f"{scratch}/base"),
            peft_config(recipe.Adapter(rank=RANK, alpha=2.0 * RANK, attention=False), config),
        )
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.02)
        model.save_pretrained(f"{scratch}/adapter")
        workers = {}
        for lora in (False, True):
            task = {
                "lora": lora,
                "base": f"{scratch}/base",
                "adapter": f"{scratch}/adapter",
                "scratch": scratch,
                "threads": threads,
            }
            workers[lora] = subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps(task | {"batch": batch, "tokens": tokens})],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(Path(scratch) / f"log-{lora}").open("w"), text=True,
                env=os.environ | engine_environment(threads),
            )  # fmt: skip

        def ask(lora: bool, what: str) -> float:
            process = workers[lora]
            assert process.stdin and process.stdout
            process.stdin.write(what + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"an engine ended early:\n{(Path(scratch) / f'log-{lora}').read_text()[-3000:]}")
            return float(line)

        try:
            for process in workers.values():
                assert process.stdout and process.stdout.readline() == "ready\n"
            taken: dict[str, list[float]] = {"without": [], "base": [], "adapter": []}
            for n in range(samples + 1):  # before the first sync the LoRA engine samples the base
                for name, lora in (("without", False), ("base", True)):
                    speed = ask(lora, "base")
                    if n:
                        taken[name].append(speed)
            again: list[float] = []
            for n in range(samples + 1):
                for name, lora in (("without", False), ("adapter", True)):
                    speed = ask(lora, name)
                    if n:
                        (again if name == "without" else taken[name]).append(speed)
        finally:
            for process in workers.values():
                if process.stdin:
                    process.stdin.close()
                process.wait(timeout=60)
        title, label = f"engine, {shape.name}, {shape.layers} layers, {batch} requests", "engine without LoRA"
        return [
            harness.compare(f"{title}, one adapter", taken["adapter"], again, label, "tokens/s", bar, higher_is_better=True),
            harness.compare(f"{title}, base rows", taken["base"], taken["without"], label, "tokens/s", higher_is_better=True),
        ]


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--samples", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--slots", type=int, default=8, help="adapters in the mixed case")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        engine_worker(args.worker)
        return
    from frontier_tune.sampling import environment

    environment.apply(args.threads)
    machine = harness.machine()
    shapes, tokens, engine = (QUICK_SHAPES, QUICK_TOKENS, QUICK_ENGINE) if args.quick else (SHAPES, TOKENS, ENGINE)
    samples = 1 if args.quick else args.samples
    rows = [row for shape in shapes for t in tokens for row in layer_rows(shape, t, args.slots, samples, args.quick)]
    rows += engine_rows(engine, min(samples, 5), args.threads, *((4, 4, None) if args.quick else (64, 64, 0.90)))
    settings = {
        "rank": RANK, "threads": args.threads, "slots": args.slots, "dtype": "float32", "shapes": [asdict(s) for s in shapes],
        "rho": {s.name: round(s.rho, 4) for s in shapes},
        "not_measured": "bfloat16, where adapters are merged copies; several adapters in one engine (the sampler keeps two)",
    }  # fmt: skip
    if not harness.report("adapter_tax", rows, machine, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
