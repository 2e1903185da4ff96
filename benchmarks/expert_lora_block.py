"""An expert layer's forward and backward with LoRA against the fastest frozen layer, and a learner step on the nano base.

Block: hidden states in, gradients of the input and of every A and B out. The frozen layer gives the input's gradient alone; the
fastest of ours and of transformers' implementations counts. ``rho = r [(s + 1) / (3 I) + 1 / H]`` is the arithmetic share of the
low-rank path (s = 1: gate and up share an A). PEFT's own layer runs beside it. Step: forward, backward and update over the same
sequences, ours (packed, common prefixes once) against transformers + PEFT (padded).

    python benchmarks/expert_lora_block.py --json benchmarks/results/expert_lora_block.json
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

RANK = 8


@dataclass(frozen=True)
class Block:
    hidden: int
    width: int
    experts: int
    top_k: int
    tokens: int

    @property
    def rho(self) -> float:
        return RANK * (2 / (3 * self.width) + 1 / self.hidden)


BLOCKS = [Block(256, 128, 16, 2, 4096), Block(256, 128, 128, 8, 4096)]
QUICK = [Block(64, 32, 4, 2, 64)]


def interleaved(runs: dict[str, Callable[[], object]], samples: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(samples + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if n:
                taken[name].append(time.perf_counter() - start)
    return taken


def build(block: Block, implementation: str) -> Any:
    """The experts of one Qwen3-MoE layer with transformers' ``implementation``, frozen."""
    import torch
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=block.hidden, moe_intermediate_size=block.width, num_experts=block.experts, num_experts_per_tok=block.top_k
    )
    config._experts_implementation = implementation
    torch.manual_seed(0)
    experts = Qwen3MoeExperts(config)
    with torch.no_grad():
        for p in experts.parameters():
            p.normal_(0, 0.05).requires_grad_(False)
    return experts


def with_peft(experts: Any, rank: int = RANK) -> Any:
    from peft import LoraConfig, get_peft_model
    from torch import nn

    holder = nn.Module()
    holder.experts = experts
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        init_lora_weights=False,
    )
    return get_peft_model(holder, config)


def block_rows(block: Block, samples: int, quick: bool) -> list[harness.Row]:
    import torch

    from frontier_tune.experts import lora_experts

    g = torch.Generator().manual_seed(1)
    x = torch.randn(block.tokens, block.hidden, generator=g)
    ids = torch.stack([torch.randperm(block.experts, generator=g)[: block.top_k] for _ in range(block.tokens)])
    weights = torch.rand(block.tokens, block.top_k, generator=g)
    dy = torch.randn(block.tokens, block.hidden, generator=g)

    def step(layer: Callable[..., Any], parameters: list[Any]) -> Callable[[], object]:
        def run() -> object:
            inputs = x.detach().requires_grad_()
            out = layer(inputs, ids, weights)
            return torch.autograd.grad(out, [inputs, *parameters], dy)

        return run

    frozen = build(block, "eager")
    ours_model, stock_model = with_peft(build(block, "grouped_mm")), with_peft(build(block, "grouped_mm"))
    lora_experts.install(ours_model)

    def trained(model: Any) -> list[Any]:
        return [p for p in model.parameters() if p.requires_grad]

    runs = {
        "ours with LoRA": step(ours_model.base_model.model.experts, trained(ours_model)),
        "ours frozen": step(lambda *a: lora_experts.swiglu_experts(*a, frozen.gate_up_proj, frozen.down_proj), []),
        "transformers eager frozen": step(frozen, []),
        "transformers grouped_mm frozen": step(build(block, "grouped_mm"), []),
        "PEFT with LoRA (grouped_mm)": step(stock_model.base_model.model.experts, trained(stock_model)),
    }
    taken = interleaved(runs, samples)
    fastest = min((n for n in runs if "frozen" in n), key=lambda n: statistics.median(taken[n]))
    title = f"block, H {block.hidden} I {block.width} E {block.experts} K {block.top_k}, T {block.tokens}, forward + backward"
    limit = None if quick else 1 / (1 + 2.5 * block.rho)
    rows = [harness.compare(f"{title}, with LoRA", taken["ours with LoRA"], taken[fastest], fastest, "s", limit)]
    for name in runs:
        if name not in ("ours with LoRA", fastest):
            rows.append(harness.compare(f"{title}, with LoRA", taken["ours with LoRA"], taken[name], name, "s"))
    return rows


