"""Sequences as flat rows without padding, with the prefixes that members of a group share held once.

In causal attention the state of a token depends on the tokens before it alone. Members of a GRPO group begin with the same
prompt, and often go on with the same first actions: the rows of what they share (and everything computed on them) are the same
for all of them, so they are computed once, and the members' gradients meet there by addition. This is exact, not an
approximation, and saves about the share of tokens that prompts are.

A group is laid out as a trie in depth-first order. Each node is a *segment* of rows that attends causally to itself; the rows
of all nodes below it follow it directly and attend to it in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A branch below a group's common prefix gets its own node where that saves at least so many rows: each costs one more
# attention call.
_MIN_SAVED_ROWS = 16
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
    """``tokens_T`` and ``positions_T`` [T] are the rows; ``cross`` are (rows below a node, rows of the node) that attend in full.

    ``rows[i]``: the row of every token of sequence i. ``segments_S3`` [S, 3], int64, on the CPU, is the same plan for the native
    kernel, which takes the trees as they are: first row, rows and parent (or -1) of each segment, in the order of the rows.
    ``windows``: the plans for layers with a sliding window, by its width, made when the first asks (learning.windows).
    """

    tokens_T: Tensor
    positions_T: Tensor
    buckets: list[Bucket]
    cross: list[tuple[slice, slice]]
    rows: list[np.ndarray]
    segments_S3: Tensor
    windows: dict[int, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.rows))


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all sequences share."""
    lists = [list(s) for s in sequences]
    low, high = min(lists), max(lists)  # lexicographic: what these two share, all share
    shortest = min(len(low), len(high))
    a, b = np.asarray(low[:shortest]), np.asarray(high[:shortest])
    differs = np.flatnonzero(a != b)
    return int(differs[0]) if len(differs) else shortest


def units(sequences: Sequence[Sequence[int]], groups: Sequence[int] | None) -> list[list[int]]:
    """Indexes of the sequences of each group, in the order of their first; without groups each sequence alone."""
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
    for unit in units(sequences, groups):
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


def pack(
    sequences: Sequence[Sequence[int]],
    groups: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    keys: Sequence[Sequence[int]] | None = None,
) -> Packed:
    """Lay sequences out as rows. Sequences of one group share the rows of their common prefixes. None may be empty.

    ``keys``: what prefixes are compared by where equal tokens are not enough (forced routes); default: the tokens.
    """
    if any(len(s) == 0 for s in sequences):
        raise ValueError("an empty sequence can't be packed")
    layout = _Layout(sequences, sequences if keys is None else keys)
    for unit in units(sequences, groups):
        layout.node(unit, 0, -1)

    def tensor(values: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(values)).to(device)

    rows = [np.concatenate(parts) for parts in layout.rows]
    buckets = _buckets([(first, count) for first, count, _ in layout.segments], device)
    segments = torch.tensor(layout.segments, dtype=torch.int64).view(-1, 3)
    return Packed(tensor(layout.tokens), tensor(layout.positions), buckets, layout.cross, rows, segments)


class _Layout:
    """Rows as they are laid out, node by node."""

    def __init__(self, sequences: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> None:
        self.sequences, self.keys = sequences, keys
        self.total = 0
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.segments: list[tuple[int, int, int]] = []  # first row, rows, parent
        self.cross: list[tuple[slice, slice]] = []
        self.rows: list[list[np.ndarray]] = [[] for _ in sequences]

    def node(self, members: list[int], first: int, parent: int) -> None:
        """Lay out what ``members`` share from position ``first`` below the segment ``parent``, then what they don't."""
        end = common_prefix([self.keys[i] for i in members])
        start = self._segment(members, first, end, parent)
        below, node = self.total, len(self.segments) - 1 if end > first else parent
        branches: dict[int, list[int]] = {}
        for i in members:
            if len(self.sequences[i]) > end:
                branches.setdefault(self.keys[i][end], []).append(i)
        for branch in branches.values():
            saved = (common_prefix([self.keys[i] for i in branch]) - end) * (len(branch) - 1)
            for part in [branch] if saved >= _MIN_SAVED_ROWS else [[i] for i in branch]:
                self.node(part, end, node)
        if below > start and self.total > below:
            self.cross.append((slice(below, self.total), slice(start, below)))

    def _segment(self, members: list[int], first: int, end: int, parent: int) -> int:
        start, count = self.total, end - first
        if count:
            self.tokens.append(np.asarray(self.sequences[members[0]][first:end], dtype=np.int64))
            self.positions.append(np.arange(first, end))
            self.segments.append((start, count, parent))
            self.total += count
            for i in members:
                self.rows[i].append(np.arange(start, self.total))
        return start


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
