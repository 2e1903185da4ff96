"""The canonical form of an adapter: one stable name, shape and scale for every tensor, whoever holds it.

A LoRA adapter (arXiv:2106.09685) lives in three layouts on its way from the learner to the sampler: PEFT's file, vLLM's
copy of that file, and the stacked buffers resident in vLLM. All of them read to the same dictionary here, so that equal
adapters have equal SHA-256 digests at a given dtype and a transposed, dropped or mis-scaled tensor has another one.

Names: ``layers.<i>.self_attn.<projection>.A`` [r, in] and ``.B`` [out, r]; ``layers.<i>.experts.gate_up.A`` [E, r, H] and
``.B`` [E, 2I, r]; ``layers.<i>.experts.down.A`` [E, r, I] and ``.B`` [E, H, r]. The scale is folded into B as vLLM does it:
cast to the serving dtype first, then multiply in that dtype. Where routers are trained, ``layers.<i>.router`` [E, H] is a whole
matrix, in float32 whatever the serving dtype: routing is computed in that on both sides.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frontier_tune.contracts import BadInput, GateFailed
from frontier_tune.experts import selection
from frontier_tune.experts.families import FAMILIES, attention_projections, family_of, moe_shape, router_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# PEFT options that change what the tensors mean and that neither the learner nor vLLM implement.
UNSUPPORTED = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "use_qalora"),
    *("use_bdlora", "alora_invocation_tokens", "fan_in_fan_out"),
)
# Starts that leave the base as it is; with PEFT's others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) an adapter fits a changed base.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_LAYER = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(.+)\.lora_([AB])(?:\.\w+)?(?:\.weight)?$")

_WHOLE = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(.+)\.weight")


class AdapterMismatch(GateFailed):
    """Tensors of an adapter are missing, left over, or of another shape than the base asks for."""


def expected_shapes(
    config: Any, modules: Iterable[str], experts: bool, rank: int, routers: bool = False
) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that an adapter with these targets has on a base of ``config``."""
    known = attention_projections(config)
    unknown = [m for m in modules if m not in known]
    if unknown:
        raise BadInput(f"adapter: target modules {unknown} match 0 modules of this base; attention has {list(known)}")
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(int(config.num_hidden_layers)):
        for m in modules:
            n_in, n_out = known[m]
            shapes[f"layers.{i}.self_attn.{m}.A"] = (rank, n_in)
            shapes[f"layers.{i}.self_attn.{m}.B"] = (n_out, rank)
    if experts:
        s = moe_shape(config)
        for i in s.layers:
            at = f"layers.{i}.experts"
            shapes[f"{at}.gate_up.A"] = (s.num_experts, rank, s.hidden)
            shapes[f"{at}.gate_up.B"] = (s.num_experts, 2 * s.expert_width, rank)
            shapes[f"{at}.down.A"] = (s.num_experts, rank, s.expert_width)
            shapes[f"{at}.down.B"] = (s.num_experts, s.hidden, rank)
    if routers:
        s = moe_shape(config)
        shapes |= {router_name(i): (s.num_experts, s.hidden) for i in s.layers}
    return shapes


def router_name(layer: int) -> str:
    """What the router of a decoder layer is called."""
    return f"layers.{layer}.router"


def trains_routers(peft: Mapping[str, Any]) -> bool:
    """Whether an adapter of this adapter_config.json brings routers' weights, and no other module whole."""
    named = peft.get("modules_to_save") or []
    return bool(named) and set(named) <= {f.router for f in FAMILIES.values()}


def verify(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str, unused: Iterable[str] = ()
) -> None:
    """Raise AdapterMismatch (names and counts) unless ``tensors`` are exactly ``expected`` and nothing was left unused."""
    missing = [n for n in expected if n not in tensors]
    extra = [n for n in tensors if n not in expected] + list(unused)
    wrong = [
        f"{n} {tuple(t.shape)}, expected {expected[n]}"
        for n, t in tensors.items()
        if n in expected and tuple(t.shape) != expected[n]
    ]
    if missing or extra or wrong:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for what, names in (("missing", missing), ("not used", extra), ("of another shape", wrong))
            if names
        ]
        raise AdapterMismatch(f"{where}: of {len(expected)} tensors that this base's adapter has, {'; '.join(parts)}")


def canonical_name(name: str, config: Any) -> str | None:
    """The canonical name of a tensor named as in a PEFT file (or a PEFT state dict), or None where it has no place there."""
    match = _LAYER.fullmatch(name)
    if not match:
        whole = _WHOLE.fullmatch(name)
        return router_name(int(whole[1])) if whole and whole[2] == family_of(config).router else None
    layer, module, ab = match.groups()
    experts = family_of(config).experts
    if module == f"{experts}.base_layer":  # PEFT nests: the first target parameter is the inner wrapper
        return f"layers.{layer}.experts.gate_up.{ab}"
    if module == experts:
        return f"layers.{layer}.experts.down.{ab}"
    return f"layers.{layer}.{module}.{ab}" if module.startswith("self_attn.") else None


