"""The plan of a run: parameters, work, memory, disk and time, from the recipe and the base's config.json alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.orchestration.plan import actors, cache, machine, placement, work
from frontier_tune.orchestration.plan.actors import Part, Subject
from frontier_tune.orchestration.plan.machine import MIB, size
from frontier_tune.orchestration.plan.placement import Placed
from frontier_tune.orchestration.plan.sizes import Sizes, parameters, sizes
from frontier_tune.orchestration.plan.work import Work, past_speed
from frontier_tune.orchestration.run_dir import KEEP_ADAPTER_VERSIONS
from frontier_tune.recipe import Recipe, full

KEPT_CHECKPOINTS = 3  # two, and the one being written
ROLLOUT_BYTES_PER_TOKEN = 8


@dataclass(frozen=True)
class Plan:
    """Byte counts: parameters, adapter, cache and what is kept for backward are counted; processes are measured figures.

    ``memory`` and ``disk`` by row, of the whole run; ``placed`` by actor.
    """

    subject: Subject
    placed: list[Placed]
    memory: dict[str, int]
    disk: dict[str, int]
    seconds_per_step: float | None = None
    seconds_source: str = ""
    missing: list[str] = field(default_factory=list)

    @property
    def work(self) -> Work:
        return self.subject.work

    @property
    def parameters(self) -> int:
        return self.subject.parameters.total

    @property
    def expert_parameters(self) -> int:
        return self.subject.parameters.in_experts

    @property
    def active_parameters(self) -> int:
        return self.subject.parameters.active

    @property
    def adapter_parameters(self) -> int:
        return self.subject.adapter

    @property
    def checkpoint_bytes(self) -> int:
        """Of one: what learns, and two moments of it, in float32."""
        return self.subject.adapter * 4 * 3

    @property
    def on_gpus(self) -> bool:
        """Whether it is made for stated GPUs rather than for this machine."""
        return bool(self.subject.recipe.placement.gpus_per_node)

    @property
    def memory_total(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_total(self) -> int:
        return sum(self.disk.values())


def make(recipe: Recipe, base_config: Any, root: Path, name: str) -> Plan:
    """The plan of a run of ``recipe`` on a base with this transformers configuration. Raises BadInput where GPUs are too few."""
    from frontier_tune.orchestration.plan import capability

    of_step = work.of(recipe)
    subject = actors.subject(recipe, base_config, parameters(base_config), sizes(base_config), of_step)
    crew = actors.crew(subject, "cuda" if recipe.placement.gpus_per_node else "cpu")
    placed = placement.assign(crew, recipe.placement)
    adapter = subject.adapter
    disk = {
        "checkpoints": KEPT_CHECKPOINTS * adapter * 4 * 3,
        **_written(subject),
        "rollouts": recipe.run.steps * of_step.tokens_at_most * ROLLOUT_BYTES_PER_TOKEN,
        "logs and report": 20 * MIB,
    }
    seconds, source = past_speed(root, name, recipe)
    source = f"in {source}"
    if seconds is None:
        seconds = work.stated_speed(recipe, of_step)
        source = "at the speeds that the recipe states, " + ("overlapped" if recipe.run.staleness else "one after the other")
    return Plan(subject, placed, _rows(placed), disk, seconds, source, capability.missing(recipe, base_config))


def _written(s: Subject) -> dict[str, int]:
    """Bytes of what travels to the sampler, and of what a run ends with where that is much."""
    each = actors.handover_bytes(s)
    if not full.whole(s.recipe):
        # As many versions and canaries as stay, and the next of each before an old one goes. A run that is made longer has the
        # result of before, too.
        versions = {"adapter versions and canaries": 2 * (KEEP_ADAPTER_VERSIONS + 1) * each, "the tuned adapter": each}
        stages = sum(stage is not None for stage in (s.recipe.warm_start.sft, s.recipe.warm_start.dpo))
        return versions | ({"adapters of the warm start": stages * each} if stages else {})
    # A version and a canary, and the next of each while it is written.
    return {"models on their way to the sampler": 4 * each, "the tuned model": each}


def _rows(placed: list[Placed]) -> dict[str, int]:
    """Main memory, and that of GPUs, as one table: rows of the models by actor's kind, what is small as one row."""
    rows: dict[str, int] = {}
    for one in placed:
        kind = one.actor.name.split()[0]
        held: list[Part] = [*one.actor.device * max(1, one.actor.gpus), *one.actor.host]
        for part in held:
            if kind == "driver" and part.name.startswith("trajectories"):
                name = "trajectories"
            elif kind in ("driver", "episodes"):
                name = "episodes, environment workers, driver, Ray"
            else:
                name = f"{kind}: {part.name}"
            rows[name] = rows.get(name, 0) + part.bytes
    return {name: n for name, n in rows.items() if n}


