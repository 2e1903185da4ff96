"""The routing op in plain torch: the executable form of docs/routing-op.md. Slow, differentiable, in float32 or float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scoring = Literal["softmax", "sigmoid"]
SMALLEST = torch.finfo(torch.float32).tiny


def _descending(key_TE: Tensor) -> Tensor:
    """Indices by descending key, the lowest first among equal ones. ``-0.0`` equals ``0.0``."""
    return torch.argsort(-(key_TE + 0.0), dim=-1, stable=True)


def scores(logits_TE: Tensor, scoring: Scoring) -> Tensor:
    """``softmax`` or ``sigmoid`` over the last axis; what is below the smallest normal float32 counts as zero."""
    if scoring == "softmax":
        return torch.softmax(logits_TE, dim=-1)
    s_TE = torch.sigmoid(logits_TE)
    return torch.where(s_TE < SMALLEST, torch.zeros_like(s_TE), s_TE)


def unanswerable(logits_TE: Tensor, scoring: Scoring, bias_E: Tensor | None = None) -> Tensor:
    """[T] bool: rows that have no routing."""
    bad_T = logits_TE.isnan().any(-1)
    if scoring == "softmax":
        bad_T = bad_T | ~logits_TE.amax(-1).isfinite()
    if bias_E is not None:
        bad_T = bad_T | ~bias_E.isfinite().all()
    return bad_T


def choose(
    logits_TE: Tensor, k: int, scoring: Scoring = "softmax", bias_E: Tensor | None = None, n_group: int = 1, topk_group: int = 1
) -> Tensor:
    """Ids [T, K] of the chosen experts, best first. Rows that have no routing are taken as zeros."""
    logits_TE = torch.where(unanswerable(logits_TE, scoring, bias_E)[:, None], torch.zeros_like(logits_TE), logits_TE)
    if bias_E is None and topk_group == n_group:
        return _descending(logits_TE)[:, :k]
    choice_TE = scores(logits_TE, scoring)
    if bias_E is not None:
        choice_TE = choice_TE + torch.nan_to_num(bias_E, 0.0, 0.0, 0.0)
    order_TE = _descending(choice_TE)
    if topk_group < n_group:
        tokens, experts = choice_TE.shape
        grouped = choice_TE.view(tokens, n_group, experts // n_group)
        best_TG = _descending(grouped.topk(2, dim=-1).values.sum(-1))[:, :topk_group]
        allowed_TG = torch.zeros(tokens, n_group, dtype=torch.bool, device=choice_TE.device).scatter_(1, best_TG, True)
        outside_TE = ~allowed_TG.repeat_interleave(experts // n_group, dim=1)
        # experts outside the best groups go behind all others, whose order stays
        order_TE = order_TE.gather(1, torch.argsort(outside_TE.gather(1, order_TE).int(), dim=-1, stable=True))
    return order_TE[:, :k]


def route(
    logits_TE: Tensor, k: int, *, scoring: Scoring = "softmax", bias: Tensor | None = None, n_group: int = 1, topk_group: int = 1,
    renormalize: bool = True, scale: float = 1.0, forced: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weights [T, K] and ids [T, K] (int32), as ``op.route``; a float64 input gives float64 weights (for gradient checks)."""
    logits_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    bad_T1 = unanswerable(logits_TE, scoring, bias if forced is None else None)[:, None]
    if forced is None:
        ids_TK = choose(logits_TE.detach(), k, scoring, bias, n_group, topk_group)
        ids_TK = torch.where(bad_T1, torch.arange(k, device=ids_TK.device), ids_TK)
    else:
        ids_TK = forced.long()
    chosen_TK = logits_TE.gather(1, ids_TK)
    if scoring == "softmax" and renormalize:  # the same as renormalizing the softmax over all, without its underflow
        impossible_T1 = torch.isneginf(chosen_TK).all(-1, keepdim=True)
        weights_TK = torch.softmax(torch.where(impossible_T1, torch.zeros_like(chosen_TK), chosen_TK), dim=-1)
        weights_TK = torch.where(impossible_T1, torch.zeros_like(weights_TK), weights_TK)
    else:
        weights_TK = scores(logits_TE, scoring).gather(1, ids_TK)
        if renormalize:
            total_T1 = weights_TK.sum(-1, keepdim=True)
            weights_TK = weights_TK / torch.where(total_T1 > 0, total_T1, torch.ones_like(total_T1))
    weights_TK = torch.where(bad_T1, torch.full_like(weights_TK, torch.nan), weights_TK * scale)
    return weights_TK, ids_TK.int()


def backward(
    grad_TK: Tensor, logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor, sigmoid: bool = False, renormalize: bool = True,
    scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """dL/dlogits [T, E] from dL/dweights by the equations of the specification, without autograd."""
    x_TE, ids_TK = logits_TE.float(), ids_TK.long()
    dot_T1 = (grad_TK * weights_TK).sum(-1, keepdim=True)
    out_TE = torch.zeros_like(x_TE)
    if sigmoid:
        x_TK = x_TE.gather(1, ids_TK)
        s_TK = scores(x_TK, "sigmoid")
        slope_TK, total_T1 = s_TK * scores(-x_TK, "sigmoid"), s_TK.sum(-1, keepdim=True)
        at_TK = scale * grad_TK * slope_TK
        if renormalize:
            at_TK = torch.where(total_T1 > 0, slope_TK * (scale * grad_TK - dot_T1) / total_T1, 0 * weights_TK)
    elif renormalize:
        at_TK = weights_TK * (grad_TK - dot_T1 / scale)
    else:
        at_TK = grad_TK * weights_TK
        out_TE = -torch.softmax(x_TE, -1) * dot_T1
    return out_TE.scatter_add_(1, ids_TK, at_TK).to(logits_TE.dtype)


def dispatch(
    ids_TK: Tensor, experts: int, slots_T: Tensor | None = None, adapters: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts [G], offsets [G + 1], order [T*K] and inverse [T*K], int32; G = experts * (adapters + 1)."""
    slots_T = ids_TK.new_full((ids_TK.shape[0],), -1) if slots_T is None else slots_T
    group_N = (ids_TK.long() * (adapters + 1) + slots_T[:, None] + 1).flatten()
    counts_G = torch.bincount(group_N, minlength=experts * (adapters + 1))
    offsets = torch.cat([counts_G.new_zeros(1), counts_G.cumsum(0)])
    order_N = torch.argsort(group_N, stable=True)
    inverse_N = torch.empty_like(order_N)
    inverse_N[order_N] = torch.arange(order_N.numel(), device=order_N.device)
    return counts_G.int(), offsets.int(), order_N.int(), inverse_N.int()
