"""Generalised advantage estimation (Schulman et al., arXiv:1506.02438, eq. 16) over sequences of different lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(reward_T: Tensor, value_T: Tensor, length_N: Tensor, discount: float = 1.0, trace: float = 0.95) -> Tensor:
    """``A_t = sum_l (discount * trace)^l delta_{t+l}``, ``delta_t = r_t + discount * V_{t+1} - V_t``; V is 0 past the end.

    Args:
        reward_T: reward that token t earned, the sequences one after another, [T].
        value_T: the critic's value of the state in which token t was sampled, [T].
        length_N: tokens of each sequence, [N], summing to T. Zeros are skipped.
        discount: gamma. trace: lambda; 0 gives the one-step error, 1 the return less the value.

    Returns:
        advantage_T, [T]. The return that the critic is fitted to is ``advantage_T + value_T`` (TD(lambda)).
    """
    if reward_T.shape != value_T.shape or int(length_N.sum()) != reward_T.numel():
        raise ValueError(f"{tuple(reward_T.shape)} rewards, {tuple(value_T.shape)} values, {int(length_N.sum())} tokens")
    length_N = length_N[length_N > 0]
    longest = int(length_N.max()) if len(length_N) else 0
    # Right-aligned, so that the recursion runs over all sequences at once, from their common end.
    real_NL = torch.arange(longest) >= longest - length_N[:, None]
    reward_NL = reward_T.new_zeros(real_NL.shape).masked_scatter_(real_NL, reward_T)
    value_NL = value_T.new_zeros(real_NL.shape).masked_scatter_(real_NL, value_T)
    advantage_NL = torch.zeros_like(value_NL)
    ahead = next_value = value_NL.new_zeros(len(length_N))
    for t in reversed(range(longest)):
        ahead = reward_NL[:, t] + discount * next_value - value_NL[:, t] + discount * trace * ahead
        advantage_NL[:, t], next_value = ahead, value_NL[:, t]
    return advantage_NL[real_NL]


def returns_to_go(reward_T: Tensor, length_N: Tensor, discount: float = 1.0) -> Tensor:
    """``R_t = sum_{l >= 0} discount^l r_{t+l}`` within each sequence, [T]."""
    return gae(reward_T, torch.zeros_like(reward_T), length_N, discount, 1.0)
