import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from frontier_tune.algorithms.advantages import batch_relative, group_relative, leave_one_out, turn_relative, whiten
from frontier_tune.algorithms.batch import Rollout
from frontier_tune.algorithms.dapo import DAPO
from frontier_tune.algorithms.grpo import GRPO
from frontier_tune.algorithms.ppo import PPO
from frontier_tune.algorithms.reinforce_pp import ReinforcePP
from frontier_tune.algorithms.rloo import RLOO
from frontier_tune.algorithms.shaping import informative, overlong_penalty


def trl_advantages(reward_PG: torch.Tensor, scale: bool) -> torch.Tensor:
    """What TRL 1.16 does with NaN for unscorable members (GRPOTrainer._generate_and_score_completions)."""
    mean = torch.nanmean(reward_PG, dim=1, keepdim=True)
    advantage = reward_PG - mean
    if scale:
        advantage = advantage / (nanstd(reward_PG, dim=1, keepdim=True) + 1e-4)
    return advantage.nan_to_num(0.0)


def trl_leave_one_out(reward_PG: torch.Tensor) -> torch.Tensor:
    """What TRL 1.16's RLOOTrainer does, NaN for unscorable members."""
    count = (~torch.isnan(reward_PG)).sum(dim=1, keepdim=True)
    return (reward_PG - (torch.nansum(reward_PG, dim=1, keepdim=True) - reward_PG) / (count - 1)).nan_to_num(0.0)


def rewards(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    reward = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    valid = torch.ones(5, 8, dtype=torch.bool)
    valid[1, 3] = valid[2, :5] = False
    return reward, valid


@pytest.mark.parametrize("scale", [True, False])
def test_agrees_with_trl(scale: bool) -> None:
    reward, valid = rewards()
    with_nan = reward.masked_fill(~valid, torch.nan)
    # 1e-6: TRL takes Bessel's correction in float32 whatever the dtype of the rewards.
    torch.testing.assert_close(group_relative(reward, valid, scale), trl_advantages(with_nan, scale), atol=1e-6, rtol=1e-6)
    whole = trl_advantages(with_nan.reshape(1, -1), scale).reshape(reward.shape)
    torch.testing.assert_close(batch_relative(reward, valid, scale), whole, atol=1e-6, rtol=1e-6)


def test_leave_one_out_agrees_with_trl_and_is_the_rescaled_group_mean() -> None:
    reward, valid = rewards(1)
    got = leave_one_out(reward, valid)
    torch.testing.assert_close(got, trl_leave_one_out(reward.masked_fill(~valid, torch.nan)))
    count = valid.sum(1, keepdim=True)
    torch.testing.assert_close(got, group_relative(reward, valid, False) * count / (count - 1))


def test_invalid_members_do_not_touch_the_rest() -> None:
    valid = torch.tensor([[True, True, False, True]])
    a = group_relative(torch.tensor([[1.0, 0.0, 77.0, 1.0]]), valid)
    b = group_relative(torch.tensor([[1.0, 0.0, torch.nan, 1.0]]), valid)
    assert torch.equal(a, b) and a[0, 2] == 0


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-1e6, 1e6), members=st.integers(1, 16), scale=st.booleans())
def test_equal_rewards_give_exactly_zero(value: float, members: int, scale: bool) -> None:
    reward, valid = torch.full((1, members), value, dtype=torch.float64), torch.ones(1, members, dtype=torch.bool)
    assert (group_relative(reward, valid, scale) == 0).all() and (leave_one_out(reward, valid) == 0).all()
    assert (whiten(reward[0]) == 0).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=4),
    mask=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_valid_members_sum_to_zero_and_lone_ones_get_none(rows: list[list[float]], mask: list[bool]) -> None:
    reward = torch.tensor(rows, dtype=torch.float64)
    valid = torch.tensor([mask]).expand(len(rows), -1)
    for advantage in (group_relative(reward, valid, scale_by_std=False), leave_one_out(reward, valid)):
        assert advantage.sum(1).abs().max() < 1e-9
        assert (advantage[~valid] == 0).all()
        if sum(mask) < 2:
            assert (advantage == 0).all()


