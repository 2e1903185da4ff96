"""Sliding-window attention over a pack: token i sees token j of its own sequence where ``i - window < j <= i``.

Queries are cut into blocks of at most a window. A block's keys are its own and the window before it, gathered along the way to
the root where prefixes are shared: at most two windows, whatever the sequence's length, so that masks and scores grow with the
number of tokens alone. All query heads of a key head are rows of one block. Computed by torch's differentiable SDPA with a mask,
the same on every device; a block's first key stands for the attention sink (``sinks``), and is masked where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frontier_tune.learning import sinks as attention_sinks
from frontier_tune.learning.packing import Packed

_ALIGNED = 16  # keys of a block: GPU kernels want a mask's rows aligned, and copy it elsewhere
_MIN_FILL = 0.8  # blocks of one call are padded to the longest: a shorter one goes to the next call


@dataclass(frozen=True)
class Block:
    """N blocks of one call, of L queries and S keys (the sink's place not counted).

    ``query_NL``, ``key_NS``: the row that each place holds; padding repeats the block's first. ``seen_NLS``: which keys a query
    sees.
    """

    size: tuple[int, int, int]
    query_NL: Tensor
    key_NS: Tensor
    seen_NLS: Tensor
    _masks: dict[tuple[int, torch.dtype, bool], Tensor] = field(default_factory=dict)

    def mask(self, heads: int, dtype: torch.dtype, sink: bool) -> Tensor:
        """What is added to the scores, [N, 1, heads * L, 1 + S]: 0 or minus infinity. Made once a pack, for all layers."""
        key = (heads, dtype, sink)
        if key not in self._masks:
            n, length, keys = self.size
            seen = F.pad(self.seen_NLS, (1, 0), value=sink)[:, None].expand(n, heads, length, 1 + keys)
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[key] = added.view(n, 1, heads * length, 1 + keys)
        return self._masks[key]


def windowed(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, window: int, scale: float, sinks: Tensor | None = None
) -> Tensor:  # fmt: skip
    """q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads, D]. ``sinks`` [heads] or None."""
    _, heads, width = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    if sinks is not None:
        q, k, v = attention_sinks.widened(q, k, v, sinks, scale)
    calls, place_T = plan(packed, window)
    outs = []
    for b in calls:
        n, length, keys = b.size
        qb = q.index_select(0, b.query_NL).view(n, length, kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
        kb, vb = (x.index_select(0, b.key_NS).view(n, keys, kv_heads, -1).transpose(1, 2) for x in (k, v))
        kb, vb = attention_sinks.as_key(kb, vb, sinks is not None)
        o = F.scaled_dot_product_attention(qb, kb, vb, attn_mask=b.mask(group, q.dtype, sinks is not None), scale=scale)
        outs.append(o[..., :width].unflatten(2, (group, length)).permute(0, 3, 1, 2, 4).reshape(n * length, heads, width))
    return torch.cat(outs).index_select(0, place_T)


def plan(packed: Packed, window: int) -> tuple[list[Block], Tensor]:
    """The calls for layers with this window, and each row's place [T] among all their queries; laid out once a pack."""
    if window not in packed.windows:
        packed.windows[window] = _grouped(_pieces(packed.segments_S3.tolist(), window), window, packed.tokens_T.device)
    found: tuple[list[Block], Tensor] = packed.windows[window]
    return found


# Of one block: its rows, the rows of its keys, and the position of the first of each.
_Piece = tuple[np.ndarray, np.ndarray, int, int]


def _pieces(segments: list[list[int]], window: int) -> list[_Piece]:
    starts: list[int] = []  # position of each segment's first row in its sequence
    out: list[_Piece] = []
    for first, count, parent in segments:
        start = 0 if parent < 0 else starts[parent] + segments[parent][1]
        starts.append(start)
        before = _path(segments, parent, window - 1)
        path = np.concatenate([*before, np.arange(first, first + count)])
        ahead = len(path) - count
        for at in range(0, count, window):
            end = min(at + window, count)
            since = max(0, ahead + at - (window - 1))
            queries = np.arange(first + at, first + end)
            out.append((queries, path[since : ahead + end], start + at, start - ahead + since))
    return out


def _path(segments: list[list[int]], segment: int, wanted: int) -> list[np.ndarray]:
    """The last ``wanted`` rows of the way from the root to the end of ``segment``, in order."""
    parts: list[np.ndarray] = []
    while segment >= 0 and wanted > 0:
        first, count, parent = segments[segment]
        taken = min(count, wanted)
        parts.append(np.arange(first + count - taken, first + count))
        wanted, segment = wanted - taken, parent
    return parts[::-1]


def _grouped(pieces: list[_Piece], window: int, device: torch.device) -> tuple[list[Block], Tensor]:
    out: list[Block] = []
    place, before = np.empty(sum(len(p[0]) for p in pieces), np.int64), 0
    ordered = sorted(pieces, key=lambda p: -len(p[0]))
    while ordered:
        longest = len(ordered[0][0])
        count = next((n for n, p in enumerate(ordered) if len(p[0]) < _MIN_FILL * longest), len(ordered))
        members, ordered = ordered[:count], ordered[count:]
        most = max(len(p[1]) for p in members)
        keys = -(-(most + 1) // _ALIGNED) * _ALIGNED - 1
        query_row, key_row = np.empty((count, longest), np.int64), np.empty((count, keys), np.int64)
        query_at, key_at = np.empty((count, longest), np.int64), np.full((count, keys), np.iinfo(np.int64).max)
        real = np.zeros((count, longest), bool)
        for n, (queries, path, first_query, first_key) in enumerate(members):
            length = len(queries)
            query_row[n], key_row[n], query_at[n] = queries[0], path[0], first_query
            query_row[n, :length], key_row[n, : len(path)] = queries, path
            query_at[n, :length] = np.arange(first_query, first_query + length)
            key_at[n, : len(path)] = np.arange(first_key, first_key + len(path))
            real[n, :length] = True
        behind = query_at[:, :, None] - key_at[:, None, :]
        seen = (behind >= 0) & (behind < window)
        place[query_row[real]] = before + np.flatnonzero(real)
        before += count * longest
        arrays = (query_row.reshape(-1), key_row.reshape(-1), seen)
        out.append(Block((count, longest, keys), *(torch.from_numpy(a).to(device) for a in arrays)))
    return out, torch.from_numpy(place).to(device)
