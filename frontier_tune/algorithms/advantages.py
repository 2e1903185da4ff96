"""Group-relative advantages (GRPO, arXiv:2402.03300, section 4.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

# Keeps a near-zero spread from blowing an advantage up; the value that TRL adds, so figures can be compared.
STD_EPSILON = 1e-4


def group_relative(reward_PG: Tensor, valid_PG: Tensor, scale_by_std: bool = True) -> Tensor:
    """Each reward minus the mean of its group: ``A_i = (r_i - mean(r)) / (std(r) + 1e-4)``.

    Args:
        reward_PG: rewards, [P groups, G members], float.
        valid_PG: [P, G], bool. False marks an episode that failed by the fault of the environment or the
            infrastructure: it leaves mean and deviation, its own advantage is 0, its reward may be NaN.
        scale_by_std: divide by the standard deviation of the group's valid members (with Bessel's correction).
            Without it the estimate is unbiased by question difficulty (arXiv:2503.20783, section 3.1).

    Returns:
        advantage_PG: [P, G] in the dtype of ``reward_PG``. Exactly 0 throughout a group whose valid rewards are all
        equal, and throughout a group with fewer than two valid members (there is no baseline to compare with).

    Raises:
        ValueError: shapes differ, or a valid reward is not finite.
    """
    if reward_PG.ndim != 2 or reward_PG.shape != valid_PG.shape:
        raise ValueError(f"rewards {tuple(reward_PG.shape)} and valid {tuple(valid_PG.shape)} must share one [P, G] shape")
    valid = valid_PG.bool()
    if not torch.isfinite(reward_PG[valid]).all():
        raise ValueError("a valid episode has a reward that is not finite; mark it invalid or mend the rubric")
    # float64: a group of equal rewards must not leave a rounding error that std would then blow up.
    reward = reward_PG.double().masked_fill(~valid, 0.0)
    count_P1 = valid.sum(1, keepdim=True).clamp(min=1)
    centred = (reward - reward.sum(1, keepdim=True) / count_P1).masked_fill(~valid, 0.0)
    lowest = reward.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    highest = reward.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    if scale_by_std:
        variance = centred.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + STD_EPSILON)
    return centred.masked_fill(~(highest > lowest), 0.0).to(reward_PG.dtype)
