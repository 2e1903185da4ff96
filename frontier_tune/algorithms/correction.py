"""Importance weights between the policy that sampled and the one that the ratio is taken against (proximal policy).

They differ because the engine rounds otherwise than the learner (and an MoE may then route otherwise), or because the data is
stale. With the decoupled objective (AReaL, arXiv:2505.24298, section 5.2; Hilton et al., arXiv:2110.00641) each token's loss is

    w_t * clipped surrogate of pi / pi_proximal,      w_t = pi_proximal / pi_sampler (no gradient)

and what is done about large w is the method: truncate (TIS: Yao et al., 2025, "Your efficient RL framework secretly brings you
off-policy RL training", fengyao.notion.site/off-policy-rl) or mask (MIS; with two bounds a token: IcePop, Ring-1T report,
arXiv:2510.18855).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from frontier_tune.algorithms.batch import Tokens

Method = Literal["none", "full", "truncate", "mask"]
Level = Literal["token", "sequence", "geometric"]


@torch.no_grad()
def importance_weights(tokens: Tokens, method: Method, level: Level, low: float, high: float) -> Tensor | None:
    """The weight of each token's loss, [T], without gradient; None where there is nothing to correct.

    Args:
        tokens: with ``sampler_logprob_T``.
        method: ``full`` leaves w as it is, ``truncate`` clamps it to [low, high], ``mask`` sets it to 0 outside of [low, high].
        level: w of the token, of its sequence (product over tokens) or of the sequence's geometric mean.
    """
    if method == "none":
        return None
    if tokens.sampler_logprob_T is None:
        raise ValueError("a mismatch correction needs sampler_logprob_T")
    log_w_T = tokens.old_logprob_T - tokens.sampler_logprob_T
    if level == "sequence":
        log_w_T = tokens.sum_N(log_w_T)[tokens.sequence_T]
    elif level == "geometric":
        log_w_T = tokens.mean_N(log_w_T)[tokens.sequence_T]
    weight_T = log_w_T.exp()
    if method == "truncate":
        return weight_T.clamp(low, high)
    if method == "mask":
        return weight_T.masked_fill((weight_T < low) | (weight_T > high), 0.0)
    return weight_T