def test_refuses_non_finite_valid_reward_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_relative(torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, True]]))
    with pytest.raises(ValueError, match="shape"):
        group_relative(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))


def test_turns_are_compared_with_the_members_that_came_as_far() -> None:
    """Three members of 1, 2 and 3 turns; the outcomes 1, 0, 1 are earned by each one's last turn."""
    reward = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    reached = torch.tensor([[[True, False, False], [True, True, False], [True, True, True]]])
    got = turn_relative(reward, reached, discount=0.5, scale_by_std=False)
    first = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    second = torch.tensor([0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(got[0, :, 0], first - first.mean())
    torch.testing.assert_close(got[0, 1:, 1], second - second.mean())
    assert (got[~reached] == 0).all() and got[0, 2, 2] == 0  # alone in the third turn
    undiscounted = turn_relative(reward, reached, scale_by_std=False)
    torch.testing.assert_close(undiscounted[0, :, 0], torch.tensor([1 / 3, -2 / 3, 1 / 3], dtype=torch.float64))


def rollout(**changes: torch.Tensor) -> Rollout:
    """Two groups, out of order and of different sizes; episode 3 failed by no fault of its own, 4 sampled nothing."""
    fields = {
        "reward_N": torch.tensor([1.0, 0.0, 0.5, torch.nan, 1.0, 0.0], dtype=torch.float64),
        "group_N": torch.tensor([7, 3, 7, 7, 3, 3]),
        "valid_N": torch.tensor([True, True, True, False, True, True]),
        "length_N": torch.tensor([2, 1, 3, 0, 0, 2]),
        "turn_T": torch.tensor([0, 1, 0, 0, 1, 1, 0, 0]),
    }
    return Rollout(**{**fields, **changes})


def test_group_advantages_reach_every_token_of_the_right_episode() -> None:
    a3 = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) - 1 / 3
    want = torch.cat([torch.full((2,), 0.25), a3[:1], torch.full((3,), -0.25), a3[2:].expand(2)]).double()
    torch.testing.assert_close(GRPO(scale_by_std=False).advantages(rollout()), want)
    torch.testing.assert_close(RLOO().advantages(rollout()), want * torch.tensor([2, 2, 1.5, 2, 2, 2, 1.5, 1.5]).double())


def test_batch_and_turn_advantages_by_the_recipe_s_word() -> None:
    everyone = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0], dtype=torch.float64)
    centred = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64) - everyone.mean()
    want = centred[rollout().episode_T] / (everyone.std() + 1e-4)
    torch.testing.assert_close(GRPO(advantage="batch").advantages(rollout()), want)
    got = GRPO(advantage="turn", turn_discount=0.5, scale_by_std=False).advantages(rollout())
    # group 7: outcomes 1 and 0.5 are earned in turn 1 by both, so turn 0 is worth half of them
    torch.testing.assert_close(got[:2], torch.tensor([0.125, 0.25], dtype=torch.float64))
    torch.testing.assert_close(got[3:6], torch.tensor([-0.125, -0.25, -0.25], dtype=torch.float64))
    assert (got[[2, 6, 7]] == 0).all()  # group 3: the only member that earned something sampled nothing


def test_by_turns_the_kl_in_the_reward_is_paid_by_the_turn_that_it_is_of() -> None:
    """Group 7: episodes 0 (turns of 1 token each) and 2 (of 1 and 2), with 0.1 * (0, 1) and 0.1 * (3, 4 + 5) to pay."""
    r = Rollout(**{**vars(rollout(kl_T=torch.arange(8, dtype=torch.float64))), "kl_coefficient": 0.1})
    got = GRPO(advantage="turn", turn_discount=0.5, scale_by_std=False).advantages(r)
    last = torch.tensor([1 - 0.1, 0.5 - 0.9], dtype=torch.float64)
    first = 0.5 * last - torch.tensor([0.0, 0.3], dtype=torch.float64)
    want = torch.stack([first - first.mean(), last - last.mean()])
    torch.testing.assert_close(got[:2], want[:, 0])
    torch.testing.assert_close(got[3:6], want[[0, 1, 1], 1])
    # undiscounted, an episode's first turn has all of its reward less all of its KL
    whole = GRPO(advantage="turn", scale_by_std=False).advantages(r)
    torch.testing.assert_close(whole[[0, 3]], GRPO(scale_by_std=False).advantages(r)[[0, 3]])


