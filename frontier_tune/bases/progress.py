"""The state of a base that is being built, so that a build that was cut off goes on where it was and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEAD = "state.json"


class Progress:
    """Weights, moments of the optimizer and place in the schedule, under ``directory``.

    A state is written whole under a name of its own; ``state.json`` then points to it, and the one before is removed: whenever
    the build ends, one whole state is left. ``identity`` (JSON: all that a build depends on) tells another build's state.
    """

    def __init__(self, directory: Path, identity: object) -> None:
        self.directory = directory
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self._head = directory / HEAD
        self.found: dict[str, Any] = {}
        if self._head.is_file():
            head = json.loads(self._head.read_text())
            self.found = head if head["key"] == self.key else {}

    @property
    def updates(self) -> int:
        """Updates that are behind the saved state; 0 without one."""
        return int(self.found.get("updates", 0))

    @property
    def seconds(self) -> float:
        """That they took."""
        return float(self.found.get("seconds", 0.0))

    def save(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, scheduler: Any, updates: int, seconds: float
    ) -> Path:
        """Write a state. Returns its directory: a checkpoint of transformers without tokenizer, and ``optimizer.safetensors``."""
        from safetensors.torch import save_file

        state = optimizer.state_dict()
        moments = {f"{i}.{name}": t.contiguous() for i, of in state["state"].items() for name, t in of.items()}
        place = self.directory / f"{updates:08d}"
        shutil.rmtree(place, ignore_errors=True)  # of a build that was cut off while it wrote
        place.mkdir(parents=True)
        model.save_pretrained(place)
        save_file(moments, place / "optimizer.safetensors")
        head = {
            "key": self.key,
            "updates": updates,
            "seconds": round(seconds, 1),
            "scheduler": {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"},
            "lr": [group["lr"] for group in optimizer.param_groups],
        }
        draft = self._head.with_suffix(".draft")
        draft.write_text(json.dumps(head))
        os.replace(draft, self._head)
        self.found = head
        for other in self.directory.iterdir():
            if other.is_dir() and other != place:
                shutil.rmtree(other)
        return place

    def restore(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Put the saved state into freshly made ones."""
        from safetensors.torch import load_file

        place = self.directory / f"{self.updates:08d}"
        model.load_state_dict(type(model).from_pretrained(place, dtype=model.dtype).state_dict())
        state = optimizer.state_dict()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in load_file(place / "optimizer.safetensors").items():
            number, _, what = name.partition(".")
            moments.setdefault(int(number), {})[what] = tensor
        for group, lr in zip(state["param_groups"], self.found["lr"], strict=True):
            group["lr"] = lr
        optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
        scheduler.load_state_dict(self.found["scheduler"] | {"lr_lambdas": scheduler.state_dict()["lr_lambdas"]})

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
