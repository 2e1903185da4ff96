"""Compiled decoder layers: losses and gradients of eager ones, graphs that serve all layers and lengths, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from frontier_tune.contracts import BadInput
from frontier_tune.learning import compiled
from frontier_tune.learning.learner import Learner
from frontier_tune.orchestration.plan import missing
from tests.learning.test_recompute import gradient, perturbed

COMPILE = "learner.compile=true"


@pytest.fixture(autouse=True)
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sampler's settings (sampling.environment), which tests of engines make in this process, switch it off."""
    from torch._dynamo import config

    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with config.patch(disable=False):
        yield


def close(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        a, b = torch.as_tensor(got[name]), torch.as_tensor(value)
        assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-9, name


@pytest.mark.slow
def test_results_are_eager_ones_and_graphs_serve_all_layers_and_lengths(bases, write_base, recipe, episodes, tmp_path) -> None:
    """One process, so that what one learner has compiled is there for the next: with layers run again, and with more of them."""
    played, advantages = episodes()
    plain, learner = (perturbed(Learner(bases(), recipe(*more))) for more in ((), (COMPILE,)))
    want = gradient(plain, played, advantages)
    close(gradient(learner, played, advantages), want)
    first = learner._guarded(lambda: {})  # what a step adds to its metrics
    assert 3 < first["graphs_compiled"] < 20 and first["compile_seconds"] > 0
    assert "graphs_compiled" not in plain._guarded(lambda: {})
    assert learner.score([played[0].tokens])[0] == pytest.approx(plain.score([played[0].tokens])[0], abs=1e-5)
    assert learner.compiled.metrics()["graphs_compiled"] > 0  # those without gradients

    other = episodes(seed=1, groups=2)  # of other lengths
    close(gradient(learner, *other), gradient(plain, *other))
    again = perturbed(Learner(bases(), recipe(COMPILE, "learner.activation_checkpointing=true")))
    close(gradient(again, played, advantages), want)
    deep = write_base(tmp_path, "qwen3_moe", num_hidden_layers=5)
    eager, many = (perturbed(Learner(deep, recipe(*more))) for more in ((), (COMPILE,)))
    close(gradient(many, played, advantages), gradient(eager, played, advantages))
    assert learner.compiled.metrics() == {"graphs_compiled": 0, "compile_seconds": 0}


@pytest.mark.slow
def test_more_graphs_than_are_allowed_stop_the_learner(bases, recipe, episodes, monkeypatch) -> None:
    """torch's own answer is a line in the log, and layers that run uncompiled from then on."""
    monkeypatch.setattr(compiled, "LIMIT", 1)
    torch._dynamo.reset()
    learner = Learner(bases(), recipe(COMPILE, "adapter.experts=false"))
    with pytest.raises(Exception, match="recompile_limit"):
        learner.update(*episodes())


def test_what_is_switched_off_is_said(bases, recipe, monkeypatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(BadInput, match="TORCHDYNAMO_DISABLE"):
        Learner(bases(), recipe(COMPILE))


def test_a_split_base_is_refused(bases, recipe) -> None:
    with pytest.raises(BadInput, match=r"learner\.compile.*shard_base"):
        compiled.install(torch.nn.Module(), split=True)
    split = recipe(COMPILE, "placement.learners=2", "placement.shard_base=true")
    assert "learner.compile" in " ".join(missing(split, AutoConfig.from_pretrained(bases())))
    assert missing(recipe(COMPILE, "placement.learners=2"), AutoConfig.from_pretrained(bases())) == []
