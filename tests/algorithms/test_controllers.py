"""Adaptive KL and entropy control do what they say: the papers' rule, TRL's numbers, and they reach their target."""

import math

import pytest
import torch

from frontier_tune.algorithms.batch import Coefficients
from frontier_tune.algorithms.controllers import adapt_entropy, adapt_kl
from frontier_tune.algorithms.grpo import GRPO
from tests.algorithms.reference import Random, trl_grpo


def test_kl_rule() -> None:
    """arXiv:1909.08593, section 2.2: e = clip((KL - target) / target, -0.2, 0.2), beta *= 1 + 0.1 e."""
    assert adapt_kl(0.1, 0.05, 0.05) == 0.1
    assert adapt_kl(0.1, 0.055, 0.05) == pytest.approx(0.1 * 1.01)
    assert adapt_kl(0.1, 5.0, 0.05) == pytest.approx(0.1 * 1.02)
    assert adapt_kl(0.1, 0.0, 0.05) == pytest.approx(0.1 * 0.98)


@pytest.mark.parametrize("start", [0.001, 10.0])
def test_kl_is_driven_to_its_target(start: float) -> None:
    """A policy over three arms that is paid for leaving its base: at a fixed beta the best KL is far from the target."""
    base = torch.zeros(3, dtype=torch.float64).log_softmax(0)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    algorithm, c = GRPO(kl_coefficient=start, kl_target=0.2), Coefficients(start)
    for _ in range(1500):
        p = logits.log_softmax(0)
        kl = (p.exp() * (p - base)).sum()
        loss = -(p.exp() * reward).sum() + c.kl * kl
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.5 / max(1.0, c.kl) * gradient
        c = algorithm.adapt(c, float(kl.detach()), None)
    assert float(kl) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("entropy_target", [0.3, 0.9])
@pytest.mark.parametrize("last", [0.2, 1.0])
def test_entropy_control_equals_trl(entropy_target: float, last: float) -> None:
    """Same loss, gradient and next coefficient as TRL 1.16's adaptive entropy, at a low and a high last entropy."""
    batch = Random(0)
    want, want_gradient, metrics = trl_grpo(
        batch, epsilon_high=0.28, _entropy_bonus_enabled=True, use_adaptive_entropy=True, entropy_coef=0.02,
        _last_world_entropy=last, entropy_target=entropy_target,
    )  # fmt: skip
    algorithm = GRPO(entropy_coefficient=0.02, entropy_target=entropy_target, entropy_step=0.001, entropy_limit=0.1)
    c = Coefficients(0.0, 0.02, entropy_on=last <= entropy_target)
    loss, gradient, sums = batch.ours(algorithm, coefficients=c)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-12, rtol=1e-12)
    after = algorithm.adapt(c, None, float(sums["entropy"] / sums["tokens"]))
    assert after.entropy == pytest.approx(metrics["coefficient"])


def test_entropy_rule_and_bounds() -> None:
    assert adapt_entropy(0.005, 0.1, 0.2, 0.001, 0.1) == (pytest.approx(0.006), True)
    assert adapt_entropy(0.005, 0.3, 0.2, 0.001, 0.1) == (pytest.approx(0.004), False)
    assert adapt_entropy(0.0, 0.3, 0.2, 0.001, 0.1)[0] == 0.0 and adapt_entropy(0.1, 0.1, 0.2, 0.001, 0.1)[0] == 0.1


def test_entropy_is_held_near_its_target() -> None:
    """Two arms, the better one pays: without control the entropy goes to 0, with it it stays near the target."""

    def final(target: float | None) -> float:
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        algorithm = GRPO(entropy_target=target, entropy_step=0.02, entropy_limit=10.0)
        c, seen = algorithm.start(), []
        for _ in range(800):
            p = logits.log_softmax(0)
            entropy = -(p.exp() * p).sum()
            loss = -p.exp()[0] - c.applied_entropy * entropy
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= 0.3 * gradient
            c = algorithm.adapt(c, None, float(entropy.detach()))
            seen.append(float(entropy.detach()))
        return sum(seen[-200:]) / 200

    assert final(None) < 0.1 < 0.35 < final(0.45) < 0.6 < math.log(2)


def test_without_targets_nothing_moves() -> None:
    c = Coefficients(0.1, 0.2)
    assert GRPO(kl_coefficient=0.1, entropy_coefficient=0.2).adapt(c, 5.0, 0.0) == c
