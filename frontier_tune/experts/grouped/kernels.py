"""Triton programs of the expert layer with LoRA: grouped products whose tiles are found on the device.

Rows are the chosen (token, expert) pairs, sorted by expert and not padded; ``offsets`` [E + 1] tells where an expert's rows
begin. A grid has as many tiles of rows as there can be at most. Each program finds its expert and rows by itself from the
offsets, and one that is left over ends at once, so that the host never learns the counts and never waits for them.

Shapes: T tokens, K chosen experts a token, S = T K rows, E experts, H hidden, I expert width, R rank. All sums are float32;
what goes into a product is of the type of the hidden states. Ranks below 16 are padded within the tile.

A product takes the low-rank path along: ``left A^T`` uses the loads of ``left`` that the base's product makes anyway, and
``(left A^T) B^T`` is added to its sums before they are written. ``left A^T`` is thus made once for each tile of columns, at
BLOCK_R / BLOCK_N of the base's arithmetic, and saves a launch and a pass over ``left``.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _dot(a, b, acc):  # type: ignore[no-untyped-def]
    if INTERPRETED:  # which multiplies bfloat16 by its bits; products of it are exact in float32
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _to(x, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """x, float32, rounded to nearest even, as hardware does; the interpreter cuts bfloat16 off instead."""
    if INTERPRETED and kind == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(kind)


@triton.jit
def _tile(offsets, tile, E, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):  # type: ignore[no-untyped-def]
    """Expert of a tile of rows (E if none is left), its first row, and the end of the expert's rows."""
    e = tl.arange(0, BLOCK_E)
    start = tl.load(offsets + e, mask=e < E, other=0)
    stop = tl.load(offsets + e + 1, mask=e < E, other=0)
    tiles = (stop - start + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(tiles, axis=0)
    expert = tl.sum(((last <= tile) & (e < E)).to(tl.int32), axis=0)
    mine = e == expert
    within = tile - tl.sum(tl.where(mine, last - tiles, 0), axis=0)
    first = tl.sum(tl.where(mine, start, 0), axis=0) + within * BLOCK_M
    return expert, first, tl.sum(tl.where(mine, stop, 0), axis=0)


@triton.jit
def _columns(matrix, n, k, N, K, stride_n, stride_k):  # type: ignore[no-untyped-def]
    """The transposed tile [k, n] of a matrix [N, K]; 0 outside."""
    inside = (k[:, None] < K) & (n[None, :] < N)
    return tl.load(matrix + n[None, :] * stride_n + k[:, None] * stride_k, mask=inside, other=0.0)


@triton.jit
def _rows(matrix, row, real, n, N):  # type: ignore[no-untyped-def]
    """The tile [row, n] of a matrix with N columns; 0 outside."""
    return tl.load(matrix + row[:, None] * N + n[None, :], mask=real[:, None] & (n[None, :] < N), other=0.0)


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    left, row, real, weight, a, n, K, N, R, stride_n, stride_k, LORA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Of rows of left [., K], with weight [N, K] and a [R, K]: left weight^T, columns n, and left a^T."""
    r = tl.arange(0, BLOCK_R)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    low = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        x = _rows(left, row, real, k, K)
        acc = _dot(x, _columns(weight, n, k, N, K, stride_n, stride_k), acc)
        if LORA:
            low = _dot(x, _columns(a, r, k, R, K, K, 1), low)
    return acc, low


@triton.jit
def gate_up_kernel(  # type: ignore[no-untyped-def]
    x, order, offsets, weight, a, b, z, h, low_out, E, K, N, R, stride_e, stride_n, stride_k, scale, TOP_K: tl.constexpr,
    LORA: tl.constexpr, KEEP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """h = silu(gate) * up of [gate | up] = z = x W^T + scale (x a^T) b, for N = I columns of both; x is gathered.

    x [T, K = H], weight [E, 2N, K], a [E, R, K], b [E, R, 2N]; z [S, 2N] and low_out = x a^T [S, R] are written with KEEP.
    """
    columns = tl.cdiv(N, BLOCK_N)
    tile, column = tl.program_id(0) // columns, tl.program_id(0) % columns
    expert, first, stop = _tile(offsets, tile, E, BLOCK_M, BLOCK_E)
    if expert >= E:
        return
    expert = expert.to(tl.int64)
    row = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = row < stop
    token = tl.load(order + row, mask=real, other=0) // TOP_K
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    weight += expert * stride_e
    a += expert * R * K
    b += expert * R * 2 * N
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    low = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        left = _rows(x, token, real, k, K)
        gate = _dot(left, _columns(weight, n, k, N, K, stride_n, stride_k), gate)
        up = _dot(left, _columns(weight + N * stride_n, n, k, N, K, stride_n, stride_k), up)
        if LORA:
            low = _dot(left, _columns(a, r, k, R, K, K, 1), low)
    kind = x.dtype.element_ty
    if LORA:
        rounded = _to(low * scale, kind)
        gate = _dot(rounded, _columns(b, n, r, N, R, 1, 2 * N), gate)
        up = _dot(rounded, _columns(b + N, n, r, N, R, 1, 2 * N), up)
    gate = _to(gate, kind)
    up = _to(up, kind)
    inside = real[:, None] & (n[None, :] < N)
    if KEEP:
        tl.store(z + row[:, None] * (2 * N) + n[None, :], gate, mask=inside)
        tl.store(z + row[:, None] * (2 * N) + N + n[None, :], up, mask=inside)
        if LORA:
            here = real[:, None] & (r[None, :] < R) & (column == 0)
            tl.store(low_out + row[:, None] * R + r[None, :], _to(low, kind), mask=here)
    gate = gate.to(tl.float32)
    tl.store(h + row[:, None] * N + n[None, :], _to(gate * tl.sigmoid(gate) * up.to(tl.float32), kind), mask=inside)


@triton.jit
def project_kernel(  # type: ignore[no-untyped-def]
    left, offsets, weight, a, b, out, low_out, E, K, N, R, stride_e, stride_n, stride_k, scale, LORA: tl.constexpr,
    KEEP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out [S, N] = left [S, K] W^T + scale (left a^T) b; left a^T [S, R] is written to low_out with KEEP.

    weight [E, N, K] in any strides, a [E, R, K], b [E, R, N].
    """
    columns = tl.cdiv(N, BLOCK_N)
    tile, column = tl.program_id(0) // columns, tl.program_id(0) % columns
    expert, first, stop = _tile(offsets, tile, E, BLOCK_M, BLOCK_E)
    if expert >= E:
        return
    expert = expert.to(tl.int64)
    row = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = row < stop
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    acc, low = _multiply(
        left, row, real, weight + expert * stride_e, a + expert * R * K, n, K, N, R, stride_n, stride_k, LORA,
        BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R,
    )  # fmt: skip
    kind = left.dtype.element_ty
    if LORA:
        r = tl.arange(0, BLOCK_R)
        acc = _dot(_to(low * scale, kind), _columns(b + expert * R * N, n, r, N, R, 1, N), acc)
        if KEEP:
            here = real[:, None] & (r[None, :] < R) & (column == 0)
            tl.store(low_out + row[:, None] * R + r[None, :], _to(low, kind), mask=here)
    tl.store(out + row[:, None] * N + n[None, :], _to(acc, kind), mask=real[:, None] & (n[None, :] < N))


@triton.jit
def down_backward_kernel(  # type: ignore[no-untyped-def]
    dout, order, offsets, weight, a, b, z, routing, h, dz, low_out, dweight, S, E, K, N, R, stride_e, stride_n, stride_k, scale,
    TOP_K: tl.constexpr, LORA: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """From dout [T, K = H], gathered, back through the down projection and SwiGLU: h [S, N = I], dz [S, 2N].

    dh = dout W + scale (dout b^T) a without the routing weight, which enters at SwiGLU: d/dw <dout, w y(h)> = <dh, h>, so that y
    need not be kept. ``dweight`` [tiles of columns, S] float32 takes each tile's part of it; low_out [S, R] = w dout b^T.
    weight is down [E, K, N] given by strides as [E, N, K]; a [E, R, K] and b [E, R, N] are LoRA's B and A.
    """
    columns = tl.cdiv(N, BLOCK_N)
    tile, column = tl.program_id(0) // columns, tl.program_id(0) % columns
    expert, first, stop = _tile(offsets, tile, E, BLOCK_M, BLOCK_E)
    if expert >= E:
        return
    expert = expert.to(tl.int64)
    row = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = row < stop
    pair = tl.load(order + row, mask=real, other=0)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    dh, low = _multiply(
        dout, pair // TOP_K, real, weight + expert * stride_e, a + expert * R * K, n, K, N, R, stride_n, stride_k, LORA,
        BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R,
    )  # fmt: skip
    kind = dout.dtype.element_ty
    w = _to(tl.load(routing + pair, mask=real, other=0.0).to(tl.float32), kind).to(tl.float32)[:, None]
    inside = real[:, None] & (n[None, :] < N)
    if LORA:
        r = tl.arange(0, BLOCK_R)
        dh = _dot(_to(low * scale, kind), _columns(b + expert * R * N, n, r, N, R, 1, N), dh)
        here = real[:, None] & (r[None, :] < R) & (column == 0)
        tl.store(low_out + row[:, None] * R + r[None, :], _to(low * w, kind), mask=here)
    gate = tl.load(z + row[:, None] * (2 * N) + n[None, :], mask=inside, other=0.0).to(tl.float32)
    up = tl.load(z + row[:, None] * (2 * N) + N + n[None, :], mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    hidden = _to(silu * up, kind)
    if LORA:
        tl.store(h + row[:, None] * N + n[None, :], hidden, mask=inside)
    if WEIGHTS:
        part = tl.sum(tl.where(inside, dh * hidden.to(tl.float32), 0.0), axis=1)
        tl.store(dweight + column.to(tl.int64) * S + row, part, mask=real)
    dh = dh * w
    dgate = dh * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(dz + row[:, None] * (2 * N) + n[None, :], _to(dgate, kind), mask=inside)
    tl.store(dz + row[:, None] * (2 * N) + N + n[None, :], _to(dh * silu, kind), mask=inside)


@triton.jit
def outer_kernel(  # type: ignore[no-untyped-def]
    low, wide, order, offsets, routing, out, N, R, scale, TOP_K: tl.constexpr, GATHER: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out [E, R, N] = scale * low^T wide over each expert's rows, in their order; 0 for an expert without any.

    low [S, R], times the routing weight with WEIGHTED; wide [S, N], or [T, N] with GATHER.
    """
    columns = tl.cdiv(N, BLOCK_N)
    expert, column = (tl.program_id(0) // columns).to(tl.int64), tl.program_id(0) % columns
    start, stop = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    r = tl.arange(0, BLOCK_R)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    kind = wide.dtype.element_ty
    acc = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for first in range(start, stop, BLOCK_M):
        row = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
        real = row < stop
        source = row
        left = tl.load(low + row[None, :] * R + r[:, None], mask=real[None, :] & (r[:, None] < R), other=0.0)
        if GATHER or WEIGHTED:
            pair = tl.load(order + row, mask=real, other=0)
            if GATHER:
                source = pair // TOP_K
            if WEIGHTED:
                w = _to(tl.load(routing + pair, mask=real, other=0.0).to(tl.float32), kind).to(tl.float32)
                left = _to(left.to(tl.float32) * w[None, :], kind)
        acc = _dot(left, _rows(wide, source, real, n, N), acc)
    inside = (r[:, None] < R) & (n[None, :] < N)
    tl.store(out + (expert * R + r[:, None]) * N + n[None, :], _to(acc * scale, kind), mask=inside)


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    rows, inverse, offsets, routing, out, E, N, TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """out [T, N] = sum over a token's K rows of rows [S, N], (weighted), always in the order of k: no atomics.

    A row of an expert that does not exist was computed by nobody: its token becomes NaN.
    """
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kind = rows.dtype.element_ty
    known, end = tl.load(offsets), tl.load(offsets + E)
    acc = tl.zeros([BLOCK_N], tl.float32)
    for j in range(TOP_K):
        row = tl.load(inverse + token * TOP_K + j)
        value = tl.load(rows + row * N + n, mask=n < N, other=0.0).to(tl.float32)
        if WEIGHTED:
            value = value * _to(tl.load(routing + token * TOP_K + j).to(tl.float32), kind).to(tl.float32)
        acc += tl.where((row >= known) & (row < end), value, float("nan"))
    tl.store(out + token * N + n, _to(acc, kind), mask=n < N)
