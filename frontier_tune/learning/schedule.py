"""The learning rate over a run."""

from __future__ import annotations

import math

from frontier_tune import recipe


def learning_rate(learner: recipe.Learner, step: int, steps: int) -> float:
    """Learning rate of update ``step`` (from 0) of ``steps``: linear warm-up, then constant, linear or cosine decay.

    The first update has ``1 / (warmup_steps + 1)`` of the peak and the last ``final_lr_ratio`` of it (constant: the peak).
    Updates past the end keep the final value.
    """
    peak, warmup, last = learner.learning_rate, learner.warmup_steps, learner.final_lr_ratio
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if learner.schedule == "constant":
        return peak
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    if learner.schedule == "linear":
        return peak * (1 - (1 - last) * done)
    return peak * (last + (1 - last) * (1 + math.cos(math.pi * done)) / 2)
