"""Every loss and its gradient against TRL 1.16's code on the same tensors, or against a scalar loop where TRL has none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Tokens, Totals
from frontier_tune.algorithms.cispo import CISPO
from frontier_tune.algorithms.dapo import DAPO
from frontier_tune.algorithms.dr_grpo import DrGRPO
from frontier_tune.algorithms.grpo import GRPO
from frontier_tune.algorithms.gspo import GSPO
from frontier_tune.algorithms.ppo import PPO
from frontier_tune.algorithms.reinforce_pp import ReinforcePP
from frontier_tune.algorithms.rloo import RLOO
from tests.algorithms.reference import Random, trl_grpo, trl_rloo

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
TRL_CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.28}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (GRPO(normalization="sequence", **CLIP), {"loss_type": "grpo", **TRL_CLIP}),
        (GRPO(**CLIP), {"loss_type": "bnpo", **TRL_CLIP}),
        (DAPO(), {"loss_type": "dapo", **TRL_CLIP}),
        (DrGRPO(loss_constant=50), {"loss_type": "dr_grpo", "max_completion_length": 50}),
        (CISPO(), {"loss_type": "cispo", "epsilon_high": 5.0}),
        (CISPO(clip_high=0.3), {"loss_type": "cispo", "epsilon_high": 1.3}),
        (GSPO(), {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
        (GSPO(**CLIP), {"loss_type": "grpo", "importance_sampling_level": "sequence", **TRL_CLIP}),
        (ReinforcePP(), {"loss_type": "dapo"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Algorithm) else x["loss_type"] if isinstance(x, dict) else str(x),
)
def test_loss_gradient_and_clipping_equal_trl(algorithm: Algorithm, settings: dict[str, Any], beta: float) -> None:
    batch = Random(0, spread=0.3)
    with_kl = type(algorithm)(**{**vars(algorithm), "kl_coefficient": beta, "kl_in": "loss", "kl_estimator": "k3"})
    loss, gradient, sums = batch.ours(with_kl)
    want, want_gradient, metrics = trl_grpo(batch, beta=beta, **settings)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-12, rtol=1e-12)
    clipped = metrics["cispo_clip_ratio" if settings["loss_type"] == "cispo" else "clip_ratio/region_mean"]
    if settings.get("importance_sampling_level") != "sequence":  # there TRL counts sequences, not tokens
        assert (sums["clipped"] / sums["tokens"]).item() == pytest.approx(clipped, abs=1e-7)
    if beta:
        assert (sums["kl_base"] / sums["tokens"]).item() == pytest.approx(metrics["kl"], abs=1e-7)


def test_rloo_equals_trl() -> None:
    batch = Random(1, spread=0.1)
    loss, gradient, _ = batch.ours(RLOO())
    want, want_gradient, _ = trl_rloo(batch, 0.2, 0.2)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-12, rtol=1e-12)


def test_float32_agrees_with_trl_in_float32() -> None:
    batch = Random(5)
    for name, value in vars(batch).items():
        if value.is_floating_point():
            setattr(batch, name, value.float())
    loss, gradient, _ = batch.ours(GRPO(**CLIP))
    want, want_gradient, _ = trl_grpo(batch, **TRL_CLIP)
    torch.testing.assert_close(loss.float(), want, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("low,high", [(0.0, 2.0), (0.5, 3.0)])
def test_mismatch_corrections_equal_trl(method: Any, level: Any, low: float, high: float) -> None:
    """Its importance ratio, of _generate_and_score_completions in modes {token,sequence}_{truncate,mask}, on the padded batch."""
    batch = Random(2)
    diff = (batch.old - batch.sampler) * batch.mask
    ratio = diff.exp() if level == "token" else diff.sum(-1, keepdim=True).exp()
    ratio = ratio.clamp(low, high) if method == "truncate" else ratio.masked_fill((ratio < low) | (ratio > high), 0.0)
    ours = GRPO(
        **CLIP, proximal="learner", correction=method, correction_level=level, correction_low=low, correction_high=high,
        kl_coefficient=0.1,
    )  # fmt: skip
    loss, gradient, sums = batch.ours(ours)
    want, want_gradient, _ = trl_grpo(batch, use_vllm=True, importance_sampling_ratio=ratio, beta=0.1, **TRL_CLIP)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-12, rtol=1e-12)
    assert sums["weight"].item() == pytest.approx(ratio.expand_as(batch.mask)[batch.mask].sum().item())


def test_the_decoupled_objective_and_geometric_weights_equal_a_scalar_loop() -> None:
    """arXiv:2505.24298, section 5.2: the ratio against the proximal policy, weighted by proximal / behaviour."""
    batch = Random(3)
    for level in ("token", "geometric"):
        loss, _, _ = batch.ours(GRPO(**CLIP, proximal="learner", correction="full", correction_level=level))  # type: ignore[arg-type]
        total = 0.0
        for n, row in enumerate(batch.mask):
            where = [t for t in range(len(row)) if row[t]]
            mean = sum((batch.old - batch.sampler)[n, t].item() for t in where) / len(where)
            for t in where:
                rho = math.exp(batch.new[n, t] - batch.old[n, t])
                w = math.exp((batch.old - batch.sampler)[n, t].item() if level == "token" else mean)
                a = batch.advantage[n].item()
                total -= w * min(rho * a, max(0.8, min(1.28, rho)) * a)
        assert loss.item() == pytest.approx(total / int(batch.mask.sum()), rel=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("normalization", ["token", "sequence", "constant"])
def test_grpo_with_all_terms_equals_a_scalar_loop(normalization: Any, estimator: Any) -> None:
    batch = Random(3)
    algorithm = GRPO(
        normalization=normalization, loss_constant=7, kl_coefficient=0.1, kl_estimator=estimator, entropy_coefficient=0.05
    )
    total, entropy, clipped = 0.0, 0.0, 0
    for n, row in enumerate(batch.mask):
        own = 0.0
        for t in range(len(row)):
            if not row[t]:
                continue
            a, rho = batch.advantage[n].item(), math.exp(batch.new[n, t] - batch.old[n, t])
            r = math.exp(batch.base[n, t] - batch.new[n, t])
            own -= min(rho * a, max(0.8, min(1.28, rho)) * a)
            own += 0.1 * {"k2": math.log(r) ** 2 / 2, "k3": r - 1 - math.log(r)}[estimator]
            entropy += batch.entropy[n, t].item()
            clipped += (a > 0 and rho > 1.28) or (a < 0 and rho < 0.8)
        total += own / int(row.sum()) if normalization == "sequence" else own
    count = int(batch.mask.sum())
    total /= {"token": count, "sequence": len(batch.mask), "constant": 7 * len(batch.mask)}[normalization]
    loss, _, sums = batch.ours(algorithm)
    assert loss.item() == pytest.approx(total - 0.05 * entropy / count, rel=1e-12)
    assert sums["clipped"].item() == clipped and sums["tokens"].item() == count


def test_ppo_equals_a_scalar_loop() -> None:
    batch = Random(4)
    loss, gradient, sums = batch.ours(PPO(value_clip=0.3, value_coefficient=0.7))
    total, value_total, count = 0.0, 0.0, int(batch.mask.sum())
    want = torch.zeros(2, *batch.mask.shape, dtype=torch.float64)
    for n, t in batch.mask.nonzero().tolist():
        a, rho = batch.advantage[n].item(), math.exp(batch.new[n, t] - batch.old[n, t])
        unclipped = rho * a <= max(0.8, min(1.2, rho)) * a
        total -= min(rho * a, max(0.8, min(1.2, rho)) * a)
        want[0, n, t] = -rho * a / count if unclipped else 0.0
        v, old, r = (x[n, t].item() for x in (batch.value, batch.old_value, batch.returns))
        near = min(max(v, old - 0.3), old + 0.3)
        value_total += 0.5 * max((v - r) ** 2, (near - r) ** 2)
        moves = (v - r) ** 2 >= (near - r) ** 2
        want[1, n, t] = 0.7 * (v - r) / count if moves else 0.0
    assert loss.item() == pytest.approx((total + 0.7 * value_total) / count, rel=1e-12)
    assert sums["value_loss"].item() == pytest.approx(value_total, rel=1e-12)
    torch.testing.assert_close(gradient, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("algorithm", [GRPO(), GSPO(), RLOO(), ReinforcePP(), CISPO(), DrGRPO(loss_constant=9)])
def test_on_policy_gradient_is_the_policy_gradient(algorithm: Algorithm) -> None:
    """At ratio 1 the gradient with respect to each token's log-probability is -A times the token's share in the mean."""
    batch = Random(6, spread=0.0)
    _, gradient, _ = batch.ours(algorithm)
    lengths = batch.mask.sum(1, keepdim=True).double()
    share = {
        "token": 1 / batch.totals.tokens,
        "constant": 1 / (9 * batch.totals.sequences),
        # of a sequence's ratio each token moves 1/n (GSPO: the mean) or all of it (RLOO: the sum)
        "sequence": 1 / (batch.totals.sequences * (lengths if isinstance(algorithm, GSPO) else torch.ones_like(lengths))),
    }[algorithm.normalization]
    torch.testing.assert_close(gradient, -batch.advantage[:, None] * share * batch.mask, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("normalization", ["token", "sequence", "constant"])
@pytest.mark.parametrize("kind", [GSPO, RLOO])
def test_a_sequence_s_ratio_leaves_each_token_its_own_advantage_and_weight(kind: Any, normalization: Any) -> None:
    """-share_t w_t s_i A_t, and 0 where masked: with the gradient through the shared ratio all tokens would get their mean."""
    batch = Random(11, spread=0.02)
    settings = {"correction": "mask", "correction_low": 0.5, "correction_high": 1.5, "clip_low": 0.9, "clip_high": 9.0}
    algorithm = kind(proximal="learner", normalization=normalization, loss_constant=7, **settings)
    credit = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    new = batch.new.clone().requires_grad_()
    loss, _ = algorithm.loss(replace(batch.tokens(new), advantage_T=credit[batch.mask]), batch.totals)
    loss.backward()
    weight = (batch.old - batch.sampler).exp()
    weight = weight.masked_fill((weight < 0.5) | (weight > 1.5), 0.0) * batch.mask
    assert (weight[batch.mask] == 0).any()
    length = batch.mask.sum(1, keepdim=True).double()
    logs = ((batch.new - batch.old) * batch.mask).sum(1, keepdim=True)
    ratio = (logs / length if kind is GSPO else logs).exp()
    sequences = batch.totals.sequences
    whole = {"token": batch.totals.tokens, "constant": 7 * sequences, "sequence": sequences}[normalization]
    mean = length if normalization == "sequence" and kind is GSPO else 1.0
    torch.testing.assert_close(new.grad, -weight * ratio * credit / (mean * whole), atol=1e-12, rtol=1e-12)


def test_float32_grpo_is_bit_for_bit_the_formula() -> None:
    """The shipped recipe's loss, pinned: these very operations in this order, so that runs stay reproducible."""
    batch = Random(7, n=40, t=30)
    for name, value in vars(batch).items():
        if value.is_floating_point():
            setattr(batch, name, value.float())
    ours = batch.new.clone().requires_grad_()
    loss, _ = GRPO().loss(batch.tokens(ours), batch.totals)
    loss.backward()
    again = batch.new.clone().requires_grad_()
    tokens = batch.tokens(again)
    ratio = (tokens.logprob_T - tokens.old_logprob_T).exp()
    per_token = -torch.min(ratio * tokens.advantage_T, ratio.clamp(1 - 0.2, 1 + 0.28) * tokens.advantage_T)
    want = per_token.sum() / int(batch.mask.sum())
    want.backward()
    assert torch.equal(loss, want) and torch.equal(ours.grad, again.grad)


