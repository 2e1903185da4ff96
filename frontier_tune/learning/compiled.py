"""Decoder layers by torch.compile (``learner.compile``): norms, projections with their low-rank updates, rotary, residuals.

What depends on the data stays as it is, between the compiled parts: attention over a pack, routers and experts. One graph serves
all layers of a kind (their parameters are its inputs), so that compiling takes as long for 48 layers as for 4; it takes packs of
any length (``dynamic``). A graph each: with gradients, without, for the base without its adapter, and for the first layer, whose
input takes no gradient. Beyond ``LIMIT`` of them the learner stops with torch's error instead of going on uncompiled unheard.

Traced are the stock modules: inductor makes kernels of their formulas, and the hand-written ones of ``fused`` are taken out of
the layers. Results are those without it but for rounding. Where layers are run again in backward (recompute), both runs are
compiled ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers import AttentionInterface

from frontier_tune.contracts import BadInput
from frontier_tune.learning import attention, recompute

LIMIT = 32  # graphs of one piece of a layer's code; a run needs four, twice that where layers have windows and not


class Compiled:
    """Counts what torch compiles in this process, from the moment that there is one: graphs, and the time that they take."""

    def __init__(self) -> None:
        from torch._dynamo import callback  # seconds to import, which nobody else has to wait for

        self._began, self._seconds, self._taken = 0.0, 0.0, (self._graphs(), 0.0)
        callback.callback_handler.register_start_callback(self._start)
        callback.callback_handler.register_end_callback(self._end)

    def _start(self, _: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, _: Any) -> None:
        self._seconds += time.perf_counter() - self._began

    @staticmethod
    def _graphs() -> int:
        from torch._dynamo.utils import counters

        return int(counters["stats"]["unique_graphs"])

    def metrics(self) -> dict[str, float]:
        """Since the last call: ``graphs_compiled``, and ``compile_seconds``, which lie within the seconds of the phases."""
        now = (self._graphs(), self._seconds)
        (graphs, seconds), self._taken = self._taken, now
        return {"graphs_compiled": now[0] - graphs, "compile_seconds": now[1] - seconds}


def prepare(backbone: nn.Module) -> None:
    """Leave out of what is compiled what depends on the data, and put the stock modules back into the rest."""
    # The same function as ever where nothing is compiled.
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.packed_attention))
    for layer in backbone.layers:
        layer.mlp.forward = torch.compiler.disable(layer.mlp.forward)
        for name, module in layer.named_modules():
            if not name.startswith("mlp") and (type(module) is LoraLinear or type(module).__name__.endswith("RMSNorm")):
                module.__dict__.pop("forward", None)  # what fused put there


def install(backbone: nn.Module, split: bool = False) -> Compiled:
    """Compile every decoder layer of a transformers model without its head; each when it is first run.

    Raises BadInput where the base is ``split`` over learners (hooks put its parameters together around each layer), and where
    torch is told to compile nothing, which it does in silence.
    """
    from torch._dynamo import config

    if split:
        raise BadInput(
            "learner.compile: layers of a split base (placement.shard_base) can't be compiled; set one of them to false"
        )
    if config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise BadInput("learner.compile: TORCHDYNAMO_DISABLE is set in the environment, so torch compiles nothing; unset it")
    prepare(backbone)
    compiled: dict[type[nn.Module], Callable[..., Any]] = {}
    for layer in backbone.layers:
        kind = type(layer)
        if kind not in compiled:
            compiled[kind] = torch.compile(kind.forward, dynamic=True)
        forward = partial(compiled[kind], layer)
        if isinstance(layer.forward, recompute.LayerForward):
            layer.forward.stock = forward
        else:
            layer.forward = forward
    stock = backbone.forward

    def within_the_limit(*args: Any, **kwargs: Any) -> Any:
        with config.patch(recompile_limit=LIMIT, fail_on_recompile_limit_hit=True):
            return stock(*args, **kwargs)

    backbone.forward = within_the_limit
    return Compiled()
