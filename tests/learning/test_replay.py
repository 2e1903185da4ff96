"""Routing replay: what is forced is taken, gradients reach the router, prefixes are shared only where routes are equal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from frontier_tune.contracts import BadInput, EpisodeSpec, Task, Trajectory
from frontier_tune.experts.routing.replay import Replay
from frontier_tune.learning.batch import samples
from frontier_tune.learning.learner import Learner

EXPERTS, TOP_K, LAYERS = 5, 2, 2


def routed(played, seed: int = 0):
    """Give every trajectory routes of its own, drawn at random; all but the last token have some."""
    rng = np.random.default_rng(seed)
    for t in played:
        shape = (len(t.tokens) - 1, LAYERS)
        draws = [rng.permutation(EXPERTS)[:TOP_K] for _ in range(shape[0] * shape[1])]
        t.routes = np.array(draws, np.uint8).reshape(*shape, TOP_K)
    return played


def perturbed(learner: Learner, std: float = 0.1) -> Learner:
    torch.manual_seed(1)
    for _, p in learner.policy.named_parameters():
        torch.nn.init.normal_(p, std=std)
    return learner


def as_sampled(learner: Learner, played):
    """Log-probabilities as the learner itself has them; with routes where it replays the sampler's."""
    measured = learner.passes.measure(samples(played, [0.0] * len(played), 61), False).logprob
    for t, values in zip(played, measured, strict=True):
        t.logprobs = np.zeros(len(t.tokens)).tolist()
        for at, value in zip(np.flatnonzero(t.mask), values, strict=True):
            t.logprobs[at] = float(value)
    return played


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
def test_forced_routes_are_taken_and_the_router_keeps_its_gradient(bases, family: str) -> None:
    """Against a stock model whose routers are replaced by hand: softmax over all logits, gathered at the routes."""
    model = AutoModelForCausalLM.from_pretrained(bases(family))
    replay, tokens = Replay(model, model.config), torch.randint(3, 61, (1, 12))
    routes = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(12 * LAYERS)]).view(12, LAYERS, TOP_K)
    known = torch.arange(12) < 10
    seen = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda module, args: seen.append(args[1:3]))
    with replay.watching(12, tokens.device, routes, known) as own:
        out = model(tokens, use_cache=False)
    for index, (ids, weights) in enumerate(seen):
        assert torch.equal(ids[known], routes[known, index])
        assert torch.equal(ids[~known].int(), own[~known, index]) and (own >= 0).all()
        assert weights.dtype == torch.float32
    out.logits[0, 3:7].sum().backward()
    for layer in model.model.layers:
        grad = layer.mlp.gate.weight.grad
        assert grad is not None and bool(grad.isfinite().all()) and float(grad.abs().max()) > 0
    # routes of another forward, replayed, are that forward
    with replay.watching(12, tokens.device) as chosen:
        free = model(tokens, use_cache=False).logits
    with replay.watching(12, tokens.device, chosen) as again:
        torch.testing.assert_close(model(tokens, use_cache=False).logits, free)
    assert torch.equal(chosen, again)


def test_a_family_whose_routers_stay_stock_is_refused(bases, recipe) -> None:
    with pytest.raises(BadInput, match="can't be taken or forced"):
        Learner(bases("deepseek_v3"), recipe("algorithm.replay=learner"))


def test_the_gradient_is_that_of_single_sequences(bases, recipe, episodes, monkeypatch) -> None:
    """Members of a group with other routes on their prompts share no rows of those; packing changes nothing."""
    played, advantages = episodes(groups=4, members=4)
    routed(played)
    for t in played[8:]:  # in two of the groups, prompts have the same routes but for one token of one member
        first = played[8 + 4 * (t.spec.group - 2)]
        common = min(len(t.routes), len(first.routes), t.mask.index(True))
        t.routes[:common] = first.routes[:common]
    played[-1].routes[2] = (played[-1].routes[2] + 1) % EXPERTS

    def gradients(*overrides: str):
        learner = perturbed(Learner(bases(), recipe("algorithm.replay=sampler", *overrides)))
        members = samples(played, advantages, 61)
        from frontier_tune.algorithms.batch import Totals

        rows = learner._accumulate(members, Totals(sum(len(s.target) for s in members), len(members)))[2]
        return rows, {n: p.grad.clone() for n, p in learner.policy.named_parameters()}

    rows, whole = gradients()
    monkeypatch.setattr("frontier_tune.learning.attention.shares_prefixes", lambda device: False)
    alone_rows, alone = gradients("learner.tokens_per_microbatch=64")
    assert rows < alone_rows
    for name, want in alone.items():
        assert (whole[name] - want).abs().max() <= 2e-5 * float(want.abs().max()), name


