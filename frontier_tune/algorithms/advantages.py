"""Advantages from rewards: relative to the group, to the other members, to the whole batch, or to the same turn of the group."""

from __future__ import annotations

import torch
from torch import Tensor

# Keeps a near-zero spread from blowing an advantage up; the value that TRL adds, so figures can be compared.
STD_EPSILON = 1e-4


def _checked(reward_PG: Tensor, valid_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards in float64, 0 where not valid, and the mask. float64: equal rewards must leave no rounding error behind."""
    if reward_PG.ndim != 2 or reward_PG.shape != valid_PG.shape:
        raise ValueError(f"rewards {tuple(reward_PG.shape)} and valid {tuple(valid_PG.shape)} must share one [P, G] shape")
    valid = valid_PG.bool()
    if not torch.isfinite(reward_PG[valid]).all():
        raise ValueError("a valid episode has a reward that is not finite; mark it invalid or mend the rubric")
    return reward_PG.double().masked_fill(~valid, 0.0), valid


def _differ(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Whether a group's valid rewards differ, [P, 1]."""
    lowest = reward_PG.masked_fill(~valid_PG, torch.inf).amin(1, keepdim=True)
    return reward_PG.masked_fill(~valid_PG, -torch.inf).amax(1, keepdim=True) > lowest


def group_relative(reward_PG: Tensor, valid_PG: Tensor, scale_by_std: bool = True) -> Tensor:
    """Each reward minus the mean of its group: ``A_i = (r_i - mean(r)) / (std(r) + 1e-4)`` (GRPO, arXiv:2402.03300, 4.1.2).

    Args:
        reward_PG: rewards, [P groups, G members], float.
        valid_PG: [P, G], bool. False marks an episode that failed by the fault of the environment or the
            infrastructure: it leaves mean and deviation, its own advantage is 0, its reward may be NaN.
        scale_by_std: divide by the standard deviation of the group's valid members (with Bessel's correction).
            Without it the estimate is unbiased by question difficulty (Dr.GRPO, arXiv:2503.20783, section 3.1).

    Returns:
        advantage_PG: [P, G] in the dtype of ``reward_PG``. Exactly 0 throughout a group whose valid rewards are all
        equal, and throughout a group with fewer than two valid members (there is no baseline to compare with).

    Raises:
        ValueError: shapes differ, or a valid reward is not finite.
    """
    reward, valid = _checked(reward_PG, valid_PG)
    count_P1 = valid.sum(1, keepdim=True).clamp(min=1)
    centred = (reward - reward.sum(1, keepdim=True) / count_P1).masked_fill(~valid, 0.0)
    if scale_by_std:
        variance = centred.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + STD_EPSILON)
    return centred.masked_fill(~_differ(reward, valid), 0.0).to(reward_PG.dtype)


def leave_one_out(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Each reward minus the mean of the group's *other* valid members (RLOO, arXiv:2402.14740, section 2.2), [P, G].

    Zeros and errors as in ``group_relative``, of which it is ``n / (n - 1)`` times the unscaled one.
    """
    reward, valid = _checked(reward_PG, valid_PG)
    count_P1 = valid.sum(1, keepdim=True)
    baseline = (reward.sum(1, keepdim=True) - reward) / (count_P1 - 1).clamp(min=1)
    return (reward - baseline).masked_fill(~(valid & _differ(reward, valid)), 0.0).to(reward_PG.dtype)


def batch_relative(reward_PG: Tensor, valid_PG: Tensor, scale_by_std: bool = True) -> Tensor:
    """As ``group_relative``, with the mean and deviation of the whole batch (all groups as one), [P, G]."""
    return group_relative(reward_PG.reshape(1, -1), valid_PG.reshape(1, -1), scale_by_std).reshape(reward_PG.shape)


def turn_relative(reward_PGK: Tensor, reached_PGK: Tensor, discount: float = 1.0, scale_by_std: bool = True) -> Tensor:
    """Credit by turn: each turn's discounted return, relative to the group's members that came as far.

    ``R_ik = sum_{j >= k} discount^(j - k) r_ij`` and ``A_ik = (R_ik - mean_i(R_ik)) / (std_i(R_ik) + 1e-4)``, mean and
    deviation over members i that reached turn k (return-to-go with a time-dependent baseline: Sutton and Barto, section 13.4; the
    group as baseline, turn by turn: arXiv:2505.11821). With an outcome reward alone and discount < 1, a success in fewer turns
    earns more.

    Args:
        reward_PGK: reward that turn k earned, [P groups, G members, K turns].
        reached_PGK: False where a member had ended before turn k or isn't valid.

    Returns:
        advantage_PGK, 0 where not reached and where fewer than two members reached the turn.
    """
    K = reward_PGK.shape[2]
    back_PGK = torch.zeros(reward_PGK.shape, dtype=torch.float64)
    ahead = torch.zeros(reward_PGK.shape[:2], dtype=torch.float64)
    for k in reversed(range(K)):
        ahead = reward_PGK[:, :, k].double().masked_fill(~reached_PGK[:, :, k], 0.0) + discount * ahead
        back_PGK[:, :, k] = ahead
    by_turn = [group_relative(back_PGK[:, :, k], reached_PGK[:, :, k], scale_by_std) for k in range(K)]
    return torch.stack(by_turn, 2).to(reward_PGK.dtype)


def whiten(value_T: Tensor) -> Tensor:
    """``(x - mean) / (std + 1e-4)`` over all tokens of the batch, [T]; exactly 0 where all are equal (or there is one)."""
    if value_T.numel() == 0 or bool((value_T == value_T[0]).all()):
        return torch.zeros_like(value_T)
    return (value_T - value_T.mean()) / (value_T.std() + STD_EPSILON)
