"""The routing op as trainer and sampler call it; docs/routing-op.md is its specification.

``torch.ops.frontier_tune.route`` and ``.route_dispatch`` are registered with fake and autograd kernels, so that torch.compile
traces them. Where no gradient is wanted, the functions here call the ``*_forward`` operators, which go from Python straight to
C++: an autograd kernel in Python would cost more than the routing of a decode step.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from frontier_tune.contracts import BadInput
from frontier_tune.native import build

Scoring = Literal["softmax", "sigmoid"]


class Dispatch(NamedTuple):
    """T tokens, K experts a token, G = E * (adapters + 1) groups; the group of expert e and slot s is e * (adapters + 1) + s + 1.

    ``plan`` holds counts, offsets, order, inverse and codes one after the other: one allocation, which a C++ consumer takes as
    it is. The properties are views of it.
    """

    weights: Tensor  # [T, K] float32
    ids: Tensor  # [T, K] int32, best first
    plan: Tensor  # [2G + 1 + 2TK + ceil(TK * code_bytes / 4)] int32
    groups: int
    code_bytes: int

    @property
    def counts(self) -> Tensor:
        """[G] int32: routes of each group."""
        return self.plan[: self.groups]

    @property
    def offsets(self) -> Tensor:
        """[G + 1] int32: where each group begins in ``order``."""
        return self.plan[self.groups : 2 * self.groups + 1]

    def _routes(self, part: int) -> Tensor:
        routes = self.ids.numel()
        return self.plan[2 * self.groups + 1 + part * routes :][:routes]

    @property
    def order(self) -> Tensor:
        """[T * K] int32: sorted position -> t * K + k, stable."""
        return self._routes(0)

    @property
    def inverse(self) -> Tensor:
        """[T * K] int32: t * K + k -> sorted position."""
        return self._routes(1)

    @property
    def codes(self) -> Tensor | None:
        """[T, K] uint8 (up to 256 experts) or uint16: the ids, to keep for a replay; None unless asked for."""
        if not self.code_bytes:
            return None
        dtype = torch.uint8 if self.code_bytes == 1 else torch.uint16
        return self.plan[2 * self.groups + 1 + 2 * self.ids.numel() :].view(dtype)[: self.ids.numel()].view(self.ids.shape)


def route(
    logits: Tensor, k: int, *, scoring: Scoring = "softmax", bias: Tensor | None = None, n_group: int = 1, topk_group: int = 1,
    renormalize: bool = True, scale: float = 1.0, forced: Tensor | None = None, strict: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Choose ``k`` experts a token. Returns weights [T, K] float32 and ids [T, K] int32, best first.

    Args:
        logits: [T, E] float32 or bfloat16; gradients of the weights flow back to it.
        scoring: score of an expert: softmax over all experts, or sigmoid.
        bias: [E] float32, added to the scores for the choice alone (DeepSeek-V3, arXiv:2412.19437, eq. 16).
        n_group: experts lie in this many groups of equal size, of which the ``topk_group`` with the largest sum of their two
            best scores take part.
        renormalize: divide the weights by their sum. ``scale`` multiplies them afterwards.
        forced: [T, K] integers: take these routes (of a replay) instead of choosing; weights are those of ``logits`` there.
        strict: raise RuntimeError for a token without a routing (NaN logits, ...) instead of giving it NaN weights.
    """
    if _forward is None:
        register()
    if not logits.is_contiguous():
        logits = logits.contiguous()
    arguments: tuple[Any, ...]
    if scoring == "softmax" and renormalize and not strict and bias is forced is None and scale == n_group == topk_group == 1:
        arguments = (logits, None, None, k)  # the operator knows the rest: what isn't given needs no conversion
    else:
        forced = None if forced is None else _ids(forced)
        arguments = (logits, bias, forced, k, _sigmoid(scoring), renormalize, scale, n_group, topk_group, strict)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _forward(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.frontier_tune.route(*arguments)
    return _Route.apply(logits, _forward, arguments[1:])


def route_dispatch(
    logits: Tensor, k: int, *, scoring: Scoring = "softmax", bias: Tensor | None = None, n_group: int = 1, topk_group: int = 1,
    renormalize: bool = True, scale: float = 1.0, forced: Tensor | None = None, strict: bool = False,
    slots: Tensor | None = None, adapters: int = 0, codes: bool = False,
) -> Dispatch:  # fmt: skip
    """``route``, and in the same pass the order in which to work: routes sorted by expert, then by adapter slot.

    Args:
        slots: [T] int64, the adapter slot of each token, -1 for none; None where no token has one.
        adapters: number of slots.
        codes: return the ids also as uint8 (up to 256 experts) or uint16, to keep.
    """
    if _dispatch_forward is None:
        register()
    if not logits.is_contiguous():
        logits = logits.contiguous()
    experts, code_bytes = logits.shape[-1], 0
    arguments: tuple[Any, ...]
    if (
        scoring == "softmax" and renormalize and not strict and bias is forced is slots is None
        and scale == n_group == topk_group == 1 and not adapters and not codes
    ):  # fmt: skip
        arguments = (logits, None, None, k)
    else:
        code_bytes = 0 if not codes else 1 if experts <= 256 else 2
        forced = None if forced is None else _ids(forced)
        options = (_sigmoid(scoring), renormalize, scale, n_group, topk_group, strict, slots, adapters, code_bytes)
        arguments = (logits, bias, forced, k, *options)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        weights, ids, plan = _dispatch_forward(*arguments)
    elif torch.compiler.is_compiling():
        weights, ids, plan = torch.ops.frontier_tune.route_dispatch(*arguments)
    else:
        weights, ids, plan = _Route.apply(logits, _dispatch_forward, arguments[1:])
    return Dispatch(weights, ids, plan, experts * (adapters + 1), code_bytes)


def _ids(forced: Tensor) -> Tensor:
    """Forced routes as the kernels take them. What int32 can't hold stays out of range, for them to refuse: it must not wrap."""
    if forced.dtype.is_floating_point or forced.dtype.is_complex or forced.dtype == torch.bool:
        raise BadInput(f"forced: ids of experts are integers, not {forced.dtype}")
    if forced.dtype not in (torch.int32, torch.int16, torch.int8, torch.uint8):
        forced = forced.long().clamp(-1, 2**31 - 1)
    return forced.int().contiguous()


def _sigmoid(scoring: str) -> bool:
    if scoring not in ("softmax", "sigmoid"):
        raise BadInput(f"scoring: {scoring!r}; known are softmax and sigmoid")
    return scoring == "sigmoid"


# Filled by register; before it, the operators do not exist.
_forward: Any = None
_dispatch_forward: Any = None
_route_backward: Any = None


@functools.cache
def register() -> None:
    """Build and load the C++ kernels; give the operators their fake and autograd kernels. Raises BadInput without a compiler."""
    global _forward, _dispatch_forward, _route_backward
    build.load()
    ops = torch.ops.frontier_tune
    for name in ("route", "route_forward"):
        torch.library.register_fake(f"frontier_tune::{name}", _fake_route)
    for name in ("route_dispatch", "route_dispatch_forward"):
        torch.library.register_fake(f"frontier_tune::{name}", _fake_dispatch)
    torch.library.register_fake("frontier_tune::route_backward", _fake_backward)
    torch.library.register_autograd("frontier_tune::route", _backward, setup_context=_setup)
    torch.library.register_autograd("frontier_tune::route_dispatch", _backward, setup_context=_setup)
    _forward, _dispatch_forward = ops.route_forward.default, ops.route_dispatch_forward.default
    _route_backward = ops.route_backward.default
    if torch.cuda.is_available():
        from frontier_tune.experts.routing import triton_kernel

        triton_kernel.install()


# What torch leaves out of a call of a Python kernel is what the schema has as a default.
def _fake_route(logits: Tensor, bias: Any, forced: Any, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], k, dtype=torch.float32), logits.new_empty(logits.shape[0], k, dtype=torch.int32)


