"""TRL 1.16's own loss code, fed with given log-probabilities; random batches; and their layout as packed tokens."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Coefficients, Tokens, Totals

IDENTITY = SimpleNamespace(
    num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
)


class Random:
    """A padded batch [N, T] in float64: new, old, sampler's and base's log-probabilities, entropies, advantages, mask."""

    def __init__(self, seed: int, n: int = 6, t: int = 9, spread: float = 0.5) -> None:
        g = torch.Generator().manual_seed(seed)
        self.old = -torch.rand(n, t, generator=g, dtype=torch.float64) * 3
        self.new = self.old + spread * torch.randn(n, t, generator=g, dtype=torch.float64)
        self.base = self.old + 0.2 * torch.randn(n, t, generator=g, dtype=torch.float64)
        self.sampler = self.old + 0.6 * torch.randn(n, t, generator=g, dtype=torch.float64)
        self.entropy = torch.rand(n, t, generator=g, dtype=torch.float64)
        self.advantage = torch.randn(n, generator=g, dtype=torch.float64)
        self.value, self.old_value, self.returns = torch.randn(3, n, t, generator=g, dtype=torch.float64)
        self.mask = torch.rand(n, t, generator=g) < 0.7
        self.mask[:, 0] = True  # no sequence without a token

    @property
    def totals(self) -> Totals:
        return Totals(float(self.mask.sum()), float(len(self.mask)))

    def tokens(self, new: Tensor, rows: slice | None = None, **fields: Any) -> Tokens:
        """The batch's sequences ``rows`` (all of them) as packed tokens, with ``new`` [N, T] as the log-probabilities."""
        rows = slice(None) if rows is None else rows
        mask = self.mask[rows]
        given = {"base_logprob_T": self.base, "entropy_T": self.entropy, "sampler_logprob_T": self.sampler} | fields
        return Tokens(
            logprob_T=new[rows][mask],
            old_logprob_T=self.old[rows][mask],
            advantage_T=self.advantage[rows, None].expand_as(mask)[mask],
            sequence_T=torch.arange(len(mask))[:, None].expand_as(mask)[mask],
            sequences=len(mask),
            **{name: x[rows][mask] for name, x in given.items()},
        )

    def ours(
        self, algorithm: Algorithm, rows: list[slice] | None = None, coefficients: Coefficients | None = None
    ) -> tuple[Tensor, Tensor, dict]:
        """Loss, gradient [N, T] and sums, over the micro-batches ``rows``."""
        new, value = self.new.clone().requires_grad_(), self.value.clone().requires_grad_()
        total, sums = torch.zeros((), dtype=torch.float64), {}
        for part in rows or [slice(None)]:
            critic = {"value_T": value, "old_value_T": self.old_value, "return_T": self.returns} if algorithm.has_critic else {}
            loss, found = algorithm.loss(self.tokens(new, part, **critic), self.totals, coefficients)
            loss.backward()
            total = total + loss.detach()
            sums = {name: sums.get(name, 0) + x for name, x in found.items()}
        gradient = new.grad if value.grad is None else torch.stack([new.grad, value.grad])
        assert gradient is not None
        return total, gradient, sums


def trl_grpo(batch: Random, **settings: Any) -> tuple[Tensor, Tensor, dict]:
    """TRL's GRPOTrainer._compute_loss on the batch: loss, gradient, metrics. ``settings`` are those of its configuration."""
    new = batch.new.clone().requires_grad_()
    me = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, batch.entropy, None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=None, steps_per_generation=1, entropy_target=settings.get("entropy_target"),
            entropy_coef_delta=0.001, entropy_coef_max=0.1, entropy_coef_min=0.0,
        ),
        loss_type="dapo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=None,
        accelerator=IDENTITY,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        entropy_coef=0.0,
        _last_world_entropy=0.0,
        _entropy_window_stats=None,
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    ratio = settings.pop("importance_sampling_ratio", None)
    for name, value in settings.items():
        setattr(me, name, value)
    ids = torch.zeros_like(batch.mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :0], "prompt_mask": ids[:, :0], "completion_ids": ids, "completion_mask": batch.mask.long(),
        "advantages": batch.advantage, "old_per_token_logps": batch.old, "ref_per_token_logps": batch.base,
        "num_items_in_batch": batch.mask.sum(), "importance_sampling_ratio": ratio,
    }  # fmt: skip
    loss = GRPOTrainer._compute_loss(me, None, inputs)
    loss.backward()
    metrics = {name: values[0] for name, values in me._metrics["train"].items()}
    assert new.grad is not None
    return loss.detach(), new.grad, metrics | {"coefficient": me.entropy_coef}


def trl_rloo(batch: Random, low: float, high: float) -> tuple[Tensor, Tensor, dict]:
    """TRL's RLOOTrainer._compute_loss on the batch."""
    new = batch.new.clone().requires_grad_()
    me = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, batch.entropy, None),
        aux_loss_enabled=False, epsilon_low=low, epsilon_high=high, model=SimpleNamespace(training=True), accelerator=IDENTITY,
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    ids = torch.zeros_like(batch.mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :0], "prompt_mask": ids[:, :0], "completion_ids": ids, "completion_mask": batch.mask.long(),
        "advantages": batch.advantage, "old_logps": (batch.old * batch.mask).sum(1),
    }  # fmt: skip
    loss = RLOOTrainer._compute_loss(me, None, inputs)
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad, {name: values[0] for name, values in me._metrics["train"].items()}