def test_routes_of_the_sampler_make_the_learner_what_sampled(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    routed(played)
    forced = perturbed(Learner(bases(), recipe("algorithm.replay=sampler")))
    as_sampled(forced, played)
    metrics = forced.update(played, advantages)
    assert metrics["logprob_gap"] < 1e-5 and metrics["route_flips"] > 0.5  # random routes: the router would choose others
    free = perturbed(Learner(bases(), recipe("sampler.routes=true")))
    metrics = free.update(played, advantages)
    assert metrics["logprob_gap"] > 0.05 and metrics["route_flips"] > 0.5
    flips, flipped, kept = metrics["route_flips"], metrics["kl_sampler_flipped"], metrics.get("kl_sampler_kept", 0.0)
    assert flips * flipped + (1 - flips) * kept == pytest.approx(metrics["kl_sampler"], rel=1e-5)
    assert 0 < metrics["route_flips_layer"] <= flips


def test_flips_are_those_before_the_first_update_of_a_step(bases, recipe, episodes) -> None:
    """Not those of the step's later updates, nor of the step before: a step on the learner's very routes has none."""
    played, advantages = episodes()
    overrides = ("sampler.routes=true", "algorithm.epochs=2", "algorithm.minibatches=2", "learner.learning_rate=0.3")
    learner = perturbed(Learner(bases(), recipe(*overrides)))
    assert learner.update(routed(played), advantages)["route_flips"] > 0.5
    own = learner.passes.measure(samples(played, advantages, 61), False, record=True).routes
    for t, routes in zip(played, own, strict=True):
        t.routes = routes
    assert learner.update(played, advantages)["route_flips"] == 0


def test_replay_of_the_learners_own_routes_holds_them_over_a_steps_updates(bases, recipe, episodes, monkeypatch) -> None:
    played, advantages = episodes()
    overrides = ("algorithm.replay=learner", "algorithm.epochs=3", "learner.learning_rate=0.3", "learner.max_grad_norm=100")
    learner = perturbed(Learner(bases(), recipe(*overrides)))
    start = [s.copy() for s in learner.passes.measure(samples(played, advantages, 61), False, record=True).routes]
    taken = []
    watching = learner.replayer.replay.watching

    def spy(tokens, device, forced=None, known=None):
        taken.append(None if forced is None else forced.clone())
        return watching(tokens, device, forced, known)

    monkeypatch.setattr(learner.replayer.replay, "watching", spy)
    learner.update(played, advantages)
    after = learner.passes.measure(samples(played, advantages, 61), False, record=True).routes
    assert any((a != b).any() for a, b in zip(start, after, strict=True))  # by itself the router would have left them
    batch = learner.passes.batch([replace(s, old_routes=r) for s, r in zip(samples(played, advantages, 61), start, strict=True)])
    assert sum(t is not None for t in taken) == 3  # one micro-batch in each of three epochs
    assert all(torch.equal(t, batch.forced_TLK) for t in taken if t is not None)


def test_the_learners_own_routes_change_no_mismatch_before_the_first_update(bases, recipe, episodes) -> None:
    """They are the ones that it takes anyway: only the sampler's routes can bring it closer to the sampler."""
    played, advantages = episodes()
    routed(played)
    forced = perturbed(Learner(bases(), recipe("algorithm.replay=sampler")))
    as_sampled(forced, played)
    found = {}
    for mode in ("none", "learner", "sampler"):
        settings = (f"algorithm.replay={mode}", "sampler.routes=true", "algorithm.epochs=2", "algorithm.proximal=learner")
        found[mode] = perturbed(Learner(bases(), recipe(*settings))).update(played, advantages)
    names = ("kl_sampler", "kl_sampler_flipped", "route_flips", "logprob_gap")
    assert all(found["learner"][n] == pytest.approx(found["none"][n], rel=1e-4) for n in names)
    assert found["sampler"]["kl_sampler"] < 1e-3 * found["none"]["kl_sampler"]


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda t: setattr(t, "routes", None), "no routes to replay"),
        (lambda t: setattr(t, "routes", t.routes[:2]), "at least"),
        (lambda t: setattr(t, "routes", t.routes[:, :1]), "2 MoE layers"),
        (lambda t: setattr(t, "routes", t.routes.astype(np.int64)), "uint8"),
        (lambda t: t.routes.__setitem__((0, 0, 0), 5), "beyond 4"),
        (lambda t: t.routes.__setitem__((0, 0), 3), "one twice"),
    ],
)
def test_routes_that_are_not_those_of_the_sequence_are_refused(bases, recipe, episodes, spoil, message: str) -> None:
    played, advantages = episodes()
    routed(played)
    spoil(played[4])
    with pytest.raises(ValueError, match=message):
        Learner(bases(), recipe("algorithm.replay=sampler")).update(played, advantages)


@pytest.mark.parametrize("parting", ["routes", "tokens"])
def test_members_that_part_before_their_first_sampled_token_keep_their_own_targets(bases, recipe, parting: str) -> None:
    """A tree lays out members that part late beside each other, so that rows needn't come in the members' order. All rows are
    distinct here: with hidden states in another order than targets nothing would fail, and each token train on another's."""
    asked = ("algorithm.replay=sampler",) if parting == "routes" else ()
    learner, rng = perturbed(Learner(bases(), recipe(*asked))), np.random.default_rng(0)
    prompt = rng.integers(3, 61, 40).tolist()
    routes = np.array([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(LAYERS)] for _ in range(60)], np.uint8)
    played = []
    for member, at in enumerate((None, 5, 30)):  # the first and the last share 30 rows, the second 5 with either
        tokens = [*prompt, *rng.integers(3, 61, 6).tolist()]
        own = routes[: len(tokens) - 1].copy()
        if at is not None and parting == "routes":
            own[at] = (own[at] + 1) % EXPERTS
        elif at is not None:
            tokens[at] = 3 + (tokens[at] - 2) % 57
        mask = [False] * 40 + [True] * 6
        t = Trajectory(
            EpisodeSpec(Task("k", "train", {}), 0, member, 0), tokens, mask, [-3.0 * m for m in mask], [m - 1 for m in mask]
        )
        t.routes = own if parting == "routes" else None
        played.append(t)
    members = samples(played, [1.0, -1.0, 0.5], 61)
    rows = learner.passes.batch(members).rows_M
    assert len(rows.unique()) == len(rows) and not torch.equal(rows, rows.sort().values)
    together = learner.passes.measure(members, False).logprob
    for sample, values in zip(members, together, strict=True):
        np.testing.assert_allclose(values, learner.passes.measure([sample], False).logprob[0], atol=2e-5)