def _fake_dispatch(
    logits: Tensor, bias: Any, forced: Any, k: int, sigmoid: bool = False, renormalize: bool = True, scale: float = 1.0,
    n_group: int = 1, topk_group: int = 1, strict: bool = False, slots: Any = None, adapters: int = 0, code_bytes: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    routes, groups = logits.shape[0] * k, logits.shape[1] * (adapters + 1)
    size = 2 * groups + 1 + 2 * routes + (routes * code_bytes + 3) // 4
    return *_fake_route(logits, bias, forced, k), logits.new_empty(size, dtype=torch.int32)


def _fake_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, logits: Tensor, options: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """``options``: of the backward operator, sigmoid, renormalize and scale; none for its defaults."""
    weights, ids, *others = output
    ctx.options = options
    ctx.save_for_backward(logits, ids, weights)
    ctx.mark_non_differentiable(ids, *others)
    ctx.set_materialize_grads(False)  # or zeros would be made for each of them


def _gradient(ctx: Any, grad: Tensor | None) -> Tensor | None:
    if grad is None:
        return None
    logits, ids, weights = ctx.saved_tensors
    gradient: Tensor = _route_backward(grad.contiguous(), logits, ids, weights, *ctx.options)
    return gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, _, _, *options = inputs
    _save(ctx, logits, tuple(options[:3]), output)
    ctx.inputs = len(inputs)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradient(ctx, grad), *(None,) * (ctx.inputs - 1)


class _Route(torch.autograd.Function):
    """What is registered with torch.library, without its way through the dispatcher and back: half the time at T = 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, op: Any, rest: tuple[Any, ...]) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = op(logits, *rest)
        _save(ctx, logits, rest[3:6], output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a graph of the gradient is wanted, which has none
            return _route_gradient_once(ctx, grad)
        return _gradient(ctx, grad), None, None


@once_differentiable
def _route_gradient_once(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradient(ctx, grad), None, None
