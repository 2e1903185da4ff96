import pytest
import torch

from frontier_tune.learning import logprobs
from frontier_tune.learning.logprobs import token_logprobs


def inputs(m: int = 7, h: int = 5, v: int = 11, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(m, h, generator=g, dtype=dtype), torch.randn(v, h, generator=g, dtype=dtype)
    return hidden, weight, torch.randint(0, v, (m,), generator=g), torch.rand(m, generator=g, dtype=dtype) + 0.5


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("tempered", [False, True])
def test_values_and_gradients_equal_the_whole_softmax(rows: int, tempered: bool) -> None:
    hidden, weight, target, temperature = inputs()
    hidden.requires_grad_()
    t = temperature if tempered else None
    logprob, entropy = token_logprobs(hidden, weight, target, t, rows)
    whole = (hidden @ weight.t() / (temperature[:, None] if tempered else 1)).log_softmax(-1)
    want = whole.gather(1, target[:, None])[:, 0], -(whole.exp() * whole).sum(1)
    torch.testing.assert_close((logprob, entropy), want)
    probe = torch.arange(7, dtype=torch.float64)
    mine = torch.autograd.grad((logprob * probe - 0.3 * entropy).sum(), hidden)
    theirs = torch.autograd.grad((want[0] * probe - 0.3 * want[1]).sum(), hidden)
    torch.testing.assert_close(mine, theirs)


def test_finite_differences() -> None:
    hidden, weight, target, temperature = inputs()
    hidden.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, target, temperature, 3), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, target, None, 3)[0], (hidden, weight))


def test_the_full_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    stock = logprobs._logits
    monkeypatch.setattr(logprobs, "_logits", lambda h, w, t: seen.append(len(h)) or stock(h, w, t))
    monkeypatch.setattr(logprobs, "_CHUNK_LOGITS", 40)
    hidden, weight, target, _ = inputs(m=20, v=11)
    hidden.requires_grad_()
    token_logprobs(hidden, weight, target)[0].sum().backward()
    assert max(seen) == 3 and sum(seen) == 40  # forward and backward, 3 rows of 11 logits at a time


def test_no_rows() -> None:
    hidden, weight, target, _ = inputs(m=0)
    hidden.requires_grad_()
    logprob, entropy = token_logprobs(hidden, weight, target)
    logprob.sum().backward()
    assert logprob.shape == entropy.shape == (0,) and hidden.grad.shape == hidden.shape


def test_bfloat16_reduces_in_float32() -> None:
    hidden, weight, target, _ = inputs(dtype=torch.bfloat16)
    logprob, entropy = token_logprobs(hidden, weight, target)
    want = (hidden @ weight.t()).float().log_softmax(-1).gather(1, target[:, None])[:, 0]
    assert logprob.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprob, want)
