"""Log-probabilities and entropy of chosen tokens from hidden states, a chunk of rows at a time.

The full logits [T, V] are never held: each chunk is projected, reduced and dropped, and backward projects it again. For a
vocabulary of 150,000 and 8,192 rows that is 5 GB less in float32. Only where all of them are one chunk do they wait for backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from frontier_tune.native import build

# Logits held at once (64 MiB in float32).
_CHUNK_LOGITS = 1 << 24
# On a CPU, where they don't wait for backward: so many stay in the second-level cache until the last pass over them.
_CACHED_LOGITS = 1 << 18
_CACHED_ROWS = 128  # fewer make a slow product


def _logits(hidden: Tensor, weight: Tensor, temperature: Tensor | None) -> Tensor:
    """In float32 at least, after the projection in the model's own dtype, as the sampler computes them."""
    z = torch.mm(hidden, weight.t())
    z = z if z.dtype == torch.float64 else z.float()
    return z if temperature is None else z.div_(temperature[:, None])


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, temperature: Tensor | None, rows: int
    ) -> tuple[Tensor, Tensor]:
        out_dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprob, entropy, lse = (torch.empty(hidden.shape[0], dtype=out_dtype, device=hidden.device) for _ in range(3))
        whole = 0 < hidden.shape[0] <= rows and ctx.needs_input_grad[0]
        if hidden.device.type == "cpu" and not whole:
            rows = min(rows, max(_CACHED_ROWS, _CACHED_LOGITS // weight.shape[0]))
        for start in range(0, hidden.shape[0], rows):
            s = slice(start, start + rows)
            z = _logits(hidden[s], weight, None if temperature is None else temperature[s])
            if build.usable(z):
                torch.ops.frontier_tune.softmax_rows(z, target[s], lse[s], logprob[s], entropy[s])
                p = z
                continue
            torch.logsumexp(z, 1, out=lse[s])
            logprob[s] = z.gather(1, target[s, None])[:, 0] - lse[s]
            z -= lse[s, None]
            p = z.exp()
            entropy[s] = -torch.einsum("mv,mv->m", p, z)
        held = p if whole else None
        ctx.save_for_backward(hidden, weight, target, temperature, lse, entropy, held)
        ctx.rows = rows
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogprob: Tensor, dentropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, temperature, lse, entropy, held = ctx.saved_tensors
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with_entropy = bool((dentropy != 0).any())
        for start in range(0, hidden.shape[0], ctx.rows):
            s = slice(start, start + ctx.rows)
            if held is None:
                z = _logits(hidden[s], weight, None if temperature is None else temperature[s])
                if build.usable(z):
                    rest = (lse[s], entropy[s], dlogprob[s].contiguous(), dentropy[s].contiguous())
                    torch.ops.frontier_tune.softmax_rows_backward(z, target[s], *rest)
                    _project_back(z, hidden[s], weight, None if temperature is None else temperature[s], dhidden[s], dweight)
                    continue
                p = z.sub_(lse[s, None]).exp()
            else:
                p = held
                z = p.clamp_min(torch.finfo(p.dtype).tiny).log_() if with_entropy else p
            if with_entropy:  # dH/dz_j = -p_j (log p_j + H)
                dz = z.add_(entropy[s, None]).mul_(-dentropy[s, None]).sub_(dlogprob[s, None]).mul_(p)
            else:  # dlogprob/dz_j = [j = target] - p_j
                dz = p * -dlogprob[s, None] if held is not None else p.mul_(-dlogprob[s, None])
            dz.scatter_add_(1, target[s, None], dlogprob[s, None])
            _project_back(dz, hidden[s], weight, None if temperature is None else temperature[s], dhidden[s], dweight)
        return dhidden, dweight, None, None, None


def _project_back(
    dz: Tensor, hidden: Tensor, weight: Tensor, temperature: Tensor | None, dhidden: Tensor, dweight: Tensor | None
) -> None:
    if temperature is not None:
        dz.div_(temperature[:, None])
    dz = dz.to(hidden.dtype)
    torch.mm(dz, weight, out=dhidden)
    if dweight is not None:
        dweight.addmm_(dz.t(), hidden)


def token_logprobs(
    hidden_MH: Tensor, weight_VH: Tensor, target_M: Tensor, temperature_M: Tensor | None = None, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of ``target_M`` and entropy (nats) of the distribution it is drawn from, each [M].

    Args:
        hidden_MH: final hidden states (after the last norm) of the rows that predict the targets, [M, H].
        weight_VH: the output embedding, [V, H].
        target_M: token ids, [M].
        temperature_M: divides the logits, [M], positive; None is 1 throughout.
        chunk_rows: rows projected at once; default: as many as keep 64 MiB of logits.
    """
    rows = chunk_rows or max(1, _CHUNK_LOGITS // weight_VH.shape[0])
    logprob, entropy = _TokenLogprobs.apply(hidden_MH, weight_VH, target_M, temperature_M, rows)
    return logprob, entropy
