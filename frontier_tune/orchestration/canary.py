"""The canary of the parity gate: an adapter of the policy's files and names with random tensors of known large norm, or, where
all weights learn, the policy with each expert in the place of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.experts import canonical, selection

if TYPE_CHECKING:
    from frontier_tune.learning.learner import Learner

# Standard deviation of (alpha/r) B A x relative to x. Rounding in bfloat16 alone moves the probe by hundredths of a nat a token,
# and the gate's tolerance is a multiple of that: the canary has to be heard above it.
RELATIVE_NORM = {"float32": 0.5, "bfloat16": 1.0}


def overwrite(directory: Path, base_config: Any, dtype: str, seed: int = 0) -> Mapping[str, str]:
    """Turn the PEFT adapter in ``directory`` into a canary; return the canonical digests of it at ``dtype``.

    Routers, where there are some, send each token to other experts: their rows are in reverse order.
    Only the experts' B is random where the adapter has experts (else attention's); all other B are 0, so that what the probe
    shows is the experts' doing. Of a policy with chosen experts only theirs is.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = canonical.read_config(directory)
    tensors = load_file(str(directory / canonical.WEIGHTS))
    names = {key: canonical.canonical_name(key, base_config) or "" for key in tensors}
    on_experts = any(".experts." in n for n in names.values())
    rank, scaling = int(config["r"]), canonical.scaling_of(config)
    generator = torch.Generator().manual_seed(seed)
    for key, name in names.items():
        shape, kind = tensors[key].shape, tensors[key].dtype
        if name.endswith(".A"):
            bound = 1 / math.sqrt(shape[1])  # as kaiming_uniform_(a=sqrt(5)) of a fresh adapter: Ax has std |x| / sqrt(3)
            tensors[key] = ((torch.rand(shape, generator=generator) * 2 - 1) * bound).to(kind)
        elif name.endswith(".router"):
            tensors[key] = tensors[key].flip(0).contiguous()
        elif not on_experts or ".experts." in name:
            spread = RELATIVE_NORM[dtype] * math.sqrt(3 / rank) / scaling
            tensors[key] = (torch.randn(shape, generator=generator) * spread).to(kind)
        else:
            tensors[key] = torch.zeros_like(tensors[key])
    if (written := selection.read(directory)) is not None:
        tensors = selection.narrowed(tensors, written[0])
    save_file(tensors, str(directory / canonical.WEIGHTS), metadata={"format": "pt"})
    return canonical.digests(canonical.load(directory, base_config, getattr(torch, dtype)))


def write_whole(learner: Learner, directory: str, dtype: str) -> Mapping[str, str]:
    """Write the canary of a policy all of whose weights learn; return its canonical digests at ``dtype``."""
    from frontier_tune.learning.full import FullPolicy

    assert isinstance(learner.policy, FullPolicy)
    with learner.policy.canary():
        learner.save_adapter(directory)
        return learner.digests(dtype)
