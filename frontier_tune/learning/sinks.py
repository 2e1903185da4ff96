"""Attention sinks (gpt-oss, arXiv:2508.10925; the idea: arXiv:2309.17453): one learned logit a head that joins the softmax's
denominator and brings no value, so that a head may attend to nothing.

``out = sum_j exp(s_j) v_j / (exp(sink) + sum_j exp(s_j))``. Two ways there, for kernels that know nothing of it:

- Kernels that give a log-sum-exp: merge the sink into it and scale the output (``discount``). Backward with the merged output and
  log-sum-exp is exact then: ``dS_j = P_j (<dout, v_j> - <dout, out>)`` is what flash kernels compute from these two, and the sink
  as a key with value zero changes nothing else in it.
- Kernels that give none: the sink as a real key (``widened``), which every query scores by columns of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

COLUMNS = 8  # that heads are widened by: kernels want head sizes in multiples of 8
LOG2_E = 1 / math.log(2)


def discount(out: Tensor, lse: Tensor, sinks: Tensor, bits: bool = False) -> None:
    """Bring ``sinks`` [heads] into ``out`` [T, heads, D] and ``lse`` [T, heads] of ordinary attention, in place.

    ``bits``: the log-sum-exp is a binary logarithm.
    """
    sinks = sinks.to(lse.dtype)
    merged = torch.logaddexp2(lse, sinks * LOG2_E) if bits else torch.logaddexp(lse, sinks)
    kept = (lse - merged).exp2_() if bits else (lse - merged).exp_()
    out.mul_(kept[..., None])
    lse.copy_(merged)


def gradient(dout: Tensor, out: Tensor, lse: Tensor, sinks: Tensor, bits: bool = False) -> Tensor:
    """The gradient at ``sinks`` [heads] of discounted ``out`` and ``lse``: minus the sink's weight times <dout, out>, over T."""
    score = sinks.to(lse.dtype) * (LOG2_E if bits else 1)
    weight = (score - lse).exp2_() if bits else (score - lse).exp_()
    return -(weight * (dout * out).sum(-1)).sum(0).to(sinks.dtype)


def widened(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, heads, D], k and v [T, kv_heads, D] with columns in which ``as_key`` has every query score its head's sink.

    In two columns, the second with what rounding to the queries' type takes from the first.
    """
    whole = sinks.double() / scale
    high = whole.to(q.dtype)
    low = (whole - high.detach().double()).detach().to(q.dtype)  # the gradient goes through the first column
    columns = F.pad(torch.stack([high, low], dim=-1), (0, COLUMNS - 2))
    q = torch.cat([q, columns.expand(q.shape[0], -1, -1)], dim=-1)
    return q, F.pad(k, (0, COLUMNS)), F.pad(v, (0, COLUMNS))


def as_key(k: Tensor, v: Tensor, there: bool) -> tuple[Tensor, Tensor]:
    """Blocks [..., S, D] of keys and values with a place before the first: the sink's, if it is ``there``, else of zeros."""
    place = k.new_zeros(*k.shape[:-2], 1, k.shape[-1])
    zero = place
    if there:
        place = place.clone()
        at = k.shape[-1] - COLUMNS
        place[..., at : at + 2] = 1
    return torch.cat([place, k], dim=-2), torch.cat([zero, v], dim=-2)
