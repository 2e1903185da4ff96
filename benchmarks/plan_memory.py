"""The plan's memory model against what the learner really takes, on small models of every family that it trains.

Each case is a fresh process that loads a base, takes two tiny updates, then one of the case's size, whose peak of resident memory
above what the loaded process had is read; then one that counts what the graph keeps for backward (saved-tensor hooks), and one
that counts torch's own allocations (profiler). The plan's figures come from config.json and recipe alone.

    python benchmarks/plan_memory.py --json benchmarks/results/plan_memory.json
    python benchmarks/plan_memory.py --case "layers run again" --json benchmarks/results/plan_memory_checkpointing.json

Cases that the file has already, from this very commit without changes, are not run again: it may be stopped and started.

Medians of three processes. ``ratio`` is the smaller of plan and measurement over the larger: 1 is exact, 0.9 the bar.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

MIB = 2**20
BAR = 0.9
COMMON = {"max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Case:
    """One base and one batch of ``sequences`` of ``length`` tokens, whose last half is sampled."""

    name: str
    family: str
    config: dict[str, Any]
    sequences: int
    length: int
    rank: int = 8
    dtype: str = "float32"
    adapter: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)


def _qwen(**changes: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "intermediate_size": 512,
        "norm_topk_prob": True,
    }  # fmt: skip
    return sizes | changes


_OTHER = {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}
_OLMOE = _OTHER | {"num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 128}
_MIXTRAL = _OTHER | {
    "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 448,
}  # fmt: skip
_DEEPSEEK = _OTHER | {
    "num_key_value_heads": 8, "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128,
    "intermediate_size": 512, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 96, "kv_lora_rank": 64,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "n_shared_experts": 1,
}  # fmt: skip
_GPT_OSS = _OTHER | {
    "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 448,
    "sliding_window": 64,
}  # fmt: skip
_NANO = _qwen(
    vocab_size=1024, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, num_experts=8,
    num_experts_per_tok=2, moe_intermediate_size=96,
)  # fmt: skip
_AGAIN = {"activation_checkpointing": True}
_ARGUMENTS = ("positions and indices", "routes of layers")
CASES = [
    Case("Qwen3-MoE", "qwen3_moe", _qwen(), 16, 512),
    Case("Qwen3-MoE as the nano base", "qwen3_moe", _NANO, 32, 512),
    Case("Qwen3-MoE, 8 wide experts a token", "qwen3_moe", _qwen(num_hidden_layers=2, num_experts_per_tok=8), 16, 512),
    Case("Qwen3-MoE, vocabulary of 50,000", "qwen3_moe", _qwen(vocab_size=50_000, num_hidden_layers=3), 16, 256),
    Case("Qwen3-MoE, rank 128", "qwen3_moe", _qwen(num_hidden_layers=3), 4, 512, rank=128),
    Case("Qwen3-MoE, attention alone", "qwen3_moe", _qwen(), 16, 512, adapter={"experts": False}),
    Case("Qwen3-MoE, bfloat16", "qwen3_moe", _qwen(), 16, 512, dtype="bfloat16"),
    Case("OLMoE", "olmoe", _OLMOE, 16, 512),
    Case("Mixtral", "mixtral", _MIXTRAL, 16, 512),
    Case("gpt-oss", "gpt_oss", _GPT_OSS, 16, 512),
    Case("gpt-oss, bfloat16", "gpt_oss", _GPT_OSS, 16, 512, dtype="bfloat16"),
    Case("DeepSeek-V3", "deepseek_v3", _DEEPSEEK, 16, 512),
    Case("DeepSeek-V3, bfloat16", "deepseek_v3", _DEEPSEEK, 16, 512, dtype="bfloat16"),
    Case("Qwen3-MoE, layers run again", "qwen3_moe", _qwen(), 16, 512, learner=_AGAIN),
    Case("OLMoE, layers run again, bfloat16", "olmoe", _OLMOE, 16, 512, dtype="bfloat16", learner=_AGAIN),
    Case("DeepSeek-V3, layers run again", "deepseek_v3", _DEEPSEEK, 16, 512, learner=_AGAIN),
]


def base_config(case: Case) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(case.family, **COMMON, **case.config)


def recipe_of(case: Case) -> Any:
    """One micro-batch takes the whole batch."""
    from frontier_tune import recipe

    learner = {"threads": 1, "device": "cpu", "warmup_steps": 0, "dtype": case.dtype, "tokens_per_microbatch": 1 << 20}
    adapter = {"rank": case.rank, "alpha": 2 * case.rank, **case.adapter}
    return recipe.parse({"adapter": adapter, "learner": learner | case.learner, "run": {"steps": 10}})


def planned(case: Case, device: str = "cpu") -> dict[str, int]:
    """The plan's bytes by part, for the case's own batch."""
    from frontier_tune.experts.families import target_modules
    from frontier_tune.orchestration.plan import activations, actors, sizes

    config, recipe = base_config(case), recipe_of(case)
    targets = tuple(target_modules(recipe.adapter, config))
    checkpointing = recipe.learner.activation_checkpointing
    setting = activations.Setting(case.dtype, case.rank, targets, recipe.adapter.experts, device, checkpointing)
    half = case.length - case.length // 2
    batch = activations.Batch(case.sequences * case.length, case.sequences * half)
    adapter = sizes.adapter_parameters(recipe, config)
    need = activations.need(sizes.sizes(config), setting, batch, adapter)
    kept = 3 if recipe.learner.rollbacks else 0
    beyond = sum(part.bytes for part in actors.retained(need, case.dtype, False, checkpointing))
    return {
        "base": sizes.parameters(config).total * sizes.BYTES[case.dtype],
        "adapter and its optimizer": adapter * 4 * 3,
        # Of a layer that is run again, saved-tensor hooks see its input alone, not what it holds of other arguments.
        "kept for backward": sum(n for kind, n in need.kept.items() if not (checkpointing and kind in _ARGUMENTS)),
        "peak of activations and gradient": need.peak,
        "peak above the loaded process": need.peak + adapter * 4 * (2 + kept) + beyond,
    }


def measured(case: Case, resident: bool) -> dict[str, int]:
    """In this process: bytes by part that torch allocated, and with ``resident`` the growth of the process, a fresh one then."""
    import torch

    from frontier_tune.learning.learner import Learner

    with tempfile.TemporaryDirectory() as scratch:
        _write_base(case, Path(scratch))
        gc.collect()
        learner = Learner(scratch, recipe_of(case))
    loaded, grown = _status("VmRSS"), dict[str, int]()
    rewards = [(-1.0) ** n for n in range(case.sequences)]
    tiny, whole = _batch(case, 2, 32), _batch(case, case.sequences, case.length)
    learner.update(tiny, rewards[:2])
    learner.update(tiny, rewards[:2])
    if resident:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        learner.update(whole, rewards)
        grown = {"peak above the loaded process": _status("VmHWM") - loaded}
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in learner.policy.peft.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        learner.update(whole, rewards)
    optimizer = [t for state in learner.optimizer.state.values() for t in state.values() if t.ndim]
    adapter = [p for _, p in learner.policy.named_parameters()]
    base = {p.untyped_storage().data_ptr(): p.nbytes for p in learner.policy.peft.parameters() if not p.requires_grad}
    with _peak() as peak:
        learner.update(whole, rewards)
    return {
        "base": sum(base.values()),
        "adapter and its optimizer": sum(t.nbytes for t in (*adapter, *optimizer)),
        "kept for backward": sum(kept.values()),
        "peak of activations and gradient": peak["bytes"],
    } | grown


@contextmanager
def _peak() -> Iterator[dict[str, int]]:
    """Peak of what torch's CPU allocator handed out within the body, from its own record of every allocation."""
    from torch.profiler import ProfilerActivity, profile

    out = {"bytes": 0}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        yield out
    live = 0
    memory = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda e: e.start_ns()):
        live += event.nbytes()
        out["bytes"] = max(out["bytes"], live)


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def _write_base(case: Case, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(base_config(case), dtype=torch.float32).save_pretrained(directory)


def _batch(case: Case, sequences: int, length: int) -> list[Any]:
    """Groups of one, so that no prefix is shared."""
    import numpy as np

    from frontier_tune.contracts import EpisodeSpec, Task, Trajectory

    rng, head = np.random.default_rng(0), length // 2
    out = []
    for n in range(sequences):
        tokens = rng.integers(3, case.config["vocab_size"], length).tolist()
        mask = [False] * head + [True] * (length - head)
        spec = EpisodeSpec(Task("benchmark", "train", {"n": n}), n, 0, 0)
        out.append(Trajectory(spec, tokens, mask, [-3.0 if m else 0.0 for m in mask], [0 if m else -1 for m in mask]))
    return out


def rows(case: Case, environment: dict[str, str] | None = None, repeat: int = 1) -> list[harness.Row]:
    """Plan against measurement by part: the median of ``repeat`` processes, as the heap of each falls into other pieces."""
    plan, found = planned(case), list[dict[str, int]]()
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
    for _ in range(repeat):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
        if done.returncode:
            raise RuntimeError(f"{case.name}: {done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    out = []
    for part in found[0]:
        ours, baseline = plan[part] / MIB, statistics.median(one[part] for one in found) / MIB
        ratio = min(ours, baseline) / max(ours, baseline)
        out.append(harness.Row(f"{case.name}: {part}", ours, baseline, "measured", "MiB", ratio, repeat, True, BAR))
    return out


def _done(path: Path | None) -> list[harness.Row]:
    """Rows of an earlier start at the same commit."""
    if path is None or not path.is_file():
        return []
    document, commit = json.loads(path.read_text()), harness.commit()
    same = document["commit"] == commit and not commit.endswith("-dirty")  # which changes it had isn't known
    return [harness.Row(**row) for row in document["rows"]] if same else []


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--case", help="only cases whose name has this in it; else all but 'layers run again'")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(Case(**json.loads(args.child)), True)))
        return
    chosen = [c for c in CASES if (args.case in c.name if args.case else not c.learner)]
    if args.quick:
        chosen = [Case("Qwen3-MoE", "qwen3_moe", _qwen(num_hidden_layers=2), 2, 64)]
    machine, out, holds = harness.machine(), [] if args.quick else _done(args.json), True
    for case in chosen:
        if not any(row.case.startswith(f"{case.name}: ") for row in out):
            out += rows(case, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, 1 if args.quick else 3)
            there = [c for c in CASES if any(row.case.startswith(f"{c.name}: ") for row in out)]
            holds = harness.report("plan_memory", out, machine, {"cases": [asdict(c) for c in there], "threads": 1}, args.json)
    if not holds and not args.quick:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
