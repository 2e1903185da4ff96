import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import GRPOTrainer

from frontier_tune.algorithms import grpo


def trl_loss(logprob_NT, old_NT, advantage_N, mask_NT, base_NT, low, high, beta):
    """TRL 1.16's own GRPOTrainer._compute_loss (loss_type "dapo"), fed with these log-probabilities."""
    identity = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    me = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprob_NT, torch.zeros_like(logprob_NT), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type="dapo",
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=identity,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros_like(mask_NT, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :0], "prompt_mask": mask_NT[:, :0], "completion_ids": ids, "completion_mask": mask_NT,
        "advantages": advantage_N, "old_per_token_logps": old_NT, "ref_per_token_logps": base_NT,
        "num_items_in_batch": mask_NT.sum(),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(me, None, inputs), me._metrics["train"]


def batch(seed: int, n: int = 6, t: int = 9):
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(n, t, generator=g, dtype=torch.float64) * 3
    new = old + 0.5 * torch.randn(n, t, generator=g, dtype=torch.float64)
    base = old + 0.2 * torch.randn(n, t, generator=g, dtype=torch.float64)
    advantage = torch.randn(n, generator=g, dtype=torch.float64)
    mask = torch.rand(n, t, generator=g) < 0.7
    return new, old, base, advantage, mask


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("low,high", [(0.2, 0.2), (0.2, 0.28)])
def test_loss_gradient_and_clip_share_equal_trl(low: float, high: float, beta: float) -> None:
    new, old, base, advantage, mask = batch(0)
    theirs_in, ours_in = new.clone().requires_grad_(), new.clone().requires_grad_()
    theirs, their_metrics = trl_loss(theirs_in, old, advantage, mask.long(), base, low, high, beta)
    advantage_T = advantage[:, None].expand_as(old)[mask]
    ours, sums = grpo.loss(
        ours_in[mask], old[mask], advantage_T, float(mask.sum()),
        clip_low=low, clip_high=high, base_logprob_T=base[mask], kl_coefficient=beta,
    )  # fmt: skip
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-12, rtol=1e-12)
    assert (sums.clipped / sums.tokens).item() == pytest.approx(their_metrics["clip_ratio/region_mean"][0], abs=1e-7)
    if beta:
        assert (sums.kl_base / sums.tokens).item() == pytest.approx(their_metrics["kl"][0], abs=1e-7)


def test_equals_a_scalar_loop() -> None:
    new, old, base, advantage, mask = batch(3)
    entropy = torch.rand_like(new)
    total, clipped = 0.0, 0
    for n in range(len(new)):
        for t in range(new.shape[1]):
            if not mask[n, t]:
                continue
            a = advantage[n].item()
            rho = math.exp(new[n, t] - old[n, t])
            r = math.exp(base[n, t] - new[n, t])
            total -= min(rho * a, max(0.8, min(1.28, rho)) * a)
            total += 0.1 * (r - 1 - math.log(r)) - 0.05 * entropy[n, t].item()
            clipped += (a > 0 and rho > 1.28) or (a < 0 and rho < 0.8)
    loss, sums = grpo.loss(
        new[mask], old[mask], advantage[:, None].expand_as(old)[mask], float(mask.sum()), entropy_T=entropy[mask],
        entropy_coefficient=0.05, base_logprob_T=base[mask], kl_coefficient=0.1,
    )  # fmt: skip
    assert loss.item() == pytest.approx(total / int(mask.sum()), rel=1e-12)
    assert sums.clipped.item() == clipped


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 53), max_size=6), kl_coefficient=st.sampled_from([0.0, 0.1]))
def test_any_split_into_microbatches_gives_the_same(seed: int, cuts: set[int], kl_coefficient: float) -> None:
    new, old, base, advantage, _ = batch(seed)
    flat = [x.reshape(-1) for x in (old, advantage[:, None].expand_as(old), base)]
    bounds = [0, *sorted(cuts), new.numel()]

    def run(slices: list[slice]):
        leaf = new.reshape(-1).clone().requires_grad_()
        total, sums = 0.0, None
        for s in slices:
            loss, part = grpo.loss(
                leaf[s], flat[0][s], flat[1][s], new.numel(), base_logprob_T=flat[2][s], kl_coefficient=kl_coefficient
            )
            loss.backward()
            total += loss.item()
            sums = part if sums is None else sums + part
        return total, leaf.grad, sums

    whole, parts = run([slice(None)]), run([slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)])
    assert whole[0] == pytest.approx(parts[0], abs=1e-10)
    torch.testing.assert_close(whole[1], parts[1], atol=1e-10, rtol=0)
    for name in ("tokens", "clipped", "kl_old", "kl_base"):
        torch.testing.assert_close(getattr(whole[2], name), getattr(parts[2], name), atol=1e-10, rtol=0)


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    """At ratio 1 the gradient with respect to each log-probability is -A / N."""
    old = -torch.rand(7, dtype=torch.float64)
    advantage = torch.randn(7, dtype=torch.float64)
    new = old.clone().requires_grad_()
    grpo.loss(new, old, advantage, 7.0)[0].backward()
    torch.testing.assert_close(new.grad, -advantage / 7)


def test_refuses_what_would_broadcast_or_divide_by_zero() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="shapes differ"):
        grpo.loss(x, x, torch.zeros(1), 3.0)
    with pytest.raises(ValueError, match="normalizer"):
        grpo.loss(x, x, x, 0.0)
    with pytest.raises(ValueError, match="base_logprob"):
        grpo.loss(x, x, x, 3.0, kl_coefficient=0.1)
    with pytest.raises(ValueError, match="entropy_T"):
        grpo.loss(x, x, x, 3.0, entropy_coefficient=0.1)
