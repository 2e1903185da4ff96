"""Which experts a policy uses, and training confined to some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frontier_tune.contracts import BadInput, Trajectory
from frontier_tune.experts import selection
from frontier_tune.experts.families import family_of, moe_shape
from frontier_tune.experts.selection import Selection
from frontier_tune.learning.model import Policy
from frontier_tune.learning.parallel import World


def _experts_modules(policy: Policy) -> list[nn.Module]:
    """The experts of each MoE layer, as they are called: with LoRA over them, the outermost wrapper."""
    path = family_of(policy.config).experts
    causal: Any = policy.peft.get_base_model()
    return [causal.model.layers[i].get_submodule(path) for i in moe_shape(policy.config).layers]


@contextmanager
def routing_mass(policy: Policy) -> Iterator[Tensor]:
    """While inside, every forward of ``policy`` adds its routing weights to the tensor given: [MoE layers, E], float64.

    Of the last layer only the tokens count that a prediction was asked for: the learner computes no others there. What backward
    computes again counts once.
    """
    shape = moe_shape(policy.config)
    mass_LE = torch.zeros(len(shape.layers), shape.num_experts, dtype=torch.float64)

    def add(row: Tensor, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if policy.recomputing:
            return
        _, expert_TK, weight_TK = arguments
        row.index_add_(0, expert_TK.detach().reshape(-1).cpu().long(), weight_TK.detach().reshape(-1).cpu().double())

    handles = [m.register_forward_pre_hook(partial(add, row)) for m, row in zip(_experts_modules(policy), mass_LE, strict=True)]
    try:
        yield mass_LE
    finally:
        for handle in handles:
            handle.remove()


def select(policy: Policy, mass_LE: Tensor, share: float) -> Selection:
    """The experts that take ``share`` of the routing mass on every layer. Raises BadInput where nothing was measured."""
    return selection.covering(mass_LE, moe_shape(policy.config).layers, share, policy.rank)


def confine(policy: Policy, chosen: Selection) -> None:
    """From now on only the adapters of ``chosen`` experts learn; all others have gradients of zero, so that a fresh adapter
    (B = 0) leaves those experts what they are in the base, exactly.

    Raises BadInput where an expert outside of ``chosen`` is adapted already.
    """
    confined = 0
    for name, parameter in policy.named_parameters():
        place = selection.place(name)
        if place is None:
            continue
        layer, matrix = place
        kept = selection.mask(chosen, layer, matrix).to(parameter.device)
        keep = kept[:, None] if matrix == "A" else kept
        if matrix == "B" and bool((parameter.detach() * ~keep).any()):
            raise BadInput(f"adapter: {name} adapts experts outside of its selection; start a new run, or resume its own")
        policy.confined.append(parameter.register_hook(partial(_kept, keep)))
        confined += 1
    if not confined:
        raise BadInput("adapter.expert_mass: no adapters over experts to select from; set adapter.experts to true")
    policy.selection = chosen


def release(policy: Policy) -> None:
    """Undo ``confine``: every adapted expert learns again."""
    for handle in policy.confined:
        handle.remove()
    policy.confined.clear()
    policy.selection = None


def choose_once(
    policy: Policy, share: float | None, batches: Sequence[Sequence[Trajectory]], score: Any, world: World | None = None
) -> None:
    """Before the first step, where the recipe asks for it (``share``): the experts that its episodes go through are those that
    learn. Several learners take what the first has measured: processors that round otherwise could choose others."""
    if share is None or policy.selection is not None:
        return
    played = [t.tokens for trajectories in batches for t in trajectories if t.trainable and len(t.tokens) > 1]
    if played:  # else no update follows, either
        mass_LE = measured(policy, played, score)
        if world is not None:
            arrays = [mass_LE.numpy() * (world.rank == 0)]
            world.add_arrays(arrays)
            mass_LE = torch.from_numpy(arrays[0])
        confine(policy, select(policy, mass_LE, share))


def _kept(keep: Tensor, gradient: Tensor) -> Tensor:
    return gradient * keep


def measured(policy: Policy, sequences: Sequence[Sequence[int]], score: Any) -> Tensor:
    """Routing mass of ``policy`` over whole sequences. ``score``: the learner's, which runs the policy over them."""
    with routing_mass(policy) as mass_LE:
        score(sequences)
    return mass_LE
