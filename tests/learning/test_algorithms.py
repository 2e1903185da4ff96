"""Every algorithm through the learner: it learns what is rewarded, its loss is the formula's, and its state survives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frontier_tune.algorithms.registry import ALGORITHMS
from frontier_tune.contracts import BadInput, Blame, Failure
from frontier_tune.learning.credit import credited, rollout_of
from frontier_tune.learning.learner import Learner


def as_sampled(learner: Learner, played: list) -> list:
    """Log-probabilities of the policy that stands in for the sampler: the learner's own, a little off."""
    rng = np.random.default_rng(0)
    for t in played:
        score = learner.score([t.tokens])[0]
        t.logprobs = [score[i - 1] + float(rng.normal(scale=0.01)) if s else 0.0 for i, s in enumerate(t.mask)]
        t.logprobs = [min(x, 0.0) for x in t.logprobs]
        t.reward = float(t.spec.member == 0)
    return played


def chances(learner: Learner, played: list) -> list[float]:
    return [sum(x for x, s in zip(learner.score([t.tokens])[0], t.mask[1:], strict=True) if s) for t in played]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_raises_what_was_rewarded(bases, recipe, episodes, name: str) -> None:
    clip = ("algorithm.clip_low=0.2", "algorithm.clip_high=0.2") if name == "gspo" else ()
    learner = Learner(bases(), recipe(f"algorithm.name={name}", "learner.learning_rate=0.02", *clip))
    played, _ = episodes()
    before = chances(learner, played)
    for _ in range(4):
        metrics = learner.learn([as_sampled(learner, played)])
    gain = [b - a for a, b in zip(before, chances(learner, played), strict=True)]
    assert np.mean([g for g, t in zip(gain, played, strict=True) if t.spec.member == 0]) > 0.1
    assert np.mean([g for g, t in zip(gain, played, strict=True) if t.spec.member != 0]) < 0
    assert learner.version == learner.steps == 4 and metrics["updates"] == 1 and np.isfinite(metrics["loss"])
    assert ("value_loss" in metrics) == (name == "ppo")


