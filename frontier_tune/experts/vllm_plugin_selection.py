"""vLLM reads adapters that hold the chosen experts alone (``experts.selection``); the stock loader demands every expert."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel

from frontier_tune.experts import selection
from frontier_tune.experts.canonical import CONFIG

_stock_load = LoRAModel.from_local_checkpoint.__func__


def _load(cls: Any, lora_dir: str, *args: Any, **kwargs: Any) -> Any:
    found = selection.read(lora_dir)
    if found is None or found[1] == "all":
        return _stock_load(cls, lora_dir, *args, **kwargs)
    with tempfile.TemporaryDirectory(prefix="frontier-tune-") as whole:
        save_file(selection.load_tensors(lora_dir), str(Path(whole) / selection.WEIGHTS), metadata={"format": "pt"})
        shutil.copyfile(Path(lora_dir) / CONFIG, Path(whole) / CONFIG)
        return _stock_load(cls, whole, *args, **kwargs)


def install() -> list[str]:
    """On every platform. Returns what was changed."""
    model: Any = LoRAModel
    model.from_local_checkpoint = classmethod(_load)
    return ["adapters of chosen experts alone can be loaded"]
