"""Routes watched and forced: what a model's routers choose for each token, and routes of another time or place in their stead.

A token that the sampler sent to other experts than the trainer does was sampled by another function than is trained. With
routing replay (arXiv:2510.11370, section 4) the trainer takes the recorded routes and weighs them by its own logits, so that the
router still has its gradient: ``op.route`` with ``forced``.

Routes are integers [T, L, K]: rows of a pack, MoE layers in the order of depth, chosen experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frontier_tune.contracts import BadInput
from frontier_tune.experts import families
from frontier_tune.experts.routing import trainer


def code_dtype(experts: int) -> type[np.unsignedinteger[Any]]:
    """What routes are kept in: one byte an id, two from 257 experts on."""
    return np.uint8 if experts <= 256 else np.uint16


@dataclass
class _Watch:
    own_TLK: Tensor
    forced_TLK: Tensor | None
    known_T: Tensor | None


class _WatchedForward(trainer.RouterForward):
    """The router of MoE layer ``index``: tells its own choice to the watch, and takes the forced routes where there are some."""

    def __init__(self, plain: trainer.RouterForward, index: int, replay: Replay) -> None:
        super().__init__(plain.router, plain.renormalize, plain.strict)
        self.index, self.replay = index, replay

    def route(self, logits_TE: Tensor, forced_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        watch = self.replay.watch
        if watch is None or forced_TK is not None:
            return super().route(logits_TE, forced_TK)
        rows = self.replay.rows_of(self.index)
        place = slice(None) if rows is None else rows
        if watch.forced_TLK is None:
            weights_TK, ids_TK = super().route(logits_TE)
            watch.own_TLK[place, self.index] = ids_TK
            return weights_TK, ids_TK
        own_TK = super().route(logits_TE.detach())[1]
        watch.own_TLK[place, self.index] = own_TK
        taken_TK = watch.forced_TLK[place, self.index]
        if watch.known_T is not None:
            taken_TK = torch.where(watch.known_T[place, None], taken_TK, own_TK)
        return super().route(logits_TE, taken_TK)


class Replay:
    """The routers of one model under watch. Outside of ``watching`` they route as ``trainer.install`` makes them.

    Attributes:
        layers: the decoder layers that are MoE, in order: axis L of routes. ``experts``, ``top_k``: E and K.
    """

    def __init__(self, model: nn.Module, config: Any, last_rows: Callable[[], Tensor | None] = lambda: None) -> None:
        """Put the routing op under every router of ``model``.

        Args:
            model: a transformers model or what wraps one.
            config: its configuration.
            last_rows: the rows that the last decoder layer is run on, as an index [M] of the pack's rows; None for all.

        Raises:
            BadInput: a router's convention is not known (DeepSeek's, which chooses by biased scores).
        """
        shape = families.moe_shape(config)
        self.layers, self.experts, self.top_k = shape.layers, shape.num_experts, shape.top_k
        self._last_rows = last_rows if shape.layers[-1] == shape.depth - 1 else lambda: None
        self.watch: _Watch | None = None
        trainer.install(model, strict=False)
        # Where routers are trained there are two a layer. PEFT keeps the base's own as ``original_module``: nobody replays that.
        routers = [
            m
            for name, m in model.named_modules()
            if isinstance(getattr(m, "forward", None), trainer.RouterForward) and not name.endswith(".original_module")
        ]
        if len(routers) != len(shape.layers):
            raise BadInput(
                f"algorithm.replay: routes of {families.family_of(config).label} can't be taken or forced: {len(routers)} of its "
                f"{len(shape.layers)} routers are the routing op's (docs/routing-op.md); set algorithm.replay to none"
            )
        for index, router in enumerate(routers):
            router.forward = _WatchedForward(router.forward, index, self)

    def rows_of(self, index: int) -> Tensor | None:
        """The rows of the pack that MoE layer ``index`` sees; None for all."""
        return self._last_rows() if index == len(self.layers) - 1 else None

    @contextmanager
    def watching(
        self, tokens: int, device: torch.device, forced_TLK: Tensor | None = None, known_T: Tensor | None = None
    ) -> Iterator[Tensor]:
        """While inside, forwards over ``tokens`` rows fill the [T, L, K] int32 that this gives with the routers' own choice.

        Where routes are forced that is what they would have chosen in the states that they are given, and ``forced_TLK`` is
        taken (at rows where ``known_T`` [T] is true; None: at all). A row that the last layer isn't run on stays -1 there.
        """
        shape = (tokens, len(self.layers), self.top_k)
        if forced_TLK is not None and forced_TLK.shape != shape:
            raise ValueError(f"forced routes {tuple(forced_TLK.shape)} for a pack of {shape}")
        own_TLK = torch.full(shape, -1, dtype=torch.int32, device=device)
        outer, self.watch = self.watch, _Watch(own_TLK, forced_TLK, known_T)
        try:
            yield own_TLK
        finally:
            self.watch = outer

    def check(self, routes: np.ndarray, tokens: int, where: str) -> None:
        """Raise ValueError unless ``routes`` are those of at least the first ``tokens`` tokens of a sequence on this model."""
        if routes.ndim != 3 or routes.shape[1:] != (len(self.layers), self.top_k) or len(routes) < tokens:
            raise ValueError(
                f"{where}: routes of shape {routes.shape}; [at least {tokens} tokens, {len(self.layers)} MoE layers, "
                f"{self.top_k} experts] are needed"
            )
        if routes.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{where}: routes of type {routes.dtype}; uint8 or uint16 are expected")
        ordered = np.sort(routes, axis=2)
        if routes.size and (int(ordered[..., -1].max()) >= self.experts or (ordered[..., 1:] == ordered[..., :-1]).any()):
            raise ValueError(f"{where}: a route names an expert beyond {self.experts - 1}, or one twice")
