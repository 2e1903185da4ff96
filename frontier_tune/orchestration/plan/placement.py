"""Which actor goes to which node and GPU, what each of them holds then, and what does not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_tune.contracts import BadInput
from frontier_tune.orchestration.plan.actors import GIB, Actor, Part
from frontier_tune.orchestration.plan.machine import size
from frontier_tune.recipe import Placement

# Of a GPU's memory: what the driver keeps, and what allocators lose to fragments. An estimate.
USABLE = 0.95
NODE_OVERHEAD = 2 * GIB  # system and Ray's processes of a node


@dataclass(frozen=True)
class Seat:
    """A node, 0 for the one where the command runs, and GPUs by number within it; none for who has none."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placed:
    """``gpus``: numbers within the node; none for an actor that has none."""

    actor: Actor
    node: int
    gpus: tuple[int, ...]


def lines(placed: Sequence[Placed]) -> list[str]:
    """Who is where, one line for neighbours of a kind on one node."""
    runs: list[list[Placed]] = []
    for one in placed:
        last = runs[-1][-1] if runs else None
        if last and last.node == one.node and last.actor.name.split()[0] == one.actor.name.split()[0]:
            runs[-1].append(one)
        else:
            runs.append([one])
    out = []
    for run in runs:
        kind, *number = run[0].actor.name.split()
        name = f"{kind} {ranges([int(one.actor.name.split()[1]) for one in run])}" if number else kind
        gpus = ranges([g for one in run for g in one.gpus])
        each = f", {len(run[0].gpus)} each" if len(run[0].gpus) > 1 else ""
        out.append(f"{name:15} node {run[0].node}" + (f", GPU {gpus}{each}" if gpus else ""))
    return out


@dataclass(frozen=True)
class Seats:
    """Of every learner, by rank, and of every sampler, by number."""

    learners: list[Seat]
    samplers: list[Seat]


