"""The routing op on a GPU: for decode sizes, choice, weights and dispatch in one launch of one program.

A decode step's routing moves a few kilobytes; what it costs on a GPU is the number of launches. One program chooses for all
tokens and finds each route's place by comparing it with all others, which needs no sort, no atomics and no zeroed memory.
Larger batches choose in one launch of many programs, and torch sorts. Group limits, and sizes beyond ``fits``, take
``reference``, which is torch on the device.

``install`` compares every variant with the reference on the device once, and refuses to go on where they differ.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from frontier_tune.experts.routing import reference

MOST_EXPERTS, MOST_CHOSEN, MOST_ROUTES = 1024, 32, 512
BLOCK_GROUPS = 64


@triton.jit
def _choose(  # type: ignore[no-untyped-def]
    logits, bias, forced, weights, ids, first, T, E: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr, scale, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, FORCED: tl.constexpr,
):  # fmt: skip
    """Tokens first .. first + BLOCK_T: chosen ids and weights, written out; returned as tiles [BLOCK_T, BLOCK_K]."""
    t = first + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    row = t < T
    real = e < E
    x = tl.load(logits + t[:, None] * E + e[None, :], mask=row[:, None] & real[None, :], other=-float("inf")).to(tl.float32)
    largest = tl.max(tl.where(x != x, -float("inf"), x), axis=1)
    bad = tl.sum((x != x).to(tl.int32), axis=1) > 0
    if SIGMOID:
        s = 1.0 / (1.0 + tl.exp(-x))
        s = tl.where(s < 1.17549435e-38, 0.0, s)
    else:
        bad = bad | (largest == float("inf")) | (largest == -float("inf"))
        shifted = tl.where(bad[:, None], 0.0, x - tl.where(bad, 0.0, largest)[:, None])
        s = tl.exp(shifted)
        s = s / tl.sum(tl.where(real[None, :], s, 0.0), axis=1)[:, None]
    c = x
    if HAS_BIAS:
        b = tl.load(bias + e, mask=real, other=0.0)
        finite = (b == b) & (tl.abs(b) != float("inf"))
        bad = bad | (tl.sum((~finite).to(tl.int32), axis=0) > 0)
        c = s + b[None, :]
    c = tl.where(bad[:, None], 0.0, c)  # equal everywhere: ids 0 .. K - 1
    left = real[None, :] & (t[:, None] >= 0)
    chosen = tl.full([BLOCK_T, BLOCK_K], -1, tl.int32)
    value = tl.full([BLOCK_T, BLOCK_K], -float("inf"), tl.float32)
    score = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    for j in tl.static_range(K):
        if FORCED:
            best = tl.load(forced + t * K + j, mask=row, other=0)
        else:
            top = tl.max(tl.where(left, c, -float("inf")), axis=1)
            best = tl.min(tl.where(left & (c == top[:, None]), e[None, :], BLOCK_E), axis=1)  # the lowest of equals
        mine = e[None, :] == best[:, None]
        left = left & ~mine
        at = k[None, :] == j
        chosen = tl.where(at, best[:, None], chosen)
        value = tl.where(at, tl.max(tl.where(mine, x, -float("inf")), axis=1)[:, None], value)
        score = tl.where(at, tl.sum(tl.where(mine, s, 0.0), axis=1)[:, None], score)
    used = k[None, :] < K
    if RENORMALIZE and not SIGMOID:
        peak = tl.max(value, axis=1)
        peak = tl.where(bad | (peak == -float("inf")), 0.0, peak)
        score = tl.where(used, tl.exp(value - peak[:, None]), 0.0)
    if RENORMALIZE:
        total = tl.sum(tl.where(used, score, 0.0), axis=1)
        score = score / tl.where(total > 0.0, total, 1.0)[:, None]
    w = tl.where(bad[:, None], float("nan"), score * scale)
    out = t[:, None] * K + k[None, :]
    tl.store(weights + out, w, mask=row[:, None] & used)
    tl.store(ids + out, chosen, mask=row[:, None] & used)


@triton.jit
def _choose_kernel(  # type: ignore[no-untyped-def]
    logits, bias, forced, weights, ids, T, E: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr, scale, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, FORCED: tl.constexpr,
):  # fmt: skip
    _choose(
        logits, bias, forced, weights, ids, tl.program_id(0) * BLOCK_T, T, E, K, BLOCK_T, BLOCK_E, BLOCK_K, scale, SIGMOID,
        RENORMALIZE, HAS_BIAS, FORCED,
    )  # fmt: skip


@triton.jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    logits, bias, forced, weights, ids, slots, counts, offsets, order, inverse, T, E: tl.constexpr, K: tl.constexpr,
    GROUPS, WIDTH, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr, scale, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    FORCED: tl.constexpr, HAS_SLOTS: tl.constexpr,
):  # fmt: skip
    for first in range(0, T, BLOCK_T):
        _choose(
            logits, bias, forced, weights, ids, first, T, E, K, BLOCK_T, BLOCK_E, BLOCK_K, scale, SIGMOID, RENORMALIZE, HAS_BIAS,
            FORCED,
        )  # fmt: skip
    tl.debug_barrier()  # the ids are read back below, by other threads than wrote them
    n = tl.arange(0, BLOCK_N)
    routes = T * K
    group = tl.load(ids + n, mask=n < routes, other=0) * WIDTH
    if HAS_SLOTS:
        group += tl.load(slots + n // K, mask=n < routes, other=-1).to(tl.int32) + 1
    group = tl.where(n < routes, group, GROUPS)  # behind all others
    for i in range(0, routes):
        own = tl.sum(tl.where(n == i, group, 0), axis=0)
        before = (group < own) | ((group == own) & (n < i))
        place = tl.sum(before.to(tl.int32), axis=0)
        tl.store(inverse + i, place)
        tl.store(order + place, i)
    for start in range(0, GROUPS + 1, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        below = tl.sum((group[None, :] < g[:, None]).to(tl.int32), axis=1)
        same = tl.sum((group[None, :] == g[:, None]).to(tl.int32), axis=1)
        tl.store(offsets + g, below, mask=g <= GROUPS)
        tl.store(counts + g, same, mask=g < GROUPS)


def fits(experts: int, k: int, n_group: int, topk_group: int) -> bool:
    """Whether the kernels take these sizes."""
    return experts <= MOST_EXPERTS and k <= MOST_CHOSEN and topk_group == n_group


def _constants(
    logits: Tensor, bias: Tensor | None, forced: Tensor | None, k: int, sigmoid: bool, renormalize: bool, scale: float
) -> dict[str, Any]:
    experts = triton.next_power_of_2(logits.shape[1])
    return {
        "T": logits.shape[0], "E": logits.shape[1], "K": k, "BLOCK_T": max(1, min(16, 4096 // experts)), "BLOCK_E": experts,
        "BLOCK_K": triton.next_power_of_2(k), "scale": scale, "SIGMOID": sigmoid, "RENORMALIZE": renormalize,
        "HAS_BIAS": bias is not None and forced is None, "FORCED": forced is not None,
    }  # fmt: skip


def route(
    logits: Tensor, bias: Tensor | None, forced: Tensor | None, k: int, sigmoid: bool = False, renormalize: bool = True,
    scale: float = 1.0, n_group: int = 1, topk_group: int = 1, strict: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``frontier_tune::route`` on the device of ``logits``. Raises RuntimeError for ``strict``: it would wait for the device."""
    if strict:
        raise RuntimeError("frontier_tune::route: strict would wait for the device: on a GPU, look for NaN weights instead")
    if not fits(logits.shape[1], k, n_group, topk_group):
        return reference.route(
            logits, k, scoring="sigmoid" if sigmoid else "softmax", bias=bias, n_group=n_group, topk_group=topk_group,
            renormalize=renormalize, scale=scale, forced=forced,
        )  # fmt: skip
    weights = logits.new_empty(logits.shape[0], k, dtype=torch.float32)
    ids = torch.empty_like(weights, dtype=torch.int32)
    constants = _constants(logits, bias, forced, k, sigmoid, renormalize, scale)
    if logits.shape[0]:
        grid = (triton.cdiv(logits.shape[0], constants["BLOCK_T"]),)
        _choose_kernel[grid](logits, bias, forced, weights, ids, **constants)
    return weights, ids


