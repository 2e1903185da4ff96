"""Data-parallel learners: shares, sums, and that two are one. Ranks are threads here, with gloo's own sockets between them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.learning.learner import Learner
from frontier_tune.learning.parallel import World

CPU = torch.device("cpu")


def everywhere(size: int, rendezvous: Path, work: Callable[[World], Any]) -> list[Any]:
    """``work`` on every rank at once; its results in order."""
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(World.join(rank, size, rendezvous, CPU, timeout_s=60))
        except BaseException as e:
            results[rank] = e

    threads = [threading.Thread(target=run, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r in results:
        if isinstance(r, BaseException):
            raise r
    return results


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=30), st.integers(1, 5), st.booleans())
@settings(max_examples=60)
def test_shares_are_a_partition_of_whole_groups_and_about_even(sequences, size: int, sharing: bool) -> None:
    keys = [[g] * n for g, n in sequences]
    groups = [g for g, _ in sequences] if sharing else None
    shares = [World(r, size, CPU, None).share(keys, groups) for r in range(size)]
    assert sorted(i for s in shares for i in s) == list(range(len(keys))) and all(s == sorted(s) for s in shares)
    if groups and len(set(groups)) >= size:
        assert all(len({r for r, s in enumerate(shares) for i in s if groups[i] == g}) == 1 for g in groups)
    if not sharing:  # no rank has more than the least loaded one and one sequence besides
        loads = [sum(len(keys[i]) for i in s) for s in shares]
        assert max(loads, default=0) - min(loads, default=0) <= max(map(len, keys), default=0)
    if len(keys) >= size:
        assert all(shares)


def test_sums_over_ranks(tmp_path) -> None:
    def work(world: World) -> Any:
        parameters = [
            torch.nn.Parameter(torch.zeros(2, 3)),
            torch.nn.Parameter(torch.zeros(4)),
            torch.nn.Parameter(torch.zeros(1)),
        ]
        if world.rank:  # the others have none for this one; nobody has for the last
            parameters[0].grad = torch.full((2, 3), float(world.rank))
        parameters[1].grad = torch.arange(4.0)
        world.add_gradients(parameters)
        arrays = [np.zeros(2, np.uint16), np.zeros((1, 3), np.uint16), np.zeros(0, np.uint16)]
        arrays[world.rank % 2] += np.uint16(40_000 - world.rank) if world.rank < 2 else np.uint16(0)
        world.add_arrays(arrays)
        return [p.grad for p in parameters], world.add_numbers([1.0, 1e300 * (world.rank == 0), float("nan")]), arrays

    for gradients, numbers, arrays in everywhere(3, tmp_path / "meet", work):
        assert torch.equal(gradients[0], torch.full((2, 3), 3.0)) and torch.equal(gradients[1], 3 * torch.arange(4.0))
        assert gradients[2] is None and numbers[:2] == [3.0, 1e300] and numbers[2] != numbers[2]
        assert arrays[0].tolist() == [40_000] * 2 and arrays[1].tolist() == [[39_999] * 3] and arrays[0].dtype == np.uint16


def trained(learner: Learner, batches, sgd: bool) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    if sgd:
        learner.optimizer = torch.optim.SGD([p for _, p in learner.policy.named_parameters()], lr=0.1)
        learner.guard.optimizers[0] = learner.optimizer
    metrics = [learner.learn([batch]) for batch in batches]
    return {n: p.detach().clone() for n, p in learner.policy.named_parameters()}, metrics


def perturbed(learner: Learner) -> Learner:
    generator = torch.Generator().manual_seed(1)
    for _, p in learner.policy.named_parameters():
        torch.nn.init.normal_(p, std=0.1, generator=generator)
    return learner


@pytest.mark.slow
def test_two_learners_equal_one_on_the_whole_batch(bases, recipe, episodes, tmp_path) -> None:
    """20 steps; one of them has a single informative sequence, so that one rank has nothing to do."""
    batches = []
    for seed in range(20):
        played, _ = episodes(seed, groups=3, members=2)
        for t in played:
            t.reward = float(t.spec.member == 0 and (seed != 7 or t.spec.group == 0))
        batches.append(played)
    for t in batches[7][1:]:
        t.mask = [False] * len(t.tokens)
    settings = ("learner.schedule=constant", "learner.learning_rate=0.1", "algorithm.kl_coefficient=0.05")
    one, whole = trained(perturbed(Learner(bases(), recipe(*settings))), batches, sgd=True)
    ranks = everywhere(
        2,
        tmp_path / "meet",
        lambda world: trained(perturbed(Learner(bases(), recipe(*settings), world=world)), batches, sgd=True),
    )
    start = {n: p.detach() for n, p in perturbed(Learner(bases(), recipe())).policy.named_parameters()}
    for name, want in one.items():
        assert torch.equal(ranks[0][0][name], ranks[1][0][name])  # the ranks: bitwise
        moved = float((want - start[name]).abs().max())
        assert moved > 1e-4 and (ranks[0][0][name] - want).abs().max() < 1e-6, name
    for theirs, ours in zip(whole, ranks[0][1], strict=True):
        assert ours["updates"] == 1 and ours["rows"] == theirs["rows"]
        for key in ("loss", "grad_norm", "entropy", "kl_old", "kl_base", "logprob_gap"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_what_two_learners_measure_is_what_one_does(bases, recipe, episodes, tmp_path) -> None:
    """The critic's values, routes held over a step's updates and the tallies of flips: each rank has those of all sequences.

    A minibatch of one group is split, so that a rank trains on what the other has measured.
    """
    batches = []
    for seed in range(2):
        played, _ = episodes(seed, groups=3, members=2)
        rng = np.random.default_rng(seed)
        for t in played:
            t.reward = float(t.spec.member == 0)
            t.routes = np.array([[rng.permutation(5)[:2] for _ in range(2)] for _ in t.tokens], np.uint8)
        batches.append(played)
    settings = (
        "algorithm.name=ppo",
        "algorithm.epochs=2",
        "algorithm.minibatches=2",
        "algorithm.replay=learner",
        "learner.learning_rate=0.1",
    )
    one, whole = trained(perturbed(Learner(bases(), recipe(*settings))), batches, sgd=True)
    ranks = everywhere(
        2,
        tmp_path / "meet",
        lambda world: trained(perturbed(Learner(bases(), recipe(*settings), world=world)), batches, sgd=True),
    )
    for name, want in one.items():
        assert torch.equal(ranks[0][0][name], ranks[1][0][name]) and (ranks[0][0][name] - want).abs().max() < 1e-5, name
    for theirs, *both in zip(whole, ranks[0][1], ranks[1][1], strict=True):
        assert "route_flips" in theirs and theirs["updates"] == 4
        for key, value in theirs.items():
            if key != "rows" and not key.startswith("seconds"):  # a split group's prompt is computed by both
                assert both[0][key] == both[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