def step_row(samples: int, quick: bool) -> harness.Row:
    """Tokens a second of a whole step over 16 groups of 8 on the nano base."""
    import torch
    from peft import get_peft_model
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    from frontier_tune import bases, recipe
    from frontier_tune.contracts import EpisodeSpec, Task, Trajectory
    from frontier_tune.experts.families import peft_config
    from frontier_tune.learning.learner import Learner

    directory = bases.load("nano").directory
    settings = recipe.parse(
        {"adapter": {"rank": RANK, "alpha": 2.0 * RANK}, "learner": {"device": "cpu", "tokens_per_microbatch": 32768}}
    )
    learner = Learner(directory, settings)
    groups, size, prompt, answer = (2, 2, 12, (4, 8)) if quick else (16, 8, 200, (60, 140))
    rng, vocabulary = random.Random(0), learner.policy.config.vocab_size
    played, advantages = [], []
    for group in range(groups):
        head = [rng.randrange(10, vocabulary) for _ in range(prompt)]
        for member in range(size):
            tail = [rng.randrange(10, vocabulary) for _ in range(rng.randint(*answer))]
            spec = EpisodeSpec(Task("benchmark", "train", {"group": group}), group, member, 0, 1.0)
            mask = [False] * len(head) + [True] * len(tail)
            played.append(Trajectory(spec, head + tail, mask, [0.0] * len(head) + [-7.0] * len(tail), [0] * len(mask)))
            advantages.append(1.0 if member % 2 else -1.0)
    stock = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32),
        peft_config(settings.adapter, learner.policy.config),
    )
    optimizer = torch.optim.AdamW([p for p in stock.parameters() if p.requires_grad], lr=1e-3)
    longest = max(len(t.tokens) for t in played)
    ids = torch.zeros(len(played), longest, dtype=torch.long)
    attention, mask = torch.zeros_like(ids), torch.zeros(len(played), longest)
    for i, t in enumerate(played):
        ids[i, : len(t.tokens)] = torch.tensor(t.tokens)
        attention[i, : len(t.tokens)] = 1
        mask[i, : len(t.tokens)] = torch.tensor(t.mask, dtype=torch.float32)
    weight = torch.tensor(advantages)[:, None]

    def theirs() -> None:
        optimizer.zero_grad()
        for rows in torch.arange(len(played)).split(32):
            logits = stock(input_ids=ids[rows], attention_mask=attention[rows], use_cache=False).logits[:, :-1]
            logprob = -F.cross_entropy(logits.flatten(0, 1), ids[rows, 1:].flatten(), reduction="none").view(len(rows), -1)
            ratio = torch.exp(logprob - logprob.detach())
            loss = (
                -(torch.minimum(ratio * weight[rows], ratio.clamp(0.8, 1.28) * weight[rows]) * mask[rows, 1:]).sum() / mask.sum()
            )
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in stock.parameters() if p.requires_grad], 1.0)
        optimizer.step()

    taken = interleaved({"ours": lambda: learner.update(played, advantages), "theirs": theirs}, samples)
    tokens = sum(len(t.tokens) for t in played)
    ours, base = ([tokens / s for s in taken[name]] for name in ("ours", "theirs"))
    title = f"learner step, nano base, {groups} groups of {size}, prompts of {prompt}"
    return harness.compare(title, ours, base, "transformers + PEFT", "tokens/s", None if quick else 2.0, higher_is_better=True)


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--samples", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    machine = harness.machine()
    samples = 1 if args.quick else args.samples
    rows = [row for block in (QUICK if args.quick else BLOCKS) for row in block_rows(block, samples, args.quick)]
    rows.append(step_row(min(samples, 5), args.quick))
    settings = {"rank": RANK, "threads": args.threads, "dtype": "float32", "not_measured": "bfloat16; peak memory"}
    if not harness.report("expert_lora_block", rows, machine, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