def route_dispatch(
    logits: Tensor, bias: Tensor | None, forced: Tensor | None, k: int, sigmoid: bool = False, renormalize: bool = True,
    scale: float = 1.0, n_group: int = 1, topk_group: int = 1, strict: bool = False, slots: Tensor | None = None,
    adapters: int = 0, code_bytes: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``frontier_tune::route_dispatch``: one launch up to MOST_ROUTES routes, besides that of the codes where they are wanted."""
    tokens, experts = logits.shape
    routes, groups = tokens * k, experts * (adapters + 1)
    plan = logits.new_empty(2 * groups + 1 + 2 * routes + (routes * code_bytes + 3) // 4, dtype=torch.int32)
    parts = plan[: 2 * groups + 1 + 2 * routes].split([groups, groups + 1, routes, routes])
    if 0 < routes <= MOST_ROUTES and not strict and fits(experts, k, n_group, topk_group):
        weights = logits.new_empty(tokens, k, dtype=torch.float32)
        ids = torch.empty_like(weights, dtype=torch.int32)
        _decode_kernel[(1,)](
            logits, bias, forced, weights, ids, slots, *parts, GROUPS=groups, WIDTH=adapters + 1,
            BLOCK_N=triton.next_power_of_2(routes), BLOCK_G=BLOCK_GROUPS, HAS_SLOTS=slots is not None,
            **_constants(logits, bias, forced, k, sigmoid, renormalize, scale),
        )  # fmt: skip
    else:
        weights, ids = route(logits, bias, forced, k, sigmoid, renormalize, scale, n_group, topk_group, strict)
        for part, value in zip(parts, reference.dispatch(ids, experts, slots, adapters)):
            part.copy_(value)
    if code_bytes:
        dtype = torch.uint8 if code_bytes == 1 else torch.int16  # uint16 of the same bits; few operators take that
        plan[2 * groups + 1 + 2 * routes :].view(dtype)[:routes].copy_(ids.flatten())
    return weights, ids, plan


def verify(device: torch.device | str) -> None:
    """Raise RuntimeError unless the kernels give on ``device`` what the reference gives: that of decode sizes and the larger one,
    each with bias, forced routes, bfloat16 logits and without adapters."""
    generator = torch.Generator().manual_seed(0)
    for tokens, experts, k in ((1, 16, 2), (5, 40, 3), (33, 128, 8), (80, 128, 8)):  # the last has more than MOST_ROUTES
        logits = torch.randn(tokens, experts, generator=generator).bfloat16()
        logits[0, 0], logits[0, -1] = -torch.inf, -0.0
        logits, slots = logits.to(device), torch.randint(-1, 2, (tokens,), generator=generator).to(device)
        bias = torch.randn(experts, generator=generator).to(device)
        forced = torch.randint(0, experts, (tokens, k), generator=generator).int().to(device)
        for sigmoid, renormalize in itertools.product((False, True), repeat=2):
            scoring: reference.Scoring = "sigmoid" if sigmoid else "softmax"
            for x, b, f, s in (
                (logits.float(), None, None, slots),
                (logits, None, None, slots),
                (logits.float(), bias, None, slots),
                (logits.float(), None, forced, slots),
                (logits.float(), None, None, None),
            ):
                weights, ids = reference.route(x, k, scoring=scoring, bias=b, renormalize=renormalize, scale=1.5, forced=f)
                plan = torch.cat(reference.dispatch(ids, experts, s, 2))
                options = (x, b, f, k, sigmoid, renormalize, 1.5, 1, 1, False)
                got, alone = route_dispatch(*options, s, 2, 0), route(*options)
                same = torch.equal(got[1], ids) and torch.equal(got[2], plan) and torch.equal(alone[1], ids)
                if not (same and all(torch.allclose(w, weights, atol=1e-6) for w in (got[0], alone[0]))):
                    raise RuntimeError(
                        f"the Triton routing kernels differ from their reference on {device} (T {tokens}, E {experts}, K {k}, "
                        f"{x.dtype}, bias {b is not None}, forced {f is not None}, slots {s is not None})"
                    )


def install() -> None:
    """Register the kernels for CUDA, after ``verify`` there."""
    verify("cuda")
    for name, kernel in (("route", route), ("route_dispatch", route_dispatch)):
        for suffix in ("", "_forward"):
            torch.library.impl(f"frontier_tune::{name}{suffix}", "cuda", kernel)
    torch.library.impl("frontier_tune::route_backward", "cuda", reference.backward)
