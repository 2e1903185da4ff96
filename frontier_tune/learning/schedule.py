"""The learning rate over a run."""

from __future__ import annotations

import math

from frontier_tune import recipe


def learning_rate(learner: recipe.Learner, step: int, steps: int, learned: int | None = None) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``: linear warm-up, then constant, linear or cosine decay.

    The first step has ``1 / (warmup_steps + 1)`` of the peak and the last ``final_lr_ratio`` of it (constant: the peak). Steps
    past the end keep the final value. ``learned``: steps before this one that learned, where some did not: the warm-up counts
    these, as it is for an optimizer that has seen little.
    """
    peak, warmup = learner.learning_rate, learner.warmup_steps
    done = step if learned is None else learned
    rate = _after_warmup(learner, step, steps)
    return min(rate, peak * (done + 1) / (warmup + 1)) if done < warmup else rate


def _after_warmup(learner: recipe.Learner, step: int, steps: int) -> float:
    peak, warmup, last = learner.learning_rate, learner.warmup_steps, learner.final_lr_ratio
    if step < warmup:
        return peak
    if learner.schedule == "constant":
        return peak
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    if learner.schedule == "linear":
        return peak * (1 - (1 - last) * done)
    return peak * (last + (1 - last) * (1 + math.cos(math.pi * done)) / 2)
