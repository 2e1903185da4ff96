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

    Raises ValueError where the engine has experts that take adapters, and none of the adapter's would reach one.
    """
    others = {f.experts: f.vllm_experts for f in FAMILIES.values() if f.experts != f.vllm_experts}
    reached = False
    found = [(name, match) for name in adapter if (match := _EXPERTS.fullmatch(name))]
    for name, (layer, experts, rest) in ((name, match.groups()) for name, match in found):
        there = others.get(experts, experts)
        if f"{layer}{experts}" not in modules and f"{layer}{there}" in modules:
            tensors = adapter.pop(name)
            tensors.module_name = f"{layer}{there}{rest}"
            adapter[tensors.module_name] = tensors
            experts = there
        reached |= f"{layer}{experts}" in modules
    if found and not reached and any(_EXPERTS.fullmatch(m) for m in modules):
        raise ValueError(f"it adapts experts that this model does not have: none is called {found[0][1][2]}, as in {found[0][0]}")


def _add(self: Any, lora: Any) -> None:
    rename(lora.loras, self.modules)
    _stock_add(self, lora)


def install() -> list[str]:
    """On every platform. Returns what was changed."""
    manager: Any = LoRAModelManager
    manager._add_adapter = _add
    return ["adapters of experts are found under transformers' names, and refused where no expert would take them"]
