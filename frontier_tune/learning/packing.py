"""Sequences as flat rows without padding, with the prefix that a group's members share held once.

In causal attention the state of a token depends on the tokens before it alone. Members of a GRPO group begin with the same
prompt, so its rows (and everything computed on them) are the same for all of them: they are computed once, and the members'
gradients meet there by addition. This is exact, not an approximation, and saves about the share of tokens that prompts are.

A pack consists of *segments*: a prefix, or the rest of one member after it. Every segment attends causally to itself, and the
rests of a group, which lie one after another, attend in full to their prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Segments of one attention call are padded to the longest: a shorter one goes to the next call.
_MIN_FILL = 0.8


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length, as one padded [N, L] block of attention.

    ``row_NL`` [N * L]: the row that each slot holds (0 at padding); ``slot_R``, ``row_R``: slots and rows of the real tokens.
    """

    size: tuple[int, int]
    row_NL: Tensor
    slot_R: Tensor
    row_R: Tensor


@dataclass(frozen=True)
class Packed:
    """``tokens_T`` and ``positions_T`` [T] are the rows; ``cross`` are (suffix rows, prefix rows) that attend in full.

    ``spans[i]``: (start, length) of sequence i's prefix, and the start of its rest.
    """

    tokens_T: Tensor
    positions_T: Tensor
    buckets: list[Bucket]
    cross: list[tuple[slice, slice]]
    spans: list[tuple[int, int, int]]

    def rows(self, sequence: int, positions: np.ndarray) -> np.ndarray:
        """Rows at which ``positions`` of a sequence lie."""
        start, length, rest = self.spans[sequence]
        return np.where(positions < length, start + positions, rest + positions - length)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all sequences share."""
    lists = [list(s) for s in sequences]
    low, high = min(lists), max(lists)  # lexicographic: what these two share, all share
    shortest = min(len(low), len(high))
    a, b = np.asarray(low[:shortest]), np.asarray(high[:shortest])
    differs = np.flatnonzero(a != b)
    return int(differs[0]) if len(differs) else shortest


def _units(sequences: Sequence[Sequence[int]], groups: Sequence[int] | None) -> list[list[int]]:
    by_group: dict[int, list[int]] = {}
    for i in range(len(sequences)):
        by_group.setdefault(i if groups is None else groups[i], []).append(i)
    return list(by_group.values())


def plan(sequences: Sequence[Sequence[int]], groups: Sequence[int] | None, budget: int) -> list[list[int]]:
    """Sequences of each micro-batch, such that each has at most ``budget`` rows (more only where one sequence alone has more).

    ``groups[i]`` names the group of sequence i (None: no two belong together). Members stay together while they fit.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    used = 0
    for unit in _units(sequences, groups):
        prefix = common_prefix([sequences[i] for i in unit]) if len(unit) > 1 else 0
        fresh = True  # the prefix counts once a micro-batch
        for i in unit:
            rows = len(sequences[i]) - prefix + (prefix if fresh else 0)
            if current and used + rows > budget:
                batches.append(current)
                current, used, rows = [], 0, len(sequences[i])
            current.append(i)
            used += rows
            fresh = False
    if current:
        batches.append(current)
    return batches


def pack(sequences: Sequence[Sequence[int]], groups: Sequence[int] | None = None, device: torch.device | str = "cpu") -> Packed:
    """Lay sequences out as rows. Sequences of one group share the rows of their common prefix. None may be empty."""
    if any(len(s) == 0 for s in sequences):
        raise ValueError("an empty sequence can't be packed")
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[tuple[int, int]] = []
    cross: list[tuple[slice, slice]] = []
    spans: list[tuple[int, int, int]] = [(0, 0, 0)] * len(sequences)
    total = 0

    def add(ids: Sequence[int], first: int) -> int:
        nonlocal total
        start = total
        if len(ids):
            tokens.append(np.asarray(ids, dtype=np.int64))
            positions.append(np.arange(first, first + len(ids)))
            segments.append((start, len(ids)))
            total += len(ids)
        return start

    for unit in _units(sequences, groups):
        prefix = common_prefix([sequences[i] for i in unit])
        start = add(sequences[unit[0]][:prefix], 0)
        rest = total
        for i in unit:
            spans[i] = (start, prefix, add(sequences[i][prefix:], prefix))
        if prefix and total > rest:
            cross.append((slice(rest, total), slice(start, start + prefix)))

    def tensor(values: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(values)).to(device)

    return Packed(tensor(tokens), tensor(positions), [b for b in _buckets(segments, device)], cross, spans)


def _buckets(segments: list[tuple[int, int]], device: torch.device | str) -> list[Bucket]:
    buckets: list[Bucket] = []
    ordered = sorted(segments, key=lambda s: -s[1])
    while ordered:
        longest = ordered[0][1]
        count = next((n for n, (_, length) in enumerate(ordered) if length < _MIN_FILL * longest), len(ordered))
        members, ordered = ordered[:count], ordered[count:]
        starts = np.array([s for s, _ in members])[:, None]
        lengths = np.array([n for _, n in members])[:, None]
        offset = np.arange(longest)[None]
        real = offset < lengths
        row = np.where(real, starts + offset, 0)
        arrays = (row.reshape(-1), np.flatnonzero(real), row[real])
        buckets.append(Bucket((count, longest), *(torch.from_numpy(a).to(device) for a in arrays)))
    return buckets
