"""A whole model on its way from the learner to the sampler: its directory, checked, and its weights as the engine holds them.

Where all of a base's weights learn the sampler serves no adapters: its engine reads the base anew at every version. That can fail
without a word (a file half written, a layer that was skipped, a packed copy that nobody made again), so that the engine's own
weights are compared with the learner's, tensor by tensor, as those of an adapter are (``resident``). Names are those of
transformers' modules; routers are float32 whatever the type of the rest: routing is computed in that on both sides.

vLLM's CPU engine packs the matrices of linear layers and drops the originals. They are read as what they do: a matrix applied to
unit vectors gives its columns, each a sum with a single term that is not 0, which no rounding changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frontier_tune.contracts import BadInput
from frontier_tune.experts import native_experts
from frontier_tune.experts.canonical import AdapterMismatch
from frontier_tune.experts.families import FAMILIES, Family, family_of
from frontier_tune.recipe import Adapter

DIGESTS = "digests.json"  # SHA-256 of every other file of the directory
# What the engine is built for: the plugin's CPU experts, and the reload that it mends, come with adapters. No version has one.
ENGINE_ADAPTER = Adapter(rank=1, alpha=1, attention=False)
_ATTENTION = ("q_proj", "k_proj", "v_proj")
_DENSE = ("gate_proj", "up_proj")


def require_family(config: Any) -> Family:
    """The family of a base whose weights can all be trained. Raises BadInput for others."""
    family = family_of(config)
    if family.router is None:
        able = ", ".join(f.label for f in FAMILIES.values() if f.router)
        raise BadInput(
            f"learner.trainable: all weights of {family.label} can't be trained, those of {able} can; set it to adapter"
        )
    return family


def form(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as both sides compare it, on the CPU: at ``dtype`` (routers: float32), numbers too small to be normal as 0, which
    some processors make of them."""
    t = tensor.detach().to("cpu", torch.float32 if is_router(name) else dtype)
    return t.masked_fill(t.abs() < torch.finfo(t.dtype).tiny, 0.0).contiguous()


def is_router(name: str) -> bool:
    return any(f.router and name.endswith(f".{f.router}.weight") for f in FAMILIES.values())


# ---- the directory ------------------------------------------------------------------------------------------------


def write_digests(directory: Path) -> None:
    """List every file of ``directory``."""
    files = {p.name: _digest(p) for p in sorted(directory.iterdir()) if p.name != DIGESTS}
    _write_list(directory, files)


def add_file(directory: Path, name: str, text: str) -> None:
    """Write a file beside those of a model that is listed, and list it. Raises BadInput where the model's own files don't hold:
    what is added must not bless what was damaged."""
    check_files(directory)
    (directory / name).write_text(text)
    listed = json.loads((directory / DIGESTS).read_text())
    _write_list(directory, listed | {name: _digest(directory / name)})


def _write_list(directory: Path, files: Mapping[str, str]) -> None:
    (directory / DIGESTS).write_text(json.dumps(dict(sorted(files.items())), indent=1) + "\n")


def check_files(directory: Path) -> None:
    """Raises BadInput where ``directory`` is no model written by a learner, or a file is not the one that was written."""
    if not (directory / DIGESTS).is_file():
        raise BadInput(f"{directory}: no model that a learner has written ({DIGESTS} is missing)")
    try:
        listed: Mapping[str, str] = json.loads((directory / DIGESTS).read_text())
    except ValueError as e:
        raise BadInput(f"{directory / DIGESTS}: damaged: it is no JSON ({e})") from e
    read = {p.name for p in directory.iterdir() if p.suffix in (".json", ".safetensors")}  # by whoever loads a model
    if more := sorted(read - {DIGESTS} - set(listed)):
        raise BadInput(
            f"{directory}: {', '.join(more)}: not in {DIGESTS}, so not of the model that was written; remove what was added"
        )
    for name, digest in listed.items():
        if not (directory / name).is_file() or _digest(directory / name) != digest:
            raise BadInput(
                f"{directory / name}: is missing, or not the file that was written (its digest is not that of {DIGESTS})"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---- what the engine holds ----------------------------------------------------------------------------------------


def skeleton(config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of a base, tied ones once. No weights are read."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@torch.inference_mode()
def read(model: Any, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight of vLLM's ``model``, in ``form``. Raises AdapterMismatch where one is missing or has another shape."""
    family, shapes = family_of(config), skeleton(config)
    known: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in known:
            known |= _found(model, name, shapes, family)
        if tuple(known[name].shape) != shape:
            raise AdapterMismatch(f"the sampler's {name} is {tuple(known[name].shape)}, the base's {shape}")
    if "lm_head.weight" not in shapes:
        embedding = known["model.embed_tokens.weight"]
        if not torch.equal(_applied(model.lm_head, embedding.shape[1])[: len(embedding)].to(embedding.dtype), embedding):
            raise AdapterMismatch("the sampler's output embedding is not its input embedding, to which it is tied")
    return {name: form(name, known[name], dtype) for name in sorted(shapes)}


def _found(model: Any, name: str, shapes: Mapping[str, tuple[int, ...]], family: Family) -> dict[str, Tensor]:
    """The tensors of the engine's module that holds ``name``: those that are fused with it, too."""
    if name == "model.embed_tokens.weight":
        return {name: model.model.embed_tokens.weight[: shapes[name][0]]}
    if name == "lm_head.weight":
        return {name: _applied(model.lm_head, shapes[name][1])[: shapes[name][0]]}
    prefix, marker, rest = name.partition(f".{family.experts}.")
    if marker:
        return _experts(model.get_submodule(f"{prefix}.{family.vllm_experts}"), f"{prefix}{marker}", family)
    path, _, kind = name.rpartition(".")
    parent, _, child = path.rpartition(".")
    group = next((g for g in (_ATTENTION, _DENSE) if child in g), (child,))
    fused = {_ATTENTION: "qkv_proj", _DENSE: "gate_up_proj"}.get(group, child)
    module = model.get_submodule(_engine_path(f"{parent}.{fused}" if parent else fused, family))
    if len(shapes[name]) == 1 and kind == "weight":
        return {name: module.weight}
    names = [f"{parent}.{c}.{kind}" for c in group]
    together = module.bias if kind == "bias" else _applied(module, shapes[name][1])
    return dict(zip(names, together.split([shapes[n][0] for n in names]), strict=True))


def _engine_path(path: str, family: Family) -> str:
    """A module of transformers as vLLM calls it."""
    for here, there in ((family.router or "", family.vllm_router), ("self_attn", family.vllm_attention)):
        head, marker, rest = path.partition(f".{here}")
        if here and marker and (not rest or rest.startswith(".")):
            return f"{head}.{there}{rest}"
    return path


def _applied(module: Any, inputs: int) -> Tensor:
    """The matrix [out, in] that a linear layer computes with."""
    units = torch.eye(inputs, dtype=module.weight.dtype, device=module.weight.device)
    out: Tensor = module.quant_method.apply(module, units)
    return out.t()


def _experts(wrapper: Any, at: str, family: Family) -> dict[str, Tensor]:
    routed = wrapper.base_layer.routed_experts
    kernel = routed.quant_method.moe_kernel.fused_experts
    weights = (routed.w13_weight, routed.w2_weight)
    both = [native_experts.unpack(w) for w in weights] if kernel.native else kernel._raw
    return dict(zip((f"{at}{family.gate_up}", f"{at}{family.down}"), both, strict=True))
