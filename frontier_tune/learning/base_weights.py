"""A base's tensors out of its safetensors files, some rows at a time: who keeps a share of a base reads that share alone.

transformers' own loader puts every tensor together whole, in every process. Names and layouts here are those of its modules;
in the files experts may lie stacked, as in the modules, or one by one, as on the hub.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import safe_open
from torch import Tensor

from frontier_tune.contracts import BadInput

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
# One expert's matrix -> the stacked parameter that it is part of, and which half of its rows: gate lies above up.
_STACKED = {
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0),
    "w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0),
}  # fmt: skip
_READ_BYTES = 1 << 26  # read at once, of a tensor that lies whole in a file


@dataclass(frozen=True)
class _Piece:
    """A tensor of a file: all of a parameter (``expert`` is None), or one expert's half of it."""

    file: str
    name: str
    expert: int | None
    half: int


class BaseWeights:
    """The files of a base, open while inside ``with``. ``names``: its parameters, as transformers' modules call them."""

    def __init__(self, directory: str | Path) -> None:
        """Raises BadInput where there are no safetensors, or experts that are not all there."""
        self.directory = Path(directory)
        self._open: dict[str, Any] = {}
        self._pieces: dict[str, list[_Piece]] = defaultdict(list)
        for name, file in self._files():
            target, expert, half = _target(name)
            self._pieces[target].append(_Piece(file, name, expert, half))
        self.names = sorted(self._pieces)

    def _files(self) -> list[tuple[str, str]]:
        """(name, file) of every tensor."""
        if (index := self.directory / _INDEX).is_file():
            return sorted(json.loads(index.read_text())["weight_map"].items())
        if not (self.directory / _SINGLE).is_file():
            raise BadInput(f"base: {self.directory} has no weights as safetensors ({_SINGLE}, or several and {_INDEX})")
        names: list[str] = self._file(_SINGLE).keys()
        return [(name, _SINGLE) for name in names]

    def __enter__(self) -> BaseWeights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.clear()

    def _file(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = safe_open(self.directory / file, framework="pt")
        return self._open[file]

    def _slice(self, piece: _Piece) -> Any:
        return self._file(piece.file).get_slice(piece.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter. Raises BadInput where some of its experts, or halves of them, are missing."""
        pieces = self._pieces[name]
        inner = tuple(self._slice(pieces[0]).get_shape())
        if pieces[0].expert is None and len(pieces) == 1:
            return inner
        experts = 1 + max(p.expert or 0 for p in pieces)
        halves = 2 if name.endswith("gate_up_proj") else 1
        if {(p.expert, p.half) for p in pieces} != {(e, h) for e in range(experts) for h in range(halves)}:
            raise BadInput(f"base: {self.directory}: {name}: {len(pieces)} of {experts * halves} matrices of experts are there")
        return (experts, halves * inner[0], *inner[1:])

    def read(self, name: str, first: int, out: Tensor) -> None:
        """Fill ``out`` [rows, ...] with the parameter's rows from ``first`` on, in the type of ``out``.

        Held besides: one expert's matrix, or 64 MiB.
        """
        for piece in self._pieces[name]:
            found = self._slice(piece)
            if piece.expert is None:
                rows = max(1, _READ_BYTES * len(out) // max(1, out.numel() * 4))
                for start in range(0, len(out), rows):
                    stop = min(len(out), start + rows)
                    out[start:stop].copy_(found[first + start : first + stop])
            elif first <= piece.expert < first + len(out):
                inner = found[:]
                place = slice(piece.half * len(inner), (piece.half + 1) * len(inner))
                out[piece.expert - first, place].copy_(inner)


def _target(name: str) -> tuple[str, int | None, int]:
    """What the modules call a tensor of a file: parameter, expert (None: all of them), and half."""
    name = name.replace(".block_sparse_moe.", ".mlp.")  # Mixtral on the hub
    if (match := _EXPERT.fullmatch(name)) is None:
        return name, None, 0
    parameter, half = _STACKED[match[3]]
    return f"{match[1]}.{parameter}", int(match[2]), half