def seats(p: Placement, learning: bool = True) -> Seats:
    """Learners fill GPUs from the first node on; samplers come behind them, or colocated on the same GPUs, none across nodes.

    Without GPUs they go around the nodes; so do learners alone that are not ``learning`` on GPUs (learner.device: cpu). Raises
    BadInput where there are too few GPUs.
    """
    per_node, each = p.gpus_per_node or 0, p.tensor_parallel
    if not per_node:
        around = [Seat(n % p.nodes) for n in range(p.learners + p.samplers)]
        return Seats(around[: p.learners], around[p.learners :])
    _enough(p, learning)
    learners = [Seat(n // per_node, (n % per_node,)) if learning else Seat(n % p.nodes) for n in range(p.learners)]
    samplers = list[Seat]()
    taken = p.learners if learning and p.layout == "disaggregated" else 0
    for n in range(p.samplers):
        node, first = divmod(taken, per_node)
        if first + each > per_node:  # what is left of this node is too little for a whole sampler
            node, first = node + 1, 0
        if node >= p.nodes:
            raise BadInput(
                f"placement: sampler {n + 1} finds no node with {each} free GPUs (placement.tensor_parallel) beside "
                f"{len(learners)} learners; choose placement.learners so that whole nodes, or whole samplers' worth of GPUs, stay"
            )
        samplers.append(Seat(node, tuple(range(first, first + each))))
        taken = node * per_node + first + each
    return Seats(learners, samplers)


def of_a_run(p: Placement, here: int, device: str = "auto") -> Seats:
    """The seats of a run on a machine with ``here`` GPUs, which are shared out as if they were stated where several want one.

    ``device``: the recipe's learner.device. A single learner and sampler without stated GPUs are left to find theirs. Raises
    BadInput where there are too few.
    """
    learning = device != "cpu"
    several = p.samplers > 1 or (learning and (p.learners > 1 or p.layout == "disaggregated"))
    if p.gpus_per_node is None and here and several:
        p = p.model_copy(update={"gpus_per_node": here})
    return seats(p, learning)


def assign(actors: Sequence[Actor], p: Placement) -> list[Placed]:
    """Every actor's place. Actors beside ``seats`` go around the nodes, those that play episodes from the second on, the driver
    to the first. Raises BadInput where there are too few GPUs.
    """
    if p.gpus_per_node and p.gpu_memory_gib is None:
        raise BadInput("placement.gpu_memory_gib: state the memory of one GPU, or take placement.gpus_per_node out")
    learners = [a for a in actors if a.name.startswith("learner")]
    samplers = [a for a in actors if a.name.startswith("sampler")]
    rest = [a for a in actors if a not in learners and a not in samplers]
    found = seats(p, any(a.gpus for a in learners))
    out = [
        Placed(actor, seat.node, seat.gpus)
        for group, chosen in ((learners, found.learners), (samplers, found.samplers))
        for actor, seat in zip(group, chosen, strict=True)
    ]
    out += [Placed(a, 0 if a.name == "driver" else (n + 1) % p.nodes, ()) for n, a in enumerate(rest)]
    return out


def _enough(p: Placement, on_gpus: bool) -> None:
    per_node = p.gpus_per_node or 0
    if p.tensor_parallel > per_node:
        raise BadInput(
            f"placement.tensor_parallel: {p.tensor_parallel}, but a node has {per_node} GPUs (placement.gpus_per_node), and a "
            "sampler lives on one node"
        )
    sampling, learning = p.samplers * p.tensor_parallel, p.learners if on_gpus else 0
    wanted = sampling + learning if p.layout == "disaggregated" else max(sampling, learning)
    if wanted > p.gpus:
        raise BadInput(
            f"placement: {p.samplers} samplers of {p.tensor_parallel} GPUs and {learning} learners, {p.layout}, take {wanted} "
            f"GPUs; {p.nodes} nodes of {per_node} have {p.gpus}. Lower placement.samplers, tensor_parallel or learners, or raise "
            "nodes or gpus_per_node"
        )


def by_gpu(placed: Sequence[Placed]) -> dict[tuple[int, int], list[tuple[str, Part]]]:
    """(node, GPU) -> (actor, part) of all that it holds."""
    out: dict[tuple[int, int], list[tuple[str, Part]]] = defaultdict(list)
    for one in placed:
        for gpu in one.gpus:
            out[one.node, gpu] += [(one.actor.name, part) for part in one.actor.device]
    return dict(sorted(out.items()))


def by_node(placed: Sequence[Placed]) -> dict[int, list[tuple[str, Part]]]:
    """Node -> (actor, part) of all that is in its main memory."""
    out: dict[int, list[tuple[str, Part]]] = defaultdict(list)
    for one in placed:
        out[one.node] += [(one.actor.name, part) for part in one.actor.host]
    return dict(sorted(out.items()))


def require_fit(placed: Sequence[Placed], p: Placement, node_memory: int | None) -> None:
    """Raises BadInput for the first GPU or node that holds too much, naming the largest parts and the keys that mend it.

    ``node_memory``: bytes of a node's main memory, None where it isn't known.
    """
    if p.gpu_memory_gib is not None:
        usable = round(p.gpu_memory_gib * GIB * USABLE)
        for (node, gpu), parts in by_gpu(placed).items():
            _fits(f"GPU {gpu} of node {node}", parts, usable, f"{USABLE:.0%} of placement.gpu_memory_gib")
    if node_memory is not None:
        for node, parts in by_node(placed).items():
            _fits(
                f"main memory of node {node}", parts, node_memory - NODE_OVERHEAD, "placement.node_memory_gib less the system's"
            )


def _fits(where: str, parts: Sequence[tuple[str, Part]], limit: int, limit_name: str) -> None:
    total = sum(part.bytes for _, part in parts)
    if total <= limit:
        return
    largest = sorted(parts, key=lambda ap: -ap[1].bytes)[:3]
    keys = list(dict.fromkeys(part.key for _, part in largest if part.key))
    raise BadInput(
        f"memory: {where} would hold {size(total)}, {size(limit)} are there ({limit_name}): {size(total - limit)} too much. "
        f"Largest parts: {', '.join(f'{actor}: {part.name} {size(part.bytes)}' for actor, part in largest)}. What makes them "
        f"smaller: {', '.join(keys)}; or more or larger GPUs (placement.gpus_per_node, placement.gpu_memory_gib)"
    )


def ranges(numbers: Sequence[int]) -> str:
    """``0-3, 6`` of 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
