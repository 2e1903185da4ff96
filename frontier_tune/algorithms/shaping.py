"""DAPO's two rules about episodes (arXiv:2503.14476): which groups to keep, and what too long an episode costs."""

from __future__ import annotations

from torch import Tensor

from frontier_tune.algorithms.advantages import group_relative


def informative(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Groups whose valid rewards differ, [P] bool: the others have advantage 0 (dynamic sampling, section 3.2, eq. 11)."""
    return (group_relative(reward_PG, valid_PG, scale_by_std=False) != 0).any(dim=1)


def overlong_penalty(length_N: Tensor, limit: int, buffer: int) -> Tensor:
    """Soft overlong punishment (section 3.4, eq. 13), added to the reward, [N]: 0 up to ``limit - buffer`` tokens, then falling
    linearly to -1 at ``limit``, and -1 beyond."""
    if not 0 < buffer < limit:
        raise ValueError(f"the buffer must be between 0 and the limit of {limit} tokens, got {buffer}")
    return ((limit - buffer - length_N.double()) / buffer).clamp(-1.0, 0.0)
