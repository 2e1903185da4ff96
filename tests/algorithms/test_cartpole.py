"""PPO, GAE and the value loss as they are solve gymnasium's CartPole-v1 to the score that its registry calls solved."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from frontier_tune.algorithms.advantages import whiten
from frontier_tune.algorithms.batch import Tokens, Totals
from frontier_tune.algorithms.gae import gae
from frontier_tune.algorithms.ppo import PPO

ENVS = 8
STEPS_AN_ITERATION = 2048


def network(outputs: int, gain: float) -> nn.Sequential:
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
    for layer, g in zip(layers[::2], (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, g)  # type: ignore[union-attr]
        nn.init.zeros_(layer.bias)  # type: ignore[union-attr]
    return nn.Sequential(*layers)


def play(policy: nn.Module, critic: nn.Module, discount: float, seed: int, g: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """Whole episodes, one after another in each of ENVS environments, until there are enough steps."""
    envs = [gymnasium.make("CartPole-v1") for _ in range(ENVS)]
    done, total = [], 0
    observations = [env.reset(seed=seed * 1000 + i)[0] for i, env in enumerate(envs)]
    running: list[dict[str, list]] = [{"state": [], "action": [], "reward": []} for _ in envs]
    while total < STEPS_AN_ITERATION:
        with torch.no_grad():
            p = policy(torch.from_numpy(np.stack(observations))).softmax(1)
        actions = torch.multinomial(p, 1, generator=g)[:, 0].tolist()
        for i, env in enumerate(envs):
            episode = running[i]
            episode["state"].append(observations[i])
            episode["action"].append(actions[i])
            observations[i], reward, terminated, truncated, _ = env.step(actions[i])
            if truncated and not terminated:  # the episode would go on: what is beyond is worth what the critic says
                with torch.no_grad():
                    reward += discount * float(critic(torch.from_numpy(observations[i])))
            episode["reward"].append(reward)
            if terminated or truncated:
                done.append({name: torch.from_numpy(np.array(x)) for name, x in episode.items()})
                total += len(episode["reward"])
                observations[i], running[i] = env.reset()[0], {"state": [], "action": [], "reward": []}
    return done


def score(policy: nn.Module, episodes: int = 100) -> float:
    """Mean return of the greedy policy."""
    total, env = 0.0, gymnasium.make("CartPole-v1")
    for seed in range(episodes):
        observation, over = env.reset(seed=10_000 + seed)[0], False
        while not over:
            with torch.no_grad():
                action = int(policy(torch.from_numpy(observation)).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
    return total / episodes


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_solves_cartpole(seed: int) -> None:
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    algorithm = PPO(discount=0.99, trace=0.95, value_clip=0.0)
    policy, critic = network(2, 0.01), network(1, 1.0)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], 1e-3, eps=1e-5)
    for iteration in range(40):
        episodes = play(policy, critic, algorithm.discount, seed * 100 + iteration, g)
        if np.mean([len(e["reward"]) for e in episodes]) > 490:
            break
        length_N = torch.tensor([len(e["reward"]) for e in episodes])
        state_T, action_T, reward_T = (torch.cat([e[k] for e in episodes]) for k in ("state", "action", "reward"))
        with torch.no_grad():
            old_T = policy(state_T).log_softmax(1).gather(1, action_T[:, None])[:, 0]
            value_T = critic(state_T)[:, 0]
        advantage_T = gae(reward_T.float(), value_T, length_N, algorithm.discount, algorithm.trace)
        return_T = advantage_T + value_T
        for _ in range(4):
            for rows in torch.randperm(len(state_T), generator=g).split(256):
                tokens = Tokens(
                    logprob_T=policy(state_T[rows]).log_softmax(1).gather(1, action_T[rows, None])[:, 0],
                    old_logprob_T=old_T[rows],
                    advantage_T=whiten(advantage_T[rows]),
                    sequence_T=torch.arange(len(rows)),
                    sequences=len(rows),
                    value_T=critic(state_T[rows])[:, 0],
                    old_value_T=value_T[rows],
                    return_T=return_T[rows],
                )
                loss, _ = algorithm.loss(tokens, Totals(len(rows), len(rows)))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([*policy.parameters(), *critic.parameters()], 0.5)
                optimizer.step()
    threshold = gymnasium.spec("CartPole-v1").reward_threshold
    assert threshold == 475 and score(policy) >= threshold
