"""The canary adapter of the parity gate: same files and names as the policy's, random tensors of known large norm."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frontier_tune.experts import canonical

RELATIVE_NORM = 0.5  # standard deviation of (alpha/r) B A x relative to x, for the A of a fresh adapter


def write(source: str | Path, directory: str | Path, base_config: Any, dtype: str, seed: int = 0) -> Mapping[str, str]:
    """Write a canary shaped like the PEFT adapter in ``source``, into ``directory``; return its canonical digests at ``dtype``.

    Only the experts' B is random where the adapter has experts (else attention's): all other B are 0, so that what the probe
    shows is the experts' doing.
    """
    import torch
    from safetensors.torch import load_file, save_file

    source, directory = Path(source), Path(directory)
    config = json.loads((source / canonical.CONFIG).read_text())
    tensors = load_file(str(source / canonical.WEIGHTS))
    names = {key: canonical.canonical_name(key, base_config) or "" for key in tensors}
    on_experts = any(".experts." in n for n in names.values())
    rank, scaling = int(config["r"]), canonical.scaling_of(config)
    generator = torch.Generator().manual_seed(seed)
    for key, name in names.items():
        shape = tensors[key].shape
        if name.endswith(".A"):
            bound = 1 / math.sqrt(shape[1])  # as kaiming_uniform_(a=sqrt(5)) of a fresh adapter
            tensors[key] = ((torch.rand(shape, generator=generator) * 2 - 1) * bound).to(tensors[key].dtype)
        elif not on_experts or ".experts." in name:
            std = RELATIVE_NORM * math.sqrt(3 / rank) / scaling
            tensors[key] = (torch.randn(shape, generator=generator) * std).to(tensors[key].dtype)
        else:
            tensors[key] = torch.zeros_like(tensors[key])
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_file(tensors, str(directory / canonical.WEIGHTS), metadata={"format": "pt"})
    shutil.copyfile(source / canonical.CONFIG, directory / canonical.CONFIG)
    return canonical.digests(canonical.load(directory, base_config, getattr(torch, dtype)))
