"""What a run will need: tasks, tokens, memory by part, disk, time. From the recipe and the base's config.json alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import Recipe

MIB = 2**20
BYTES = {"float32": 4, "bfloat16": 2}
# Resident memory of each process before any model is in it (interpreter, torch, engine code), measured on the CPU builds.
PROCESSES = {"driver": 450 * MIB, "episodes": 350 * MIB, "environment worker": 160 * MIB, "ray": 600 * MIB}
ENGINE, LEARNER = 900 * MIB, 550 * MIB
KEPT_CHECKPOINTS = 3  # two, and the one being written
ROLLOUT_BYTES_PER_TOKEN = 8


@dataclass(frozen=True)
class Plan:
    """Byte counts are estimates: parameters are exact, activations and processes are not."""

    parameters: int
    expert_parameters: int
    active_parameters: int
    adapter_parameters: int
    episodes_per_step: int
    tokens_per_step_at_most: int
    memory: dict[str, int]
    disk: dict[str, int]
    seconds_per_step: float | None = None
    seconds_source: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def memory_total(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_total(self) -> int:
        return sum(self.disk.values())


def make(recipe: Recipe, base_config: Any, root: Path, name: str) -> Plan:
    """The plan of a run of ``recipe`` on a base with this transformers configuration."""
    params, experts, active = count_parameters(base_config)
    adapter = adapter_parameters(recipe, base_config)
    a, env, algo = recipe.learner, recipe.environment, recipe.algorithm
    episodes = algo.groups_per_step * algo.group_size
    turn_tokens = env.max_turns * env.max_tokens_per_turn
    tokens = episodes * min(turn_tokens, recipe.sampler.max_model_len)
    held = episodes * recipe.sampler.max_model_len * 40  # a batch as Python lists, in three processes at times
    memory = {
        "learner: base": params * BYTES[a.dtype],
        "learner: adapter, gradient, two moments": adapter * 4 * 4,
        "learner: activations of a micro-batch": activation_bytes(recipe, base_config),
        "learner: process": LEARNER,
        "sampler: base": params * BYTES[recipe.sampler.dtype],
        "sampler: experts with adapter merged": 3 * experts * BYTES[recipe.sampler.dtype] if recipe.adapter.experts else 0,
        "sampler: KV cache": recipe.sampler.kv_cache_mb * MIB,
        "sampler: process": ENGINE,
        "episodes, environment workers, driver, Ray": PROCESSES["episodes"]
        + PROCESSES["driver"]
        + PROCESSES["ray"]
        + env.workers * PROCESSES["environment worker"],
        "trajectories": held,
    }
    disk = {
        "checkpoints": KEPT_CHECKPOINTS * adapter * 4 * 3,
        "adapter versions": 5 * adapter * 4,
        "rollouts": recipe.run.steps * tokens * ROLLOUT_BYTES_PER_TOKEN,
        "logs and report": 20 * MIB,
    }
    seconds, source = past_speed(root, name, recipe)
    return Plan(params, experts, active, adapter, episodes, tokens, memory, disk, seconds, source)


def count_parameters(config: Any) -> tuple[int, int, int]:
    """(all, in experts, active for one token), counted on the model's skeleton: no weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    from frontier_tune.experts.families import FAMILIES, moe_shape

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    named = dict(model.named_parameters())  # tied parameters once
    total = sum(p.numel() for p in named.values())
    if getattr(config, "model_type", None) not in FAMILIES:
        return total, 0, total
    shape = moe_shape(config)
    experts = sum(p.numel() for n, p in named.items() if ".experts." in n)
    return total, experts, total - experts + experts * shape.top_k // shape.num_experts


def adapter_parameters(recipe: Recipe, config: Any) -> int:
    from math import prod

    from frontier_tune.experts.canonical import expected_shapes
    from frontier_tune.experts.families import target_modules

    shapes = expected_shapes(config, target_modules(recipe.adapter, config), recipe.adapter.experts, recipe.adapter.rank)
    return sum(prod(s) for s in shapes.values())