def require_resources(plan: Plan, directory: Path) -> None:
    """Raises BadInput where memory or disk fall short, naming the largest parts and what makes them smaller.

    A plan for stated GPUs is held against those and against the nodes' stated memory, any other against this machine.
    """
    recipe = plan.subject.recipe
    _require_cache(plan)
    if plan.on_gpus:
        stated = recipe.placement.node_memory_gib
        placement.require_fit(plan.placed, recipe.placement, None if stated is None else round(stated * actors.GIB))
        return
    _require_memory(plan.memory)
    _require_disk(plan, directory)


def require_here(plan: Plan, directory: Path) -> None:
    """Raises BadInput where the plan is for GPUs that this machine lacks, or its main memory or disk fall short beside them.

    In a cluster this machine is one node of it; the others are looked at when the cluster is joined.
    """
    p = plan.subject.recipe.placement
    if not plan.on_gpus or p.gpu_memory_gib is None:
        placement.of_a_run(p, len(machine.gpus()), plan.subject.recipe.learner.device)
        return
    fit = [g for g in machine.gpus() if g.memory >= 0.98 * p.gpu_memory_gib * actors.GIB]
    wanted = p.gpus if p.address is None else p.gpus_per_node or 0
    if len(fit) < wanted:
        raise BadInput(
            f"placement: {wanted} GPUs of {p.gpu_memory_gib:g} GiB are wanted (gpus_per_node, gpu_memory_gib), this machine has "
            f"{len(fit)} such; run on a machine that has them, or state what is here"
        )
    here = [one for one in plan.placed if one.node == 0]
    _require_memory({f"{one.actor.name}: {part.name}": part.bytes for one in here for part in one.actor.host})
    _require_disk(plan, directory)


def _require_memory(rows: dict[str, int]) -> None:
    free, total = machine.available_memory(), sum(rows.values())
    if total > free:
        parts = sorted(rows.items(), key=lambda kv: -kv[1])[:3]
        raise BadInput(
            f"memory: the plan needs about {size(total)}, {size(free)} are available. Largest parts: "
            f"{', '.join(f'{k} {size(v)}' for k, v in parts)}. Lower sampler.kv_cache_mb, learner.tokens_per_microbatch or "
            "algorithm.groups_per_step, set learner.dtype=bfloat16, or take a smaller base"
        )


def _require_disk(plan: Plan, directory: Path) -> None:
    free, where = machine.free_disk(directory)
    if plan.disk_total > free:
        raise BadInput(
            f"disk: the plan needs about {size(plan.disk_total)}, {size(free)} are free at {where}; "
            "free some, name another run.directory, or lower run.steps"
        )


def _require_cache(plan: Plan) -> None:
    """One sequence of full length has to fit, or the engine doesn't start."""
    one = cache.least_bytes(*_sequence(plan))
    has = plan.subject.recipe.sampler.kv_cache_mb * MIB
    if one > has:
        raise BadInput(
            f"sampler.kv_cache_mb: {size(has)}, but the engine starts with no less than {size(one)} for sequences of "
            f"sampler.max_model_len ({plan.work.longest:,} tokens); raise it to {-(-one // MIB)}, or lower sampler.max_model_len"
        )


def sequence_bytes(plan: Plan) -> int:
    """Key-value cache of one sequence of full length, on each of a sampler's GPUs."""
    return cache.cached_bytes(*_sequence(plan))


def _sequence(plan: Plan) -> tuple[Sizes, str, int, int, str]:
    """What the cache of a sequence follows from. The engine takes a token more than asked for, where the base has a position for
    it (sampling.backend)."""
    subject, longest = plan.subject, plan.work.longest
    sampler, placement = subject.recipe.sampler, subject.recipe.placement
    positions = getattr(subject.config, "max_position_embeddings", None) or longest + 1
    split, device = (placement.tensor_parallel, "cuda") if plan.on_gpus else (1, "cpu")
    return subject.sizes, sampler.dtype, max(longest, min(longest + 1, positions)), split, device