@pytest.mark.parametrize("name", ["ppo", "rloo", "dapo"])
def test_the_gradient_does_not_depend_on_microbatches(bases, recipe, episodes, name: str) -> None:
    found = []
    for budget in (100_000, 64):
        settings = (f"algorithm.name={name}", "algorithm.kl_coefficient=0.1", f"learner.tokens_per_microbatch={budget}")
        learner = Learner(bases(), recipe(*settings, "learner.learning_rate=1e-6"))
        torch.manual_seed(1)
        for _, p in learner.policy.named_parameters():
            torch.nn.init.normal_(p, std=0.1)
        metrics = learner.learn([as_sampled(learner, episodes(groups=6, members=5)[0])])
        found.append((metrics["loss"], metrics["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=2e-5, abs=1e-6)


def test_learn_equals_update_with_group_relative_advantages(bases, recipe, episodes) -> None:
    """An episode that failed by no fault of the agent touches no baseline; each environment's groups are their own."""
    digests = []
    for own in (True, False):
        learner = Learner(bases(), recipe("algorithm.minibatches=2"))
        played = as_sampled(learner, episodes()[0])
        played[4].failure = Failure("worker-died", Blame.INFRASTRUCTURE)
        if own:
            learner.learn([played[:3], played[3:]])
        else:
            advantages = []
            for g in range(3):
                group = [t for t in played if t.spec.group == g]
                valid = np.array([t.reward for t in group if t.trainable])
                scale = valid.std(ddof=1) + 1e-4
                advantages += [(t.reward - valid.mean()) / scale if t.trainable else 0.0 for t in group]
            learner.update(played, advantages)
        digests.append(learner.digests())
    assert digests[0] == digests[1]


def test_a_kl_in_the_reward_is_taken_off_before_the_baseline(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("algorithm.name=rloo", "algorithm.kl_coefficient=0.5"))
    torch.manual_seed(1)
    for _, p in learner.policy.named_parameters():
        torch.nn.init.normal_(p, std=0.3)
    played = as_sampled(learner, episodes(groups=1)[0])
    got, penalty = credited(learner.algorithm, played, 61, 0.5, learner.passes.measure)
    assert penalty is not None and penalty[1] == sum(t.sampled_tokens for t in played)
    mean_kl = penalty[0]
    base = learner.score_base([t.tokens for t in played])
    kl = [[t.logprobs[i + 1] - b for i, b in enumerate(scores) if t.mask[i + 1]] for t, scores in zip(played, base, strict=True)]
    reward = [t.reward - 0.5 * sum(k) for t, k in zip(played, kl, strict=True)]
    want = [r - (sum(reward) - r) / 2 for r in reward]
    assert [s.advantage[0] for s in got] == pytest.approx(want, abs=1e-4)
    assert mean_kl == pytest.approx(np.mean([x for k in kl for x in k]), abs=1e-5)
    assert learner.learn([played])["kl_reward"] == pytest.approx(mean_kl)


def test_proximal_is_the_learner_s_own_policy_at_the_start_of_the_step(bases, recipe, episodes) -> None:
    """Its first update's ratio is 1 however far off the sampler is, and with one update a step no forward is spent on it."""
    for passes in (1, 2):
        settings = ("algorithm.proximal=learner", "algorithm.correction=truncate", f"algorithm.epochs={passes}")
        learner = Learner(bases(), recipe(*settings, "learner.learning_rate=1e-9"))
        played = as_sampled(learner, episodes()[0])
        for t in played:
            t.logprobs = [min(0.0, x - 3.0) if s else 0.0 for x, s in zip(t.logprobs, t.mask, strict=True)]
        metrics = learner.learn([played])
        assert metrics["clip_share"] == 0 and metrics["kl_sampler"] > 1 and metrics["weight"] == pytest.approx(2.0)
        assert metrics["updates"] == passes


def test_turns_are_runs_of_sampled_tokens(episodes) -> None:
    played, _ = episodes(groups=1, members=2)
    rollout = rollout_of(played)
    for n, t in enumerate(played):
        turns = rollout.turn_T[rollout.episode_T == n].tolist()
        want, turn = [], -1
        for i, sampled in enumerate(t.mask):
            turn += sampled and not t.mask[i - 1]
            want += [turn] * sampled
        assert turns == want and max(turns) == 1


def test_controllers_move_and_survive_a_resumption(bases, recipe, episodes, tmp_path) -> None:
    settings = ("kl_coefficient=0.1", "kl_target=1e-6", "entropy_target=100", "entropy_step=0.01")
    learner = Learner(bases(), recipe(*(f"algorithm.{s}" for s in settings)))
    played = as_sampled(learner, episodes()[0])
    metrics = [learner.learn([played]) for _ in range(3)]
    assert metrics[-1]["kl_base"] > 1e-6 and metrics[-1]["kl_coefficient"] > 0.1  # above the target: it rises
    assert metrics[-1]["entropy_coefficient"] == pytest.approx(0.03)  # entropy below the target: up by a step each time
    learner.save(tmp_path)
    other = Learner(bases(), recipe(*(f"algorithm.{s}" for s in settings)))
    other.load(tmp_path)
    assert other.coefficients == learner.coefficients


def test_a_kl_in_the_reward_logs_the_coefficient_that_the_next_step_uses(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("algorithm.name=rloo", "algorithm.kl_coefficient=0.1", "algorithm.kl_target=10"))
    metrics = learner.learn([as_sampled(learner, episodes()[0])])
    assert metrics["kl_coefficient"] == learner.coefficients.kl == pytest.approx(0.098)  # far below the target: 2 % down


def test_a_resumed_critic_equals_an_uninterrupted_one_bitwise(bases, recipe, episodes, tmp_path) -> None:
    r = recipe("algorithm.name=ppo", "algorithm.epochs=2", "algorithm.kl_coefficient=0.01")
    straight = Learner(bases(), r)
    batches = [as_sampled(straight, episodes(seed)[0]) for seed in range(4)]
    for n, batch in enumerate(batches):
        straight.learn([batch])
        if n == 1:
            straight.save(tmp_path)
    resumed = Learner(bases(), r)
    resumed.load(tmp_path)
    for batch in batches[2:]:
        resumed.learn([batch])
    assert straight.digests() == resumed.digests()
    assert straight.critic is not None and resumed.critic is not None
    for name, tensor in straight.critic.tensors().items():
        assert torch.equal(tensor, resumed.critic.tensors()[name]), name
    plain = Learner(bases(), recipe())
    plain.save(tmp_path / "plain")
    with pytest.raises(BadInput, match="no critic here"):
        Learner(bases(), r).load(tmp_path / "plain")


def test_the_critic_learns_the_mean_reward(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("algorithm.name=ppo", "algorithm.epochs=4", "learner.learning_rate=1e-9"))
    played = as_sampled(learner, episodes(groups=6)[0])
    losses = [learner.learn([played])["value_loss"] for _ in range(15)]
    assert losses[-1] < 0.2 * losses[0]


def test_episodes_that_were_cut_off_count_in_the_baseline_alone(bases, recipe, episodes) -> None:
    """The others' advantages and the normaliser are those of a batch of which the cut ones have no sampled token."""
    asked = "algorithm.scale_by_std=false"
    masked, plain = Learner(bases(), recipe(asked, "algorithm.mask_truncated=true")), Learner(bases(), recipe(asked))
    played = as_sampled(plain, episodes()[0])
    for t in played:
        t.reward, t.truncated = float(t.spec.member == 1), t.spec.member == 2
    kept = [t for t in played if not t.truncated]
    got = masked.learn([played])
    want = plain.update(kept, [t.reward - 1 / 3 for t in kept])
    assert got["tokens"] == want["tokens"] == sum(t.sampled_tokens for t in kept) and got["updates"] == 1
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-6) and masked.digests() == plain.digests()
    for t in played:
        t.truncated = True
    assert masked.learn([played])["updates"] == 0  # nothing to learn from, and nothing breaks


def test_a_step_of_which_all_was_cut_off_teaches_nothing_with_a_kl_in_the_reward_either(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("algorithm.name=rloo", "algorithm.kl_coefficient=0.1", "algorithm.mask_truncated=true"))
    played = as_sampled(learner, episodes()[0])
    for t in played:
        t.reward, t.truncated = float(t.spec.member), True
    metrics = learner.learn([played])
    assert metrics["updates"] == learner.learned == 0 and metrics["kl_reward"] >= 0