def activation_bytes(recipe: Recipe, config: Any) -> int:
    """Kept for the backward pass of one micro-batch: per token and layer about 14 H + k (5 I + 3 H), and three rows of logits."""
    from frontier_tune.experts.families import moe_shape

    s = moe_shape(config)
    per_layer = 14 * s.hidden + s.top_k * (5 * s.expert_width + 3 * s.hidden)
    per_token = s.depth * per_layer + 3 * int(config.vocab_size)
    return recipe.learner.tokens_per_microbatch * per_token * BYTES[recipe.learner.dtype]


def past_speed(root: Path, name: str, recipe: Recipe) -> tuple[float | None, str]:
    """Median seconds of a step in the newest run of this recipe whose step had the same size, and where that was."""
    files = sorted((root / "runs").glob(f"{name}-*/metrics.jsonl"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files:
        rows = list(_rows(path))
        size = recipe.algorithm.groups_per_step * recipe.algorithm.group_size
        times = [r["seconds"] for r in rows if r.get("episodes") == size and r.get("seconds")]
        if len(times) >= 3:
            return median(times), path.parent.name
    return None, ""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a killed run


def available_memory() -> int:
    """Bytes that may still be used: the machine's, or the container's limit where that is lower."""
    import psutil

    free = int(psutil.virtual_memory().available)
    left = cgroup_left(Path("/sys/fs/cgroup"))
    return free if left is None else min(free, left)


def cgroup_left(group: Path) -> int | None:
    """Bytes that a cgroup (version 2) has left, None without a limit. Its file cache counts as used there, but gives way."""
    limit, used, stat = group / "memory.max", group / "memory.current", group / "memory.stat"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    cached = dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", 0) if stat.is_file() else 0
    return int(limit.read_text()) - int(used.read_text()) + int(cached)


def require_resources(plan: Plan, directory: Path) -> None:
    """Raises BadInput where memory or disk fall short, naming the largest parts and what makes them smaller."""
    free = available_memory()
    if plan.memory_total > free:
        parts = sorted(plan.memory.items(), key=lambda kv: -kv[1])[:3]
        raise BadInput(
            f"memory: the plan needs about {size(plan.memory_total)}, {size(free)} are available. Largest parts: "
            f"{', '.join(f'{k} {size(v)}' for k, v in parts)}. Lower sampler.kv_cache_mb, learner.tokens_per_microbatch or "
            "algorithm.groups_per_step, set learner.dtype=bfloat16, or take a smaller base"
        )
    existing = next(p for p in [directory, *directory.absolute().parents] if p.exists())
    free_disk = shutil.disk_usage(existing).free
    if plan.disk_total > free_disk:
        raise BadInput(
            f"disk: the plan needs about {size(plan.disk_total)}, {size(free_disk)} are free at {existing}; "
            "free some, name another run.directory, or lower run.steps"
        )


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / MIB:.0f} MiB"


def describe(plan: Plan, recipe: Recipe, tasks: dict[str, int]) -> str:
    """The plan for people."""
    steps = recipe.run.steps
    lines = [
        "tasks      " + ", ".join(f"{n:,} {k}" for k, n in tasks.items()),
        f"step       {recipe.algorithm.groups_per_step} groups of {recipe.algorithm.group_size}: "
        f"{plan.episodes_per_step:,} episodes, at most {plan.tokens_per_step_at_most:,} sampled tokens; {steps} steps",
        f"base       {plan.parameters / 1e6:,.2f} M parameters, {plan.expert_parameters / 1e6:,.2f} M in experts, "
        f"{plan.active_parameters / 1e6:,.2f} M active for a token",
        f"adapter    {plan.adapter_parameters / 1e6:,.3f} M parameters of rank {recipe.adapter.rank}",
        f"memory     about {size(plan.memory_total)}:",
        *(f"             {size(v):>9}  {k}" for k, v in plan.memory.items()),
        f"disk       about {size(plan.disk_total)}:",
        *(f"             {size(v):>9}  {k}" for k, v in plan.disk.items()),
    ]
    if plan.seconds_per_step:
        total = plan.seconds_per_step * steps / 60
        lines.append(
            f"time       about {total:.0f} min of training ({plan.seconds_per_step:.1f} s a step in {plan.seconds_source})"
        )
    else:
        lines.append("time       not known: no finished steps of this recipe on this machine yet")
    return "\n".join(lines)
