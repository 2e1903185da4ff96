"""What vLLM really holds: an adapter written for vLLM, and the canonical tensors read back from its stacked buffers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from frontier_tune.experts import selection
from frontier_tune.experts.canonical import (
    CONFIG,
    WEIGHTS,
    AdapterMismatch,
    expected_shapes,
    read_config,
    router_name,
    trains_routers,
    verify,
)
from frontier_tune.experts.families import Family, family_of, moe_shape


def vllm_name(name: str, family: Family) -> str:
    """The name under which vLLM looks for a tensor of a PEFT file."""
    head, marker, rest = name.partition(".layers.")
    layer, _, module = rest.partition(".")
    for here, there in ((family.experts, family.vllm_experts), ("self_attn", family.vllm_attention)):
        if marker and module.startswith(here + "."):
            return f"{head}.layers.{layer}.{there}{module[len(here) :]}"
    return name


def write_for_vllm(adapter_dir: str | Path, out_dir: str | Path, config: Any) -> Path:
    """Copy a PEFT adapter to ``out_dir`` with vLLM's module names: the 3-D expert layout, unchanged in every byte of data.

    Where the file has only chosen experts, the others are written as zeros.
    The adapter must have been verified against the base (``canonical.load``). vLLM takes this layout for every family
    when the engine has ``enable_mixed_moe_lora_format`` and the request ``is_3d_lora_weight``. Routers are left out: vLLM takes
    no whole module with an adapter: the plugin's gates get them (``vllm_plugin_router.put``).
    """
    family, out = family_of(config), Path(out_dir)
    out.mkdir(parents=True)
    tensors = selection.load_tensors(adapter_dir)
    low_rank = {vllm_name(name, family): t for name, t in tensors.items() if ".lora_" in name}
    save_file(low_rank, str(out / WEIGHTS), metadata={"format": "pt"})
    peft = read_config(adapter_dir) | {"modules_to_save": None}
    peft["target_modules"] = peft.get("target_modules") or []
    (out / CONFIG).write_text(json.dumps(peft, indent=2))
    return out


def _cut(stack: Tensor, slot: int, rank: int, dim: int, where: str) -> Tensor:
    """The first ``rank`` of the rank dimension of one slot; buffers are as large as the largest rank allowed."""
    t = stack[slot]
    if bool(t.narrow(dim, rank, t.shape[dim] - rank).any()):
        raise AdapterMismatch(f"{where}: the sampler holds more than {rank} ranks")
    return t.narrow(dim, 0, rank)


def _attention(module: Any, slot: int, rank: int, names: tuple[str, ...], at: str) -> dict[str, Tensor]:
    out = {}
    for name, a, b in zip(names, module.lora_a_stacked, module.lora_b_stacked, strict=True):
        out[f"{at}.{name}.A"] = _cut(a, slot, rank, 1, f"{at}.{name}.A")[0]
        out[f"{at}.{name}.B"] = _cut(b, slot, rank, 2, f"{at}.{name}.B")[0]
    return out


def _experts(module: Any, slot: int, rank: int, interleaved: bool, at: str) -> dict[str, Tensor]:
    """vLLM keeps gate and up apart, each with its own copy of A; PEFT has one A and both halves in one B."""
    a13 = [_cut(a, slot, rank, 1, f"{at}.gate_up.A") for a in module.w13_lora_a_stacked]
    b13 = [_cut(b, slot, rank, 2, f"{at}.gate_up.B") for b in module.w13_lora_b_stacked]
    if any(not torch.equal(a13[0], a) for a in a13[1:]):
        raise AdapterMismatch(f"{at}.gate_up.A: the sampler's copies for gate and up differ")
    joined = torch.stack(b13, dim=2).flatten(1, 2) if interleaved and len(b13) == 2 else torch.cat(b13, dim=1)
    return {
        f"{at}.gate_up.A": a13[0],
        f"{at}.gate_up.B": joined,
        f"{at}.down.A": _cut(module.w2_lora_a_stacked[0], slot, rank, 1, f"{at}.down.A"),
        f"{at}.down.B": _cut(module.w2_lora_b_stacked[0], slot, rank, 2, f"{at}.down.B"),
    }


def read(manager: Any, adapter_id: int, config: Any, peft: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical tensors of an adapter from the buffers that vLLM computes with.

    ``manager`` is vLLM's LoRAModelManager, ``adapter_id`` the integer id of an adapter that is in a slot, ``peft`` its
    adapter_config.json. Raises AdapterMismatch where a target has no buffer, or a module that is no target holds weights.
    Tensor-parallel shards are not joined: one worker only.
    """
    if adapter_id not in manager.lora_index_to_id:
        raise AdapterMismatch(f"adapter {adapter_id} is in no slot of the sampler; slots hold {manager.lora_index_to_id}")
    slot, rank = manager.lora_index_to_id.index(adapter_id), int(peft["r"])
    family = family_of(config)
    found: dict[str, Tensor] = {}
    fused = {child: parent for parent, children in family.vllm_packed.items() for child in children}
    wanted = list(peft.get("target_modules") or [])
    moe_layers = set(moe_shape(config).layers) if peft.get("target_parameters") else set()
    for i in range(int(config.num_hidden_layers)):
        base = f"model.layers.{i}"
        for parent in dict.fromkeys(fused.get(m, m) for m in wanted):
            module = manager.modules.get(f"{base}.{family.vllm_attention}.{parent}")
            if module is not None:
                names = family.vllm_packed.get(parent, (parent,))
                found |= _attention(module, slot, rank, names, f"layers.{i}.self_attn")
        if i in moe_layers and (module := manager.modules.get(f"{base}.{family.vllm_experts}")) is not None:
            found |= _experts(module, slot, rank, family.interleaved, f"layers.{i}.experts")
    routers = trains_routers(peft)
    if routers:
        from frontier_tune.experts import vllm_plugin_router  # imports vllm, as only this part has to

        found |= {router_name(i): t for i, t in vllm_plugin_router.held(manager, config, adapter_id).items()}
    expected = expected_shapes(config, wanted, bool(moe_layers), rank, routers)
    tensors = {n: t.detach().to("cpu") for n, t in found.items() if n in expected or bool(t.any())}
    verify(tensors, expected, "adapter in the sampler")
    return {name: tensors[name].contiguous() for name in sorted(tensors)}