def test_refuses_what_would_broadcast_or_divide_by_zero() -> None:
    x, n = torch.zeros(3), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="shapes differ"):
        Tokens(x, x, torch.zeros(1), n, 1)
    with pytest.raises(ValueError, match="needs tokens"):
        Totals(0, 1)
    tokens = Tokens(x, x, x, n, 1)
    with pytest.raises(ValueError, match="base_logprob"):
        GRPO(kl_coefficient=0.1).loss(tokens, Totals(3, 1))
    with pytest.raises(ValueError, match="entropy_T"):
        GRPO(entropy_coefficient=0.1).loss(tokens, Totals(3, 1))
    with pytest.raises(ValueError, match="sampler_logprob_T"):
        GRPO(proximal="learner", correction="mask").loss(tokens, Totals(3, 1))
    with pytest.raises(ValueError, match="return_T"):
        PPO().loss(tokens, Totals(3, 1))


def test_a_policy_loss_of_another_shape_is_refused() -> None:
    """A mean in place of each token's loss would broadcast, and be weighed by the number of micro-batches."""

    class Mean(GRPO):
        def policy_loss(self, tokens: Tokens) -> Any:
            loss, clipped = super().policy_loss(tokens)
            return loss.mean(), clipped

    with pytest.raises(ValueError, match=r"Mean.policy_loss: shapes \(\)"):
        Random(0).ours(Mean())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"normalization": "constant"}, "loss_constant"),
        ({"correction": "mask"}, "proximal"),
        ({"correction_low": 3.0}, "below correction_high"),
        ({"kl_target": 0.1}, "kl_coefficient"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GRPO(**settings)
