"""A frozen base that is split over the data-parallel learners by FSDP2 (torch.distributed.fsdp.fully_shard; arXiv:2304.11277).

Each learner keeps its rows of every matrix (the first dimension: of experts, whole experts). A decoder layer is put together
before its forward and again before its backward, and dropped after each: FSDP2 gathers it into the same tensors both times, so
that what an autograd function kept for backward, and the native kernels' pointers, are valid again. It does so whether or not a
parameter takes a gradient; here none does, so nothing is scattered back. The adapter is put on afterwards, is whole on every
learner, and its gradients are added up as ever (parallel.World). So are vectors and routers, which are next to nothing.

Every forward and backward of one learner takes part in all others': they must run equally many (passes.Passes.rounds).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from frontier_tune.contracts import BadInput
from frontier_tune.learning.base_weights import BaseWeights

# Names in a checkpoint that no module of today has: transformers' loader passes over them as well.
_OBSOLETE = (r"rotary_emb\.inv_freq", r"position_ids")


def shard(causal: Any, mesh: DeviceMesh) -> None:
    """Split a transformers model of one of our families over ``mesh``. Its parameters may be on the meta device."""
    backbone, head = causal.model, causal.lm_head
    whole = {
        p for m in causal.modules() for p in m.parameters(recurse=False) if p.ndim < 2 or type(m).__name__.endswith("Router")
    }
    # By name: FSDP2 would keep the outermost module's parameters together from forward to backward, and so the head's.
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": whole}
    for layer in backbone.layers:
        fully_shard(layer, **options)
    # In backward each layer has the one before it fetched. Before the first FSDP2 would take whatever ran before this pass (the
    # last layer, after a forward by the base), in vain: a layer that is here already is not fetched.
    backbone.layers[0].set_modules_to_backward_prefetch([backbone.layers[0]])
    one_matrix = tied(causal)
    fully_shard(backbone.embed_tokens, **options)
    if one_matrix:
        head.weight = backbone.embed_tokens.weight  # the share of it, which has taken its place there
    else:
        fully_shard(head, **options)
    fully_shard(backbone, **options)  # nothing is left to split: it ties the layers together, so that each fetches the next


def tied(causal: Any) -> bool:
    return causal.lm_head.weight is causal.model.embed_tokens.weight


def projection(causal: Any, project: Callable[..., Any]) -> Callable[..., Any]:
    """``project(hidden, weight, ...)`` as a function of the rest, with the output embedding put together around it.

    Where it is tied to the input embedding there is one share of both, and that module's gathering serves both.
    """
    owner = causal.model.embed_tokens if tied(causal) else causal.lm_head
    owner.project = lambda hidden, *rest: project(hidden, owner.weight, *rest)
    register_fsdp_forward_method(owner, "project")
    found: Callable[..., Any] = owner.project
    return found


def load(causal: Any, weights: BaseWeights, dtype: torch.dtype, device: torch.device) -> None:
    """Give a model on the meta device its parameters, and of those that are split this rank's rows alone, one after another.

    Raises BadInput where files and model don't fit, before anything is read.
    """
    was_tied = tied(causal)
    float32 = tuple(causal._keep_in_fp32_modules_strict or ())
    wanted: dict[str, Tensor] = dict(causal.named_parameters())
    wanted |= {name: b for name, b in causal.named_buffers() if name in causal.state_dict()}
    _require_fit(causal, weights, {name: tuple(t.shape) for name, t in wanted.items()})
    state: dict[str, Tensor] = {}
    for name, t in wanted.items():
        mine = t.to_local() if isinstance(t, DTensor) else t
        kept = torch.float32 if any(part in name for part in float32) else dtype
        values = torch.empty(mine.shape, dtype=kept, device=device)
        weights.read(name, _first_row(t), values)
        state[name] = values
        if isinstance(t, DTensor):
            state[name] = DTensor.from_local(
                values, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride()
            )
    causal.load_state_dict(state, strict=False, assign=True)
    if was_tied:
        causal.lm_head.weight = causal.model.embed_tokens.weight
    for name, module in list(causal.named_modules()):
        if "RotaryEmbedding" in type(module).__name__:  # its frequencies are in no file: they follow from the configuration
            causal.set_submodule(name, type(module)(causal.config).to(device))
    if left := [n for n, t in (*causal.named_parameters(), *causal.named_buffers()) if t.is_meta]:
        raise BadInput(f"base: placement.shard_base: {len(left)} tensors have no values ({', '.join(left[:3])}); set it to false")


def _first_row(t: Tensor) -> int:
    """Of the rows that are this rank's: as ``torch.chunk`` splits them."""
    if not isinstance(t, DTensor):
        return 0
    rank, size = t.device_mesh.get_local_rank(), t.device_mesh.size()
    return min(rank * -(-len(t) // size), len(t))


def _require_fit(causal: Any, weights: BaseWeights, shapes: dict[str, tuple[int, ...]]) -> None:
    passed_over = (*_OBSOLETE, *(causal._keys_to_ignore_on_load_unexpected or ()))
    if tied(causal):
        passed_over += (r"^lm_head\.weight$",)
    there = {name for name in weights.names if not any(re.search(p, name) for p in passed_over)}
    problems = {
        "missing": sorted(shapes.keys() - there),
        "unexpected": sorted(there - shapes.keys()),
        "mismatched": sorted(name for name in shapes.keys() & there if weights.shape(name) != shapes[name]),
    }
    if any(problems.values()):
        shown = "; ".join(f"{len(v)} {k} ({', '.join(v[:3])})" for k, v in problems.items() if v)
        raise BadInput(f"base: the weights in {weights.directory} don't fit its config.json: {shown}")


def digest(weights: BaseWeights, name: str, dtype: torch.dtype) -> str:
    """As ``experts.canonical.digest`` of a whole parameter in ``dtype``, from the files, a few rows at a time."""
    shape = weights.shape(name)
    h = hashlib.sha256(f"{dtype}{shape}".encode())
    for start in range(0, shape[0], 4096):
        rows = torch.empty(min(4096, shape[0] - start), *shape[1:], dtype=dtype)
        weights.read(name, start, rows)
        h.update(rows.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def own_bytes(model: nn.Module) -> int:
    """Bytes of the frozen parameters that this rank keeps."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return sum(p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes for p in frozen)
