"""Expert adapters that bear the names of transformers reach the modules of vLLM that hold those experts, or are refused.

vLLM calls the experts of some bases otherwise than transformers, and so PEFT's files (Mixtral: ``block_sparse_moe``), and its own
mapper does not rename them. Of an adapter whose modules it doesn't have it takes the rest and serves the base there, without a
word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, MutableMapping
from typing import Any

from vllm.lora.model_manager import LoRAModelManager

from frontier_tune.experts.families import FAMILIES

_EXPERTS = re.compile(r"(.*\blayers\.\d+\.)(.*\bexperts)\b(.*)")
_stock_add = LoRAModelManager._add_adapter


def rename(adapter: MutableMapping[str, Any], modules: Collection[str]) -> None:
    """Give an adapter's tensors of experts the names of the engine's ``modules``, where these differ by family alone.

    Raises ValueError where a layer has experts that take adapters, and the adapter's for that layer would not reach them. A layer
    that isn't here is another rank's.
    """
    others = {f.experts: f.vllm_experts for f in FAMILIES.values() if f.experts != f.vllm_experts}
    here = {match[1]: match[2] for m in modules if (match := _EXPERTS.fullmatch(m))}
    for name, match in [(name, match) for name in adapter if (match := _EXPERTS.fullmatch(name))]:
        layer, experts, rest = match.groups()
        there = here.get(layer, experts)
        if experts == there:
            continue
        if others.get(experts) != there:
            raise ValueError(f"it adapts {experts} of {layer.rstrip('.')}, and this model's experts there are called {there}")
        tensors = adapter.pop(name)
        tensors.module_name = f"{layer}{there}{rest}"
        adapter[tensors.module_name] = tensors


def _add(self: Any, lora: Any) -> None:
    rename(lora.loras, self.modules)
    _stock_add(self, lora)


def install() -> list[str]:
    """On every platform. Returns what was changed."""
    manager: Any = LoRAModelManager
    manager._add_adapter = _add
    return ["adapters of experts are found under transformers' names, and refused where no expert would take them"]
