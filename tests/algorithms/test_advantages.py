import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from frontier_tune.algorithms.advantages import group_relative


def trl_advantages(reward_PG: torch.Tensor, scale: bool) -> torch.Tensor:
    """What TRL 1.16 does with NaN for unscorable members (GRPOTrainer._generate_and_score_completions)."""
    mean = torch.nanmean(reward_PG, dim=1, keepdim=True)
    advantage = reward_PG - mean
    if scale:
        advantage = advantage / (nanstd(reward_PG, dim=1, keepdim=True) + 1e-4)
    return advantage.nan_to_num(0.0)


@pytest.mark.parametrize("scale", [True, False])
def test_agrees_with_trl(scale: bool) -> None:
    reward = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    valid = torch.ones(5, 8, dtype=torch.bool)
    valid[1, 3] = valid[2, :5] = False
    with_nan = reward.masked_fill(~valid, torch.nan)
    # 1e-6: TRL takes Bessel's correction in float32 whatever the dtype of the rewards.
    torch.testing.assert_close(group_relative(reward, valid, scale), trl_advantages(with_nan, scale), atol=1e-6, rtol=1e-6)


def test_invalid_members_do_not_touch_the_rest() -> None:
    valid = torch.tensor([[True, True, False, True]])
    a = group_relative(torch.tensor([[1.0, 0.0, 77.0, 1.0]]), valid)
    b = group_relative(torch.tensor([[1.0, 0.0, torch.nan, 1.0]]), valid)
    assert torch.equal(a, b) and a[0, 2] == 0


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-1e6, 1e6), members=st.integers(1, 16), scale=st.booleans())
def test_equal_rewards_give_exactly_zero(value: float, members: int, scale: bool) -> None:
    reward = torch.full((1, members), value, dtype=torch.float64)
    assert (group_relative(reward, torch.ones(1, members, dtype=torch.bool), scale) == 0).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=4),
    mask=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_valid_members_sum_to_zero_and_lone_ones_get_none(rows: list[list[float]], mask: list[bool]) -> None:
    reward = torch.tensor(rows, dtype=torch.float64)
    valid = torch.tensor([mask]).expand(len(rows), -1)
    advantage = group_relative(reward, valid, scale_by_std=False)
    assert advantage.sum(1).abs().max() < 1e-9
    assert (advantage[~valid] == 0).all()
    if sum(mask) < 2:
        assert (advantage == 0).all()


def test_refuses_non_finite_valid_reward_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_relative(torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, True]]))
    with pytest.raises(ValueError, match="shape"):
        group_relative(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))
