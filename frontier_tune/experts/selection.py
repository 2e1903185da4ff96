"""Adapters of some experts alone: which ones a workflow uses, and the small file that holds only those.

A workflow sends most of its tokens to few experts of each layer. Relevance of an expert is its share of the routing weights over
the workflow's episodes, and the smallest set of experts is taken whose relevance sums to a given share (Expert-Specialized
Fine-Tuning, arXiv:2407.01906, eqs. 5 and 7). Everywhere else the policy is the base, exactly.

On disk a selection is ``expert_selection.json`` beside the adapter. Its ``stored`` says what the weights hold: ``all`` experts
(those that were not chosen are zero; any PEFT reads it), or the ``chosen`` ones, which is as much smaller as fewer experts there
are. Whatever reads adapters here takes both; stock PEFT and vLLM refuse the second by its shapes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from frontier_tune.contracts import BadInput

FILE, WEIGHTS = "expert_selection.json", "adapter_model.safetensors"
# PEFT's file, and the copy of it in vLLM's names. Attention's tensors do not match.
_TENSOR = re.compile(r".*\blayers\.(\d+)\..*\bexperts(?:\.base_layer)?\.lora_([AB])(?:\.\w+)?(?:\.weight)?")


@dataclass(frozen=True)
class Selection:
    """The chosen experts of each MoE layer, in rising order, of ``experts`` in a layer; ``rank`` of the adapter."""

    experts: int
    rank: int
    layers: Mapping[int, tuple[int, ...]]

    def __post_init__(self) -> None:
        for layer, chosen in self.layers.items():
            if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= self.experts:
                raise BadInput(
                    f"expert selection: layer {layer} has {chosen}; give ids from 0 to {self.experts - 1} in rising order"
                )

    @property
    def share(self) -> float:
        """Chosen experts of all experts."""
        return sum(map(len, self.layers.values())) / (self.experts * len(self.layers))

    def write(self, adapter_dir: Path, stored: str) -> None:
        """``stored``: what the weights beside it hold, ``all`` or ``chosen``."""
        content = {"experts": self.experts, "rank": self.rank, "stored": stored}
        layers = {str(layer): list(chosen) for layer, chosen in sorted(self.layers.items())}
        (adapter_dir / FILE).write_text(json.dumps(content | {"layers": layers}, indent=1))


def covering(mass_LE: Tensor, layers: Sequence[int], share: float, rank: int) -> Selection:
    """Of each layer the fewest experts whose routing mass is at least ``share`` of the layer's.

    Args:
        mass_LE: summed routing weights, a row for each of ``layers``.
        share: in (0, 1]; 1 takes every expert that was used at all.

    Raises:
        BadInput: a layer without any mass (nothing was played), or ``share`` outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise BadInput(f"expert selection: a share of {share} of the routing mass; give one above 0 and up to 1")
    chosen = {}
    for layer, mass_E in zip(layers, mass_LE.double(), strict=True):
        total = float(mass_E.sum())
        if not (math.isfinite(total) and total > 0):
            raise BadInput(f"expert selection: no routing mass on layer {layer}; measure it over played episodes")
        descending, order = torch.sort(mass_E / total, descending=True, stable=True)
        before = descending.cumsum(0) - descending  # an expert is taken while those before it don't suffice
        needed = int(((before < share * (1 - 1e-12)) & (descending > 0)).sum())
        chosen[int(layer)] = tuple(sorted(order[:needed].tolist()))
    return Selection(mass_LE.shape[1], rank, chosen)


def read(adapter_dir: str | Path) -> tuple[Selection, str] | None:
    """The selection of an adapter and what its file holds (``all`` or ``chosen``); None where all experts are adapted."""
    path = Path(adapter_dir) / FILE
    if not path.is_file():
        return None
    try:
        c = json.loads(path.read_text())
        selection = Selection(int(c["experts"]), int(c["rank"]), {int(k): tuple(map(int, v)) for k, v in c["layers"].items()})
        if c["stored"] not in ("all", "chosen"):
            raise ValueError(f"stored is '{c['stored']}', not 'all' or 'chosen'")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"{path}: not an expert selection ({e}); export the adapter again") from None
    return selection, c["stored"]


