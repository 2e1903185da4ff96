import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.algorithms.gae import gae, returns_to_go


def batch(seed: int, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    reward, value = torch.randn(2, sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return reward, value, torch.tensor(lengths)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(any),
    discount=st.floats(0.1, 1),
    trace=st.floats(0, 1),
)
def test_equals_the_closed_form(seed: int, lengths: list[int], discount: float, trace: float) -> None:
    """arXiv:1506.02438, eq. 16, as the explicit double sum."""
    reward, value, length_N = batch(seed, lengths)
    got, start = gae(reward, value, length_N, discount, trace), 0
    for n in lengths:
        r, v = reward[start : start + n].tolist(), [*value[start : start + n].tolist(), 0.0]
        delta = [r[t] + discount * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            want = sum((discount * trace) ** (k - t) * delta[k] for k in range(t, n))
            assert got[start + t].item() == pytest.approx(want, rel=1e-10, abs=1e-10)
        start += n


def test_the_two_ends_of_lambda() -> None:
    reward, value, length_N = batch(0, [4, 0, 1, 3])
    td = gae(reward, value, length_N, 0.9, 0.0)
    torch.testing.assert_close(td[3], reward[3] - value[3])
    torch.testing.assert_close(td[0], reward[0] + 0.9 * value[1] - value[0])
    torch.testing.assert_close(gae(reward, value, length_N, 0.9, 1.0) + value, returns_to_go(reward, length_N, 0.9))


def test_a_perfect_critic_leaves_no_advantage() -> None:
    reward, _, length_N = batch(1, [5, 2])
    value = returns_to_go(reward, length_N, 0.97)
    assert gae(reward, value, length_N, 0.97, 0.8).abs().max() < 1e-12


def test_refuses_lengths_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="tokens"):
        gae(torch.zeros(3), torch.zeros(3), torch.tensor([2]))
