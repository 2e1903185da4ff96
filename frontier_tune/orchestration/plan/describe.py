"""The plan for people."""

from __future__ import annotations

from frontier_tune.orchestration.plan import machine, placement
from frontier_tune.orchestration.plan.actors import handover_bytes, learner_need
from frontier_tune.orchestration.plan.machine import GPU, MIB, size
from frontier_tune.orchestration.plan.placement import USABLE
from frontier_tune.orchestration.plan.plans import Plan, sequence_bytes
from frontier_tune.orchestration.plan.sizes import quantization
from frontier_tune.recipe import Recipe, full

GIB = 2**30


def describe(plan: Plan, recipe: Recipe, tasks: dict[str, int]) -> str:
    """The plan as lines: work, base, memory, disk, placement, time, and what can't run yet."""
    lines = ["tasks      " + ", ".join(f"{n:,} {k}" for k, n in tasks.items()), *_step(plan, recipe), *_base(plan)]
    lines += _gpu_memory(plan, recipe) if plan.on_gpus else _memory(plan)
    lines += [f"disk       about {size(plan.disk_total)}:", *(f"             {size(v):>9}  {k}" for k, v in plan.disk.items())]
    if recipe.learner.compile:
        lines.append(
            "compile    the learner's decoder layers, when they first run: half a minute or more of the first steps, not in the "
            "time below; their activations are planned as those of eager layers"
        )
    lines += [_time(plan, recipe)]
    lines += _here(recipe, machine.gpus())
    if plan.missing:
        lines += ["not yet    this version can't run the recipe as it is; a real run is refused:"]
        lines += [f"             {line}" for line in plan.missing]
    return "\n".join(lines)


def _step(plan: Plan, recipe: Recipe) -> list[str]:
    w, steps = plan.work, recipe.run.steps
    beside = f" and {w.rehearsal} of general tasks" if w.rehearsal else ""
    lines = [
        f"step       {w.groups} groups{beside} of {w.group_size}: "
        f"{w.planned:,} episodes, at most {w.tokens:,} sampled tokens; {steps} steps"
    ]
    if w.again:
        lines.append(
            f"             dynamic sampling plays up to {w.again} groups more: {w.episodes_at_most:,} episodes, "
            f"at most {w.tokens_at_most:,} sampled tokens"
        )
    return lines


def _base(plan: Plan) -> list[str]:
    p, recipe = plan.subject.parameters, plan.subject.recipe
    packed = quantization(plan.subject.config)
    return [
        f"base       {p.total / 1e6:,.2f} M parameters, {p.in_experts / 1e6:,.2f} M in experts, "
        f"{p.active / 1e6:,.2f} M active for a token" + (f"; the checkpoint's weights are {packed}" if packed else ""),
        f"trained    all of them; every update hands {size(handover_bytes(plan.subject))} to the sampler"
        if full.whole(recipe)
        else f"adapter    {plan.adapter_parameters / 1e6:,.3f} M parameters of rank {recipe.adapter.rank}",
    ]


def _memory(plan: Plan) -> list[str]:
    return [
        f"memory     about {size(plan.memory_total)}:",
        *(f"             {size(v):>9}  {k}" for k, v in plan.memory.items()),
        _cache(plan),
    ]


def _cache(plan: Plan) -> str:
    one, has = sequence_bytes(plan), plan.subject.recipe.sampler.kv_cache_mb * MIB
    return f"             KV cache: {size(one)} a sequence of {plan.work.longest:,} tokens, room for {has / one:,.1f} at once"


def _gpu_memory(plan: Plan, recipe: Recipe) -> list[str]:
    """Placement, the fullest GPU of each kind part by part, and what a micro-batch keeps by kind."""
    p = recipe.placement
    assert p.gpu_memory_gib is not None
    usable = p.gpu_memory_gib * GIB * USABLE
    lines = [f"placement  {p.nodes} node{'s' * (p.nodes > 1)} of {p.gpus_per_node} GPUs of {p.gpu_memory_gib:g} GiB, {p.layout}:"]
    lines += [f"             {line}" for line in placement.lines(plan.placed)]
    shown: set[tuple[tuple[str, str, int], ...]] = set()
    for (node, gpu), parts in placement.by_gpu(plan.placed).items():
        alike = tuple((actor.split()[0], part.name, part.bytes) for actor, part in parts)
        if alike in shown:
            continue
        shown.add(alike)
        total = sum(part.bytes for _, part in parts)
        lines.append(f"memory     node {node}, GPU {gpu} and those alike: {size(total)} of {size(usable)} usable ({USABLE:.0%}):")
        lines += [
            f"             {size(part.bytes):>9}  {actor.split()[0]}: {part.name}{'' if part.exact else ' (estimate)'}"
            for actor, part in parts
        ]
    nodes: dict[int, list[int]] = {}
    for node, parts in placement.by_node(plan.placed).items():
        nodes.setdefault(sum(part.bytes for _, part in parts), []).append(node)
    for total, numbers in nodes.items():
        lines.append(f"memory     main memory of node {placement.ranges(numbers)}: {size(total)}")
    need = learner_need(plan.subject, "cpu" if plan.subject.recipe.learner.device == "cpu" else "cuda", p.learners)
    kinds = sorted(need.kept.items(), key=lambda kv: -kv[1])
    lines.append(
        f"micro-batch  kept for backward: {', '.join(f'{k} {size(v)}' for k, v in kinds if v)}; fullest at: {need.moment}"
    )
    lines.append(_cache(plan))
    return lines


def _time(plan: Plan, recipe: Recipe) -> str:
    if plan.seconds_per_step:
        total = plan.seconds_per_step * recipe.run.steps / 60
        return f"time       about {total:.0f} min of training ({plan.seconds_per_step:.1f} s a step {plan.seconds_source})"
    return (
        "time       not known: no finished steps of this recipe on this machine yet, and no stated speed "
        "(placement.sampler_tokens_per_second, placement.learner_tokens_per_second)"
    )


def _here(recipe: Recipe, found: list[GPU]) -> list[str]:
    """What the plan wants against what this machine has."""
    p = recipe.placement
    if not p.gpus_per_node:
        told = "state them in placement (gpus_per_node, gpu_memory_gib) to plan their memory, which this plan does not"
        return [f"here       {len(found)} x {found[0].name}; {told}"] if found else []
    if not found:
        return [f"here       no GPU; the plan wants {p.gpus} of {p.gpu_memory_gib:g} GiB"]
    kinds: dict[GPU, int] = {}
    for gpu in found:
        kinds[gpu] = kinds.get(gpu, 0) + 1
    told = ", ".join(f"{n} x {gpu.name} of {gpu.memory / GIB:.1f} GiB" for gpu, n in kinds.items())
    enough = sum(n for gpu, n in kinds.items() if gpu.memory / GIB >= 0.98 * (p.gpu_memory_gib or 0))
    verdict = "enough for a node of it" if enough >= (p.gpus_per_node or 0) else "too little"
    return [f"here       {told}; the plan wants {p.gpus} of {p.gpu_memory_gib:g} GiB: {verdict}"]