def load_tensors(adapter_dir: str | Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file with all experts there are, whichever it holds: those that it doesn't are zero.

    Raises BadInput where the file can't be read, or does not hold the experts that the selection names.
    """
    path, written = Path(adapter_dir) / WEIGHTS, read(adapter_dir)
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as e:
        raise BadInput(f"{path}: can't be read, so it was cut off or is no safetensors file ({e}); copy it here again") from None
    if written is None:
        return tensors
    selection, stored = written
    expert_layers = {found[0] for name in tensors if (found := place(name))}
    if expert_layers != set(selection.layers):
        raise BadInput(f"{adapter_dir}: {FILE} names layers {sorted(selection.layers)}, the file has {sorted(expert_layers)}")
    if stored == "chosen":
        return {name: _map(name, t, selection, _spread, str(adapter_dir)) for name, t in tensors.items()}
    for name, t in tensors.items():  # a B of zero changes nothing, whatever A is
        if ".lora_B" in name and not torch.equal(_map(name, t, selection, _zero, str(adapter_dir)), t):
            raise BadInput(f"{adapter_dir}: {name} adapts experts that {FILE} does not name")
    return tensors


def narrowed(tensors: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
    """A PEFT adapter's tensors with every expert that was not chosen at zero."""
    return {name: _map(name, t, selection, _zero, "adapter") for name, t in tensors.items()}


def gathered(tensors: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
    """A PEFT adapter's tensors with the chosen experts alone."""
    return {name: _map(name, t, selection, _gather, "adapter") for name, t in tensors.items()}


def place(name: str) -> tuple[int, str] | None:
    """Layer and matrix ("A" or "B") of a tensor of an expert's adapter, by its name in PEFT's file or model; else None."""
    match = _TENSOR.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def mask(selection: Selection, layer: int, matrix: str) -> Tensor:
    """Which rows of A [E r, in] (``matrix`` "A") or columns of B [out, r E] ("B") in PEFT's layout are chosen: bool."""
    chosen = torch.zeros(selection.experts, dtype=torch.bool)
    chosen[list(selection.layers[layer])] = True
    return chosen.repeat_interleave(selection.rank) if matrix == "A" else chosen.repeat(selection.rank)


_Change = Callable[[Tensor, Tensor, str], Tensor]


def _map(name: str, tensor: Tensor, selection: Selection, change: _Change, where: str) -> Tensor:
    found = place(name)
    if found is None:
        return tensor
    layer, matrix = found
    if layer not in selection.layers:
        raise BadInput(f"{where}: {name} is of layer {layer}, which the expert selection does not name")
    wanted = len(selection.layers[layer]) if change is _spread else selection.experts
    size = tensor.shape[0 if matrix == "A" else 1]
    if size != wanted * selection.rank:
        raise BadInput(
            f"{where}: {name} is {tuple(tensor.shape)}; {wanted} experts of rank {selection.rank} have {wanted * selection.rank} "
            f"{'rows' if matrix == 'A' else 'columns'}"
        )
    kept = mask(selection, layer, matrix)
    return change(tensor, kept, matrix).contiguous()


def _zero(tensor: Tensor, kept: Tensor, matrix: str) -> Tensor:
    return tensor.masked_fill(~(kept[:, None] if matrix == "A" else kept), 0.0)  # not times 0: that gives -0.0, another digest


def _gather(tensor: Tensor, kept: Tensor, matrix: str) -> Tensor:
    return tensor[kept] if matrix == "A" else tensor[:, kept]


def _spread(tensor: Tensor, kept: Tensor, matrix: str) -> Tensor:
    shape = (kept.numel(), tensor.shape[1]) if matrix == "A" else (tensor.shape[0], kept.numel())
    full = tensor.new_zeros(shape)
    if matrix == "A":
        full[kept] = tensor
    else:
        full[:, kept] = tensor
    return full