def test_reinforce_pp_takes_the_kl_still_to_come_and_normalises_over_tokens() -> None:
    kl = torch.arange(8, dtype=torch.float64)
    r = rollout(kl_T=kl)
    r = Rollout(**{**vars(r), "kl_coefficient": 0.1})
    back = torch.tensor([0 + 1, 1, 2, 3 + 4 + 5, 4 + 5, 5, 6 + 7, 7], dtype=torch.float64)
    raw = torch.tensor([1, 1, 0, 0.5, 0.5, 0.5, 0, 0], dtype=torch.float64) - 0.1 * back
    torch.testing.assert_close(ReinforcePP(kl_coefficient=0.1).advantages(r), (raw - raw.mean()) / (raw.std() + 1e-4))
    centred = GRPO(scale_by_std=False).advantages(rollout())
    torch.testing.assert_close(ReinforcePP(baseline="group").advantages(rollout()), whiten(centred))


def test_the_reward_less_its_kl() -> None:
    r = Rollout(**{**vars(rollout(kl_T=torch.ones(8, dtype=torch.float64))), "kl_coefficient": 0.1})
    torch.testing.assert_close(r.penalised_reward_N[[0, 1, 2, 4, 5]], torch.tensor([0.8, -0.1, 0.2, 1.0, -0.2]).double())
    # group 7 has 0.8 and 0.2 then
    torch.testing.assert_close(GRPO(scale_by_std=False).advantages(r)[0], torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(r.token_reward_T, torch.tensor([-0.1, 0.9, -0.1, -0.1, -0.1, 0.4, -0.1, -0.1]).double())
    assert PPO().advantages(Rollout(**{**vars(r), "value_T": torch.zeros(8)})).shape == (8,)


def test_overlong_penalty_equals_the_paper_s_cases() -> None:
    """arXiv:2503.14476, eq. 13 with L_max 100 and L_cache 20."""
    got = overlong_penalty(torch.tensor([1, 80, 85, 90, 100, 101, 500]), 100, 20)
    assert got.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    shaped = DAPO(overlong_buffer=2, overlong_limit=3, scale_by_std=False).advantages(rollout())
    # group 7: 1 - 1/2 for two tokens, 0.5 - 1 for three
    torch.testing.assert_close(shaped[[0, 3]], torch.tensor([0.5, -0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="buffer"):
        DAPO(overlong_buffer=5, overlong_limit=4)
    with pytest.raises(ValueError, match="overlong_limit"):
        DAPO(overlong_buffer=5)


def test_informative_groups_are_those_whose_valid_rewards_differ() -> None:
    reward = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    valid = torch.tensor([[True, True], [True, True], [True, False]])
    assert informative(reward, valid).tolist() == [True, False, False]


def test_learning_from_rewards_that_are_equal_within_groups() -> None:
    """A group baseline has nothing to say where the batch's still has."""
    reward, valid = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    assert not GRPO().learns_from(reward, valid) and not RLOO().learns_from(reward, valid)
    assert not GRPO(turn_discount=0.5).learns_from(reward, valid)  # idle: the discount is of turns
    assert GRPO(advantage="turn", turn_discount=0.5).learns_from(reward, valid)
    assert not ReinforcePP(baseline="group").learns_from(reward, valid)
    assert GRPO(advantage="batch").learns_from(reward, valid) and ReinforcePP().learns_from(reward, valid)
    assert PPO().learns_from(reward, valid) and RLOO(kl_coefficient=0.1).learns_from(reward, valid)
    assert not PPO().learns_from(reward, ~valid)
