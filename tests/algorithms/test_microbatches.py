"""Loss, gradient and metrics of every algorithm don't depend on how a batch is split into micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.batch import Coefficients
from frontier_tune.algorithms.registry import ALGORITHMS
from tests.algorithms.reference import Random

SEQUENCES = 7


@pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=list(ALGORITHMS))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.sets(st.integers(1, SEQUENCES - 1), max_size=SEQUENCES - 1),
    normalization=st.sampled_from(["token", "sequence", "constant"]),
    correction=st.sampled_from(["none", "full", "truncate", "mask"]),
    level=st.sampled_from(["token", "sequence", "geometric"]),
    beta=st.sampled_from([0.0, 0.1]),
    gamma=st.sampled_from([0.0, 0.02]),
)
def test_any_split_gives_the_same(
    cls: type[Algorithm], seed: int, cuts: set[int], normalization: Any, correction: Any, level: Any, beta: float, gamma: float
) -> None:
    algorithm = cls(
        normalization=normalization, loss_constant=11, proximal="learner", correction=correction, correction_level=level,
        kl_coefficient=beta, kl_in="loss", kl_estimator="k3", entropy_coefficient=gamma,
    )  # fmt: skip
    batch = Random(seed, n=SEQUENCES)
    bounds = [0, *sorted(cuts), SEQUENCES]
    parts = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    whole, split = batch.ours(algorithm), batch.ours(algorithm, parts)
    torch.testing.assert_close(split[0], whole[0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(split[1], whole[1], atol=1e-10, rtol=1e-10)
    assert split[2].keys() == whole[2].keys()
    for name in whole[2]:
        torch.testing.assert_close(split[2][name], whole[2][name], atol=1e-10, rtol=1e-10)


def test_coefficients_come_from_the_run_not_from_the_recipe() -> None:
    from frontier_tune.algorithms.grpo import GRPO

    batch, algorithm = Random(0), GRPO(kl_coefficient=0.1, entropy_coefficient=0.1)
    off = batch.ours(algorithm, coefficients=Coefficients(0.0, 0.0))
    assert torch.equal(off[0], batch.ours(GRPO())[0])
    gated = batch.ours(algorithm, coefficients=Coefficients(0.0, 0.1, entropy_on=False))
    assert torch.equal(gated[0], off[0])
