"""Layers that are run again in backward: the same losses and gradients, and what is put back for the second run."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from frontier_tune.algorithms.batch import Totals
from frontier_tune.experts.routing.trainer import RouterForward
from frontier_tune.learning.batch import samples
from frontier_tune.learning.expert_usage import routing_mass
from frontier_tune.learning.learner import Learner
from tests.learning.test_replay import perturbed, routed

AGAIN = "learner.activation_checkpointing=true"


def gradient(learner: Learner, played: Any, advantages: Any) -> dict[str, Any]:
    members = samples(played, advantages, 61)
    loss, sums, *_ = learner._accumulate(members, Totals(sum(len(s.target) for s in members), len(members)))
    found = {"loss": loss} | {name: float(value) for name, value in sums.items()}
    return found | {n: p.grad.clone() for n, p in learner.policy.named_parameters() if p.grad is not None}


def equal(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys() and sum(isinstance(v, torch.Tensor) for v in want.values()) > 4
    for name, value in want.items():
        assert torch.equal(torch.as_tensor(got[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3_moe", ("algorithm.kl_coefficient=0.1",)),
        ("olmoe", ("adapter.attention=false",)),  # the first layer's attention takes no gradient at all
        ("mixtral", ("adapter.experts=false",)),
        ("deepseek_v3", ("learner.tokens_per_microbatch=64",)),
        ("qwen3_moe", ("learner.dtype=bfloat16",)),
        ("gpt_oss", ("algorithm.kl_coefficient=0.1",)),
        ("qwen3_moe", ("algorithm.replay=sampler", "learner.tokens_per_microbatch=64")),
    ],
)
def test_loss_and_gradient_are_the_same_bit_by_bit(bases, recipe, episodes, family: str, settings: tuple[str, ...]) -> None:
    played, advantages = episodes()
    routed(played)
    plain, again = (perturbed(Learner(bases(family), recipe(*settings, *more))) for more in ((), (AGAIN,)))
    assert again.score([played[0].tokens]) == plain.score([played[0].tokens])
    equal(gradient(again, played, advantages), gradient(plain, played, advantages))


def test_steps_with_a_critic_and_own_routes_replayed(bases, recipe, episodes) -> None:
    """Scoring, three updates a step that force the first one's routes, a critic on the hidden states."""
    settings = ("algorithm.name=ppo", "algorithm.epochs=3", "algorithm.replay=learner", "learner.learning_rate=0.1")
    learners = [perturbed(Learner(bases(), recipe(*settings, *more))) for more in ((), (AGAIN,))]
    for seed in range(2):
        played, _ = episodes(seed)
        for t in routed(played):
            t.reward = float(t.spec.member == 0)
        metrics = [learner.learn([played]) for learner in learners]
        plain, again = ({k: v for k, v in m.items() if not k.startswith("seconds")} for m in metrics)
        assert plain == again and plain["updates"] == 3 and "route_flips" in plain and "value_loss" in plain
    plain, again = learners
    assert plain.digests() == again.digests()
    assert all(torch.equal(t, again.critic.tensors()[name]) for name, t in plain.critic.tensors().items())


def test_a_layer_is_run_again_once_and_its_routers_choose_nothing(bases, recipe, episodes, monkeypatch) -> None:
    played, advantages = episodes()
    learner = perturbed(Learner(bases(), recipe("sampler.routes=true", AGAIN)))
    policy, runs, asked, routes = learner.policy, [], [], []
    for index, layer in enumerate(policy._backbone.layers):
        stock = layer.forward.stock

        def counted(*args: Any, index: int = index, stock: Any = stock, **others: Any) -> torch.Tensor:
            runs.append((index, policy.recomputing, torch.is_grad_enabled()))
            return stock(*args, **others)

        layer.forward.stock = counted
    rows_of, route = learner.replayer.replay.rows_of, RouterForward.route
    monkeypatch.setattr(learner.replayer.replay, "rows_of", lambda index: asked.append(index) or rows_of(index))

    def spied(self: RouterForward, logits: torch.Tensor, forced: torch.Tensor | None = None) -> Any:
        out = route(self, logits, forced)
        if torch.is_grad_enabled():
            routes.append((policy.recomputing, forced, out[1]))
        return out

    monkeypatch.setattr(RouterForward, "route", spied)
    gradient(learner, routed(played), advantages)
    assert runs == [(0, False, True), (1, False, True), (1, True, True), (0, True, True)]
    assert asked == [0, 1]  # the replay heard of the first runs alone
    (first, _, a), (_, _, b), (again, forced_b, _), (_, forced_a, _) = routes
    assert not first and again and torch.equal(forced_a, a) and torch.equal(forced_b, b)
    assert not policy.recomputing and all(
        f.kept is None for f in (m.forward for m in policy.peft.modules()) if hasattr(f, "kept")
    )
    runs.clear()
    learner.score([played[0].tokens])
    with policy.base():
        learner.score([played[0].tokens])
    assert runs == 2 * [(0, False, False), (1, False, False)]


def test_what_counts_forwards_counts_them_once(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    masses = []
    for more in ((), (AGAIN,)):
        learner = perturbed(Learner(bases(), recipe(*more)))
        with routing_mass(learner.policy) as mass_LE:
            gradient(learner, played, advantages)
        masses.append(mass_LE)
    assert torch.equal(*masses) and float(masses[0].sum()) > 0


def test_a_step_that_is_not_finite_is_skipped(bases, recipe, episodes) -> None:
    """Tokens without a routing, too, have routes to run a layer again with."""
    played, advantages = episodes()
    learner = perturbed(Learner(bases(), recipe(AGAIN)))
    with torch.no_grad():
        learner.policy.named_parameters()[0][1].fill_(float("nan"))
    metrics = learner.update(played, advantages)
    assert (metrics["updates"], metrics["bad_updates"]) == (0, 1)


def test_a_second_run_that_is_another_one_is_told(bases, recipe, episodes, monkeypatch) -> None:
    """Without the rows put back the last MLP would run on all of them."""
    played, advantages = episodes()
    learner = perturbed(Learner(bases("deepseek_v3"), recipe(AGAIN)))
    monkeypatch.setattr(learner.policy._backbone.layers[-1].forward, "remember", lambda: nullcontext)
    with pytest.raises(CheckpointError, match="recomputation"):
        gradient(learner, played, advantages)
