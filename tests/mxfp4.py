"""Checkpoints in MXFP4, written by hand from the standard, so that nobody else's packing is taken for granted."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1: OCP Microscaling Formats 1.0, table 3


def quantize(base: Path, out: Path) -> dict[str, Tensor]:
    """Write ``base`` with its experts as random MXFP4 numbers, laid out as in gpt-oss' files; returns these experts' values."""
    g = torch.Generator().manual_seed(5)
    tensors = load_file(base / "model.safetensors")
    values: dict[str, Tensor] = {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        codes = torch.randint(0, 16, (experts, outer, inner // 32, 32), generator=g, dtype=torch.uint8)
        exponent = torch.randint(119, 124, (experts, outer, inner // 32), generator=g, dtype=torch.uint8)
        number = torch.tensor(FP4)[(codes & 7).long()] * (1 - 2 * (codes >> 3).float())
        values[name] = (number * torch.exp2(exponent.float() - 127)[..., None]).flatten(2).mT.contiguous()
        tensors |= {f"{name}_blocks": codes[..., ::2] | codes[..., 1::2] << 4, f"{name}_scales": exponent}
    out.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    (out / "config.json").write_text(json.dumps(config))
    return values