def from_state(
    state: Mapping[str, Tensor], config: Any, rank: int, scaling: float, dtype: torch.dtype
) -> tuple[dict[str, Tensor], list[str]]:
    """Canonical tensors of a PEFT state dict (peft >= 0.19.1 layout), and the names of those that it can't place.

    PEFT stacks experts into plain matrices: A [E*r, in] is expert-major, B [out, r*E] is rank-major with the expert
    running fastest. A tensor whose sizes don't divide that way is passed on as it is, for ``verify`` to refuse.
    """
    out: dict[str, Tensor] = {}
    unused: list[str] = []
    for key, value in state.items():
        name = canonical_name(key, config)
        if name is None or name in out:
            unused.append(key)
            continue
        t = value.detach().to("cpu", torch.float32 if name.endswith(".router") else dtype)
        if ".experts." in name:
            n = moe_shape(config).num_experts
            if name.endswith(".A") and t.shape[0] == n * rank:
                t = t.reshape(n, rank, -1)
            elif name.endswith(".B") and t.shape[-1] == n * rank:
                t = t.reshape(-1, rank, n).permute(2, 0, 1)
        out[name] = (t * scaling if name.endswith(".B") and scaling != 1 else t).contiguous()
    return out, unused


def read_config(adapter_dir: str | Path) -> dict[str, Any]:
    """adapter_config.json, checked for options that would be ignored. Raises BadInput."""
    path = Path(adapter_dir) / CONFIG
    if not path.is_file() or not (path.parent / WEIGHTS).is_file():
        raise BadInput(f"{path.parent}: no adapter here; a PEFT adapter is a directory with {CONFIG} and {WEIGHTS}")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise BadInput(f"{path}: not valid JSON: {e}") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path}: not PEFT's configuration of an adapter, which is an object")
    bad = [key for key in UNSUPPORTED if config.get(key) and not (key == "modules_to_save" and trains_routers(config))]
    bad += [] if config.get("bias", "none") == "none" else ["bias"]
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"].lower() not in _PLAIN_STARTS:
        bad.append(f"init_lora_weights '{config['init_lora_weights']}'")  # such starts change the base's weights
    if config.get("peft_type") != "LORA" or bad:
        raise BadInput(
            f"{path}: only plain LoRA adapters work here; this one is {config.get('peft_type')}"
            + (f" with {', '.join(bad)}" if bad else "")
            + "; turn it into a plain one with PEFT, or merge it into the base"
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise BadInput(f"{path}: {key} is {value!r}; it must be a number above 0")
    if not isinstance(config.get("target_modules") or [], list):
        raise BadInput(f"{path}: target_modules is a pattern; list the module names instead")
    return config


def scaling_of(config: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA (arXiv:2312.03732)."""
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def load(adapter_dir: str | Path, config: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Canonical tensors of a PEFT adapter directory for a base of ``config`` (a transformers configuration).

    Raises BadInput where the directory is no plain LoRA adapter, AdapterMismatch where a tensor of the file is not used
    or a target of the configuration has no tensor.
    """
    peft = read_config(adapter_dir)
    rank, targets = int(peft["r"]), peft.get("target_parameters") or []
    wanted = family_of(config).target_parameters
    if targets and sorted(targets) != sorted(wanted):
        raise BadInput(f"{adapter_dir}: target_parameters {targets} match 0 or some of this base's expert parameters {wanted}")
    routers = trains_routers(peft)
    if routers and peft["modules_to_save"] != [router_of(config)]:
        raise BadInput(f"{adapter_dir}: modules_to_save {peft['modules_to_save']} are not the routers of this base")
    expected = expected_shapes(config, peft.get("target_modules") or [], bool(targets), rank, routers)
    tensors, unused = from_state(selection.load_tensors(adapter_dir), config, rank, scaling_of(peft), dtype)
    verify(tensors, expected, str(adapter_dir), unused)
    return {name: tensors[name] for name in sorted(tensors)}


def digest(tensor: Tensor) -> str:
    """SHA-256 (hex) of dtype, shape and bytes."""
    t = tensor.detach().to("cpu").contiguous()
    h = hashlib.sha256(f"{t.dtype}{tuple(t.shape)}".encode())
    h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Digest of each canonical tensor, by name in sorted order. Compare two sides with ``==``."""
    return {name: digest(tensors[name]) for name in sorted(tensors)}
