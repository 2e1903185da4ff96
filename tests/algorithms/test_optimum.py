"""A bandit and a small Markov decision process with known optima: every algorithm reaches them, from three seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Rollout, Tokens, Totals
from frontier_tune.algorithms.registry import ALGORITHMS

SEEDS = (0, 1, 2)
# Two contexts (groups) with an arm each that pays more often than the others; the best policy earns 0.8 on average.
PAYS = torch.tensor([[0.2, 0.9, 0.3, 0.1], [0.7, 0.1, 0.2, 0.4]])
# A corridor of STATES cells: "right" moves on, "stop" ends. Stopping in cell s pays PRIZE[s]: the near prize is a trap.
PRIZE = torch.tensor([0.3, 0.0, 0.0, 1.0])
STATES, HORIZON = 4, 4


class Tables(nn.Module):
    """Logits and values by state: the smallest policy and critic."""

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states, actions, dtype=torch.float64))
        self.values = nn.Parameter(torch.zeros(states, dtype=torch.float64))

    def logprob(self, state_T: Tensor, action_T: Tensor) -> Tensor:
        return self.logits.log_softmax(1)[state_T, action_T]


def bandit(model: Tables, g: torch.Generator, groups: int = 8, members: int = 8) -> tuple[Rollout, Tensor, Tensor]:
    """One token an episode: which arm. Contexts alternate by group."""
    group_N = torch.arange(groups).repeat_interleave(members)
    state_T = group_N % len(PAYS)
    action_T = torch.multinomial(model.logits.detach().softmax(1)[state_T], 1, generator=g)[:, 0]
    reward_N = (torch.rand(len(group_N), generator=g) < PAYS[state_T, action_T]).double()
    ones = torch.ones_like(group_N)
    return Rollout(reward_N, group_N, ones.bool(), ones, torch.zeros_like(group_N)), state_T, action_T


def corridor(model: Tables, g: torch.Generator, groups: int = 8, members: int = 8) -> tuple[Rollout, Tensor, Tensor]:
    """One token a turn: 0 stops, 1 goes right; who reaches the last cell's end without stopping earns nothing."""
    p = model.logits.detach().softmax(1)
    states, actions, turns, rewards, lengths = [], [], [], [], []
    for _ in range(groups * members):
        earned, s = 0.0, 0
        for turn in range(HORIZON):
            a = int(torch.multinomial(p[s], 1, generator=g))
            states.append(s)
            actions.append(a)
            turns.append(turn)
            if a == 0:
                earned = float(PRIZE[s])
                break
            s = min(s + 1, STATES - 1)
        rewards.append(earned)
        lengths.append(turn + 1)
    group_N = torch.arange(groups).repeat_interleave(members)
    valid_N = torch.ones(len(group_N), dtype=torch.bool)
    rollout = Rollout(torch.tensor(rewards).double(), group_N, valid_N, torch.tensor(lengths), torch.tensor(turns))
    return rollout, torch.tensor(states), torch.tensor(actions)


def train(algorithm: Algorithm, play, model: Tables, seed: int, steps: int, rate: float, epochs: int = 2) -> None:
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    coefficients = algorithm.start()
    for _ in range(steps):
        rollout, state_T, action_T = play(model, g)
        old_T, old_value_T = model.logprob(state_T, action_T).detach(), model.values.detach()[state_T]
        rollout = Rollout(**{**vars(rollout), "value_T": old_value_T if algorithm.has_critic else None})
        totals = Totals(len(action_T), len(rollout.reward_N))
        for _ in range(epochs):
            logp_T = model.logits.log_softmax(1)[state_T]
            tokens = Tokens(
                logprob_T=logp_T.gather(1, action_T[:, None])[:, 0],
                old_logprob_T=old_T,
                advantage_T=algorithm.advantages(rollout),
                sequence_T=rollout.episode_T,
                sequences=len(rollout.reward_N),
                entropy_T=-(logp_T.exp() * logp_T).sum(1),
                value_T=model.values[state_T] if algorithm.has_critic else None,
                old_value_T=old_value_T if algorithm.has_critic else None,
                return_T=algorithm.returns(rollout),
            )
            loss, sums = algorithm.loss(tokens, totals, coefficients)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            coefficients = algorithm.adapt(coefficients, None, float(sums["entropy"] / sums["tokens"]))


def built(name: str) -> Algorithm:
    settings = {"dr_grpo": {"loss_constant": HORIZON}, "gspo": {"clip_low": 0.2, "clip_high": 0.28}}
    return ALGORITHMS[name](**settings.get(name, {}))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_bandit(name: str, seed: int) -> None:
    model = Tables(*PAYS.shape)
    train(built(name), bandit, model, seed, steps=150, rate=0.1)
    earned = (model.logits.softmax(1) * PAYS).sum(1)
    assert (earned >= PAYS.amax(1) - 0.05).all(), earned


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_corridor(name: str, seed: int) -> None:
    """The optimum walks past the trap and stops in the last cell: the chance of doing so is the expected prize, 1."""
    model = Tables(STATES, 2)
    train(built(name), corridor, model, seed, steps=60, rate=0.15)
    stop, right = model.logits.detach().softmax(1).unbind(1)
    assert float(right[:-1].prod() * stop[-1]) > 0.9, (right, stop)


@pytest.mark.parametrize("seed", SEEDS)
def test_credit_by_turn_reaches_the_corridor_s_end(seed: int) -> None:
    model = Tables(STATES, 2)
    train(ALGORITHMS["grpo"](advantage="turn"), corridor, model, seed, steps=60, rate=0.15)
    assert float(model.logits.softmax(1)[:-1, 1].prod()) > 0.9


def test_the_critic_s_values_are_the_policy_s_returns() -> None:
    """With the policy held (no policy gradient reaches it), TD(lambda) converges to the values of a fair coin in each cell."""
    model = Tables(STATES, 2)
    model.logits.requires_grad_(False)
    algorithm = ALGORITHMS["ppo"](value_clip=0.0)
    train(algorithm, lambda m, g: corridor(m, g, 32), model, 0, steps=150, rate=0.02, epochs=1)
    want = [0.0] * STATES
    # By backward induction over cells; the last one is reached in the last turn, so it is stopped in or lost.
    want[3] = 0.5 * float(PRIZE[3])
    for s in reversed(range(3)):
        want[s] = 0.5 * float(PRIZE[s]) + 0.5 * want[s + 1]
    torch.testing.assert_close(model.values.detach(), torch.tensor(want, dtype=torch.float64), atol=0.05, rtol=0)
