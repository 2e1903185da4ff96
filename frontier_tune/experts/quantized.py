"""Checkpoints whose experts are quantized, loaded for training or merging: as what they stand for, in bfloat16.

MXFP4 (OCP Microscaling Formats 1.0, section 5): 4-bit floats in blocks of 32 with a power of two each; every such value is a
bfloat16 one, so that nothing is lost. What is lost is their size: 16 bits for 4.25. transformers unpacks them while it loads, on
whichever device, and one tensor after another; its kernels for packed ones train nothing.
"""

from __future__ import annotations

from typing import Any

from frontier_tune.contracts import BadInput


def method(config: Any) -> str | None:
    """How a checkpoint's weights are quantized, by transformers' name for it; None where they aren't."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    named = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(named, "value", named))


def unpacked(config: Any) -> dict[str, Any]:
    """What ``from_pretrained`` is to be told for a base of this configuration. Raises BadInput for another method than MXFP4."""
    kind = method(config)
    if kind is None:
        return {}
    if kind != "mxfp4":
        raise BadInput(
            f"base: its weights are quantized by {kind}; the learner takes unquantized ones and MXFP4: convert it first"
        )
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def settle(model: Any, dtype: Any) -> None:
    """To be called behind a ``from_pretrained`` that was told so: one type for all parameters, and names as they are.

    The experts come as bfloat16 and norms as float32, whatever was asked for; and ``save_pretrained`` would write the unpacked
    experts under the names of packed ones, which nobody finds again.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model._weight_conversions = None
