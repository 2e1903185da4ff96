"""The critic of actor-critic algorithms: a small head on the policy's own final hidden states.

It shares the policy's forward, so values cost next to nothing. Its gradient stops at the hidden states: the adapter learns from
the policy's loss alone, and a critic that errs can't spoil it (the price: it sees what the policy has come to represent).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frontier_tune.contracts import BadInput
from frontier_tune.learning.model import Policy

FILE = "critic.safetensors"


class Critic:
    """``V = W2 tanh(W1 h + b1) + b2`` in float32, with W1 [H, H], W2 [1, H]; W2 and b2 begin at 0, so every value does."""

    def __init__(self, policy: Policy, learning_rate: float, max_grad_norm: float, seed: int, device: torch.device) -> None:
        self._backbone: nn.Module = policy._backbone
        width = policy.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)
        self.head.to(device)
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=learning_rate)
        self._hidden: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, the policy's forward leaves its hidden states for ``values``."""

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._hidden = output.last_hidden_state[0].detach()

        handle = self._backbone.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def values(self, rows_M: Tensor) -> Tensor:
        """Values, with gradient to the head, of the states at ``rows_M`` of the pack that the policy saw last, [M]."""
        needed, place = torch.unique(rows_M, return_inverse=True)  # the policy computes each needed row once
        if self._hidden is None or len(self._hidden) != len(needed):
            found = None if self._hidden is None else len(self._hidden)
            raise RuntimeError(f"the critic saw hidden states of {found} rows, {len(needed)} are asked for")
        return self.head(self._hidden.float())[:, 0].index_select(0, place)

    def clip(self) -> None:
        """Bring the gradient's norm down to the limit."""
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.max_grad_norm)

    def finite(self) -> bool:
        """Whether the gradient's norm is: finite numbers may have none, and clipping to it would make zeros of them unnoticed."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.head.parameters() if p.grad is not None])
        return bool(norm.isfinite())

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state, by name."""
        out = dict(self.head.state_dict())
        for name, p in self.head.named_parameters():
            out |= {f"{key}.{name}": torch.as_tensor(x) for key, x in self.optimizer.state.get(p, {}).items()}
        return {name: t.detach().cpu().contiguous() for name, t in out.items()}

    def save(self, directory: Path) -> None:
        save_file(self.tensors(), str(directory / FILE))

    def load(self, directory: Path) -> None:
        if not (directory / FILE).is_file():
            raise BadInput(f"{directory}: no critic here (no {FILE}); the state is of a run with another algorithm")
        tensors = load_file(str(directory / FILE))
        self.head.load_state_dict({name: tensors[name] for name in self.head.state_dict()})
        self.optimizer.state.clear()
        for name, p in self.head.named_parameters():
            if f"step.{name}" in tensors:
                moments = {key: tensors[f"{key}.{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": tensors[f"step.{name}"], **moments}
