"""Full fine-tuning: all of the base's weights learn, in float32, and every update is handed to the sampler as a whole model.

The weights are their own masters. What a learner has besides is a gradient and AdamW's two moments for each of them, and a copy
of weights and moments to go back to (``learner.rollbacks``): 28 bytes a parameter, 16 without it. The base that the run began
with is not kept: nothing here can be compared with it.

``write`` is how weights leave: a directory in transformers' format, written aside, fsynced and renamed, with a digest of every
tensor, so that whoever reads it knows what he should have read (``experts.whole``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.experts import canonical, families, plain_experts, whole
from frontier_tune.learning.base_weights import BaseWeights
from frontier_tune.learning.model import Policy, without_bars

if TYPE_CHECKING:
    from frontier_tune.recipe import Adapter

CHECKPOINT = "weights.safetensors"  # of a learner's state: parameters under their modules' names
SHARD = "4GB"
# What a model needs beside its weights to be served; copied from the base byte for byte.
_BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")


class FullPolicy(Policy):
    """A model all of whose weights learn. ``named_parameters()`` are the model's, tied ones once."""

    keeps_base = False

    def __init__(self, *arguments: Any) -> None:
        """As ``Policy``; the adapter's section is not looked at. Raises BadInput for a family that can't be trained so."""
        super().__init__(*arguments)
        self._fingerprint = super().fingerprint()  # of the base that it began with

    def _made_trainable(self, causal: Any, adapter: Adapter, seed: int) -> nn.Module:
        whole.require_family(causal.config)
        path, layers = families.family_of(causal.config).experts, families.moe_shape(causal.config).layers
        self._experts = {f"model.layers.{i}.{path}": causal.get_submodule(f"model.layers.{i}.{path}") for i in layers}
        plain_experts.install(self._experts)
        causal.requires_grad_(True)
        model: nn.Module = causal
        return model

    def parameter_groups(self, section: recipes.Learner) -> list[dict[str, Any]]:
        """Norms don't decay, which would lead them to 0; matrices do."""
        parameters = [p for _, p in self.named_parameters()]
        groups = [{"params": [p for p in parameters if p.ndim > 1]}, {"params": [p for p in parameters if p.ndim < 2]}]
        groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
        return groups

    def router_change(self) -> dict[str, float]:
        return {}  # nothing of the base is there to compare with

    @contextmanager
    def base(self) -> Iterator[None]:
        """Raises BadInput: there is none any more."""
        raise BadInput(
            "learner.trainable: all: the base's weights are those that learn, so that nothing can be scored by the base"
        )
        yield

    def state(self) -> dict[str, Tensor]:
        """All weights under their modules' names: the very tensors that learn."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def canonical(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All weights at ``dtype`` on the CPU: what the sampler has to hold."""
        return {name: whole.form(name, t, dtype) for name, t in self.state().items()}

    @contextmanager
    def adapter_of(self, directory: str | Path) -> Iterator[None]:
        """While inside, the weights are those of a model's directory. Raises BadInput where that is of another shape."""
        kept = {name: t.clone() for name, t in self.state().items()}
        try:
            self._read(Path(directory))
            yield
        finally:
            self._put(kept)

    @contextmanager
    def canary(self) -> Iterator[None]:
        """While inside, every token goes to other experts: each expert has the weights of the one before it."""
        weights = [w for experts in self._experts.values() for w in (experts.gate_up_proj, experts.down_proj)]
        self._roll(weights, 1)
        try:
            yield
        finally:
            self._roll(weights, -1)

    @staticmethod
    @torch.no_grad()
    def _roll(weights: list[Any], by: int) -> None:
        for w in weights:
            w.copy_(w.roll(by, 0))

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, p in self.named_parameters():
            p.copy_(tensors[name])

    @torch.no_grad()
    def _read(self, directory: Path) -> None:
        """Take the weights of a directory in transformers' format. Raises BadInput, nothing changed, where they don't fit."""
        own = dict(self.named_parameters())
        with BaseWeights(directory) as files:
            found = {name: files.shape(name) for name in files.names}
            if found != {name: tuple(p.shape) for name, p in own.items()}:
                differ = sorted({n for n, _ in found.items() ^ {n: tuple(p.shape) for n, p in own.items()}.items()})
                raise BadInput(f"{directory}: no model of this base: {len(differ)} tensors differ in name or shape ({differ[0]})")
            for name, p in own.items():
                files.read(name, 0, p.data)

    # ---- in and out -----------------------------------------------------------------------------------------------

    def write(self, directory: Path, dtype: torch.dtype, tokenizer: bool = False) -> None:
        """Write the model at ``dtype`` (routers: float32) as transformers reads it, on request with its tokenizer. Whole or
        not at all."""
        work = directory.with_name(f".{directory.name}-writing")
        shutil.rmtree(work, ignore_errors=True)
        model: Any = self.model
        with without_bars():
            model.save_pretrained(str(work), state_dict=self.canonical(dtype), max_shard_size=SHARD)
        _name_dtype(work / "config.json", dtype)
        for path in [p for pattern in _BESIDE if tokenizer for p in Path(self.base_dir).glob(pattern)]:
            shutil.copyfile(path, work / path.name)
        whole.write_digests(work)
        for path in [*work.iterdir(), work]:
            _fsync(path)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(work, directory)
        _fsync(directory.parent)

    def save(self, directory: Path) -> None:
        """Write the weights as they learn, for ``load``."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: t.cpu().contiguous() for name, t in self.state().items()}, str(directory / CHECKPOINT))

    def load(self, directory: Path, digests: dict[str, str]) -> None:
        """Take what ``save`` wrote. Raises BadInput where it is of another kind, base, or damaged."""
        if not (directory / CHECKPOINT).is_file():
            raise BadInput(f"{directory}: this state is of a run that trained an adapter; set learner.trainable to adapter")
        tensors = load_file(str(directory / CHECKPOINT))
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self.state().items()}:
            raise BadInput(f"{directory}: the weights are of another base than {self.base_dir}")
        if canonical.digests({name: whole.form(name, t, torch.float32) for name, t in tensors.items()}) != digests:
            raise BadInput(f"{directory}: damaged: {CHECKPOINT} is not the one that the state was written with")
        self._put(tensors)


def _name_dtype(config: Path, dtype: torch.dtype) -> None:
    """transformers writes the type of the model in memory; what lies in the files is another."""
    content = json.loads(config.read_text())
    content["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(content, indent=2) + "\n")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
