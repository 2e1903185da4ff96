"""Activation checkpointing (arXiv:1604.06174, section 4): a decoder layer keeps its input alone and is run again in backward.

The second run has to be the first one once more. So what a layer reads besides its input is put back for it: the rows that the
last MLP is run on, and the routes that the first run took. Our routers choose nothing then, which leaves a replay neither asked
nor told twice. Routers that are not ours (on a GPU without replay) choose again: where its sums differ from one run to the next a
token may go elsewhere, and the gradient is that of the second run. Random numbers are not drawn: a policy has no dropout.

Forwards without a gradient (scoring, those of the base) keep nothing as it is, and run as ever. A base that is split over
learners is put together by hooks around ``forward``, before a layer's backward begins: the second run finds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frontier_tune.experts.routing import trainer

# Called when a layer is run: what is to be entered when it is run again.
Remember = Callable[[], Callable[[], AbstractContextManager[None]]]


class LayerForward:
    """The replaced ``forward`` of a decoder layer."""

    def __init__(self, layer: nn.Module, remember: Remember) -> None:
        self.stock, self.remember = layer.forward, remember
        self.routers = [m for m in layer.modules() if type(m).__name__ in trainer.ROUTERS]

    def __call__(self, hidden_states: Tensor, **others: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.stock(hidden_states, **others)
        out: Tensor = checkpoint(_Run(self, others), hidden_states, use_reentrant=False, preserve_rng_state=False)
        return out

    @contextmanager
    def on(self, routes: list[list[Tensor]]) -> Iterator[None]:
        """While inside, routers whose list is empty leave their routes there, and the others take those of it."""
        # Looked up each time: a replay puts its own forwards there (experts.routing.replay). Stock routers have nothing to set.
        found = [(m.forward, kept) for m, kept in zip(self.routers, routes, strict=True)]
        forwards = [(f, kept) for f, kept in found if isinstance(f, trainer.RouterForward)]
        for forward, kept in forwards:
            forward.kept = kept
        try:
            yield
        finally:
            for forward, _ in forwards:
                forward.kept = None


class _Run:
    """One run of a layer, and the same again at every later call."""

    def __init__(self, layer: LayerForward, others: dict[str, Any]) -> None:
        self.layer, self.others = layer, others
        self.again = layer.remember()
        self.routes: list[list[Tensor]] = [[] for _ in layer.routers]
        self.first = True

    def __call__(self, hidden_states: Tensor) -> Tensor:
        put_back: AbstractContextManager[None] = nullcontext() if self.first else self.again()
        self.first = False
        with put_back, self.layer.on(self.routes):
            out: Tensor = self.layer.stock(hidden_states, **self.others)
        return out


def install(backbone: nn.Module, remember: Remember) -> None:
    """Checkpoint every decoder layer of a transformers model without its head.

    ``remember()`` is called when a layer is run, and what it gives when that layer is run again, around it.
    """
    for layer in backbone.layers:
        layer.forward = LayerForward(layer, remember)
