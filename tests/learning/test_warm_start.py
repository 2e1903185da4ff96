"""Supervised stages: trl's numbers on our tokens, loss on the assistant's alone, and an adapter that the Learner goes on with."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from frontier_tune.contracts import BadInput
from frontier_tune.learning import warm_start
from frontier_tune.learning.learner import Learner
from frontier_tune.learning.warm_start import Demonstration, Pair
from frontier_tune.recipe import Dpo, Recipe, Sft

VOCAB = 61
Bases, Recipes = Callable[..., Path], Callable[..., Recipe]


def rows(n: int = 4, seed: int = 0) -> list[Demonstration]:
    """Two turns of the assistant's in each dialogue, of lengths that differ."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        parts = [(rng.integers(3, VOCAB, int(rng.integers(2, 9))).tolist(), said) for said in (False, True, False, True)]
        out.append(Demonstration([t for p, _ in parts for t in p], [said for p, said in parts for _ in p]))
    return out


def pairs(n: int = 4, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)

    def part() -> list[int]:
        return rng.integers(3, VOCAB, int(rng.integers(2, 9))).tolist()

    return [Pair(part(), part(), part()) for _ in range(n)]


def sft(**settings: Any) -> Sft:
    return Sft(**{"traces": "-", "epochs": 1, "learning_rate": 1e-2, "schedule": "constant"} | settings)


def dpo(**settings: Any) -> Dpo:
    return Dpo(**{"pairs": "-", "epochs": 1, "learning_rate": 1e-2, "schedule": "constant"} | settings)


def turn_logprob(learner: Learner, context: Any, turn: Any, base: bool = False) -> float:
    score = learner.score_base if base else learner.score
    return sum(score([[*context, *turn]])[0][len(context) - 1 :])


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral", "gpt_oss"])
def test_the_loss_is_over_the_assistant_s_tokens_alone(
    bases: Bases, recipe: Recipes, stock: Callable, tmp_path: Path, family: str
) -> None:
    base, data = bases(family), rows()
    found = warm_start.train(base, recipe(), sft(), data, tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    said = torch.cat([stock(model, list(r.tokens))[torch.tensor(r.mask)[1:]] for r in data])
    assert found["history"][0]["loss"] == pytest.approx(-said.mean().item(), rel=1e-5)
    assert found["tokens"] == len(said) and found["expert_forward"] == "frontier_tune" and found["updates"] == 1


def test_micro_batches_make_the_same_adapter(bases: Bases, recipe: Recipes, tmp_path: Path) -> None:
    whole = warm_start.train(bases(), recipe(), sft(epochs=2), rows(), tmp_path / "whole")
    split = warm_start.train(bases(), recipe("learner.tokens_per_microbatch=64"), sft(epochs=2), rows(), tmp_path / "split")
    assert [h["loss"] for h in split["history"]] == pytest.approx([h["loss"] for h in whole["history"]], rel=1e-5)
    assert whole["updates"] == split["updates"] == 2


def test_layers_that_are_run_again_make_the_same_adapter(
    bases: Bases, recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, runs, forward = [], [], warm_start.lora_experts._ExpertsForward.__call__
    for n, setting in enumerate(("false", "true")):
        runs.append(0)

        def counted(self: Any, *args: Any) -> torch.Tensor:
            runs[-1] += torch.is_grad_enabled()
            return forward(self, *args)

        monkeypatch.setattr(warm_start.lora_experts._ExpertsForward, "__call__", counted)
        made.append(
            warm_start.train(
                bases(), recipe(f"learner.activation_checkpointing={setting}"), sft(epochs=2), rows(), tmp_path / str(n)
            )
        )
    assert made[0]["digests"] == made[1]["digests"] and runs == [2 * 2, 2 * runs[0]]


def test_peft_s_own_forward_makes_the_same_adapter(
    bases: Bases, recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what an expert layout trains by that our forward does not know."""

    def unknown(model: Any) -> int:
        raise BadInput("an unknown layout")

    ours = warm_start.train(bases(), recipe(), sft(epochs=3), rows(), tmp_path / "ours")
    monkeypatch.setattr(warm_start.lora_experts, "install", unknown)
    theirs = warm_start.train(bases(), recipe(), sft(epochs=3), rows(), tmp_path / "theirs")
    assert theirs["expert_forward"] == "peft (an unknown layout)"
    assert [h["loss"] for h in theirs["history"]] == pytest.approx([h["loss"] for h in ours["history"]], rel=1e-4)


def test_reinforcement_learning_starts_from_exactly_this_adapter(bases: Bases, recipe: Recipes, tmp_path: Path) -> None:
    """A few demonstrations are learned by heart; the Learner then holds the same tensors and probabilities as PEFT does."""
    from peft import PeftModel

    data, base = rows(2), bases()
    found = warm_start.train(base, recipe(), sft(epochs=40, learning_rate=3e-2), data, tmp_path / "sft", about={"source": "here"})
    assert json.loads((tmp_path / "sft" / "stage.json").read_text()) == found and found["source"] == "here"
    assert found["history"][-1]["loss"] < 0.3 < 2 < found["history"][0]["loss"]
    learner = Learner(base, recipe())
    fresh = learner.digests()
    warm_start.start_from(learner, tmp_path / "sft")
    assert learner.digests() == found["digests"] != fresh
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "sft")).eval()
    ids = torch.tensor([data[0].tokens])
    theirs = stock(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert learner.score([data[0].tokens])[0] == pytest.approx(theirs.tolist(), abs=1e-4)
    assert learner.version == learner.steps == 0 and not learner.optimizer.state


def test_the_fresh_adapter_is_the_learner_s_own(bases: Bases, recipe: Recipes) -> None:
    """Without an update a warm start would change nothing: A is drawn as the Learner draws it."""
    model, _ = warm_start._model(bases(), recipe(), None)
    ours = dict(Learner(bases(), recipe()).policy.named_parameters())
    theirs = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_dpo_prefers_what_the_reviewer_preferred(bases: Bases, recipe: Recipes, tmp_path: Path) -> None:
    """Each preferred turn gains log-probability on the other, from the stage before, which is also the reference."""
    data, base, learner = pairs(), bases(), Learner(bases(), recipe())
    warm_start.train(base, recipe(), sft(epochs=5), rows(), tmp_path / "sft")
    warm_start.start_from(learner, tmp_path / "sft")

    def margins() -> list[float]:
        return [turn_logprob(learner, p.context, p.chosen) - turn_logprob(learner, p.context, p.rejected) for p in data]

    before = margins()
    found = warm_start.train(base, recipe(), dpo(epochs=8), data, tmp_path / "dpo", tmp_path / "sft")
    assert found["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # policy and reference are one
    assert found["history"][0]["rewards_margins"] == pytest.approx(0, abs=1e-6)
    learner = Learner(base, recipe())
    warm_start.start_from(learner, tmp_path / "dpo")
    assert all(after > b + 1 for after, b in zip(margins(), before, strict=True))
    assert found["history"][-1]["loss"] < 0.3 and found["history"][-1]["rewards_accuracies"] == 1


def test_dpo_s_loss_is_the_published_one(bases: Bases, recipe: Recipes, tmp_path: Path) -> None:
    """arXiv:2305.18290, eq. 7, from log-probabilities that the Learner measures."""
    data, base = pairs(), bases()
    warm_start.train(base, recipe(), dpo(), data, tmp_path / "one")
    twice = warm_start.train(base, recipe(), dpo(epochs=2, beta=0.1), data, tmp_path / "two")
    learner = Learner(base, recipe())
    warm_start.start_from(learner, tmp_path / "one")
    losses = []
    for p in data:
        chosen, rejected = (
            turn_logprob(learner, p.context, t) - turn_logprob(learner, p.context, t, base=True) for t in (p.chosen, p.rejected)
        )
        losses.append(math.log1p(math.exp(-0.1 * (chosen - rejected))))
    assert twice["history"][1]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "data", "reason"),
    [
        (sft(), [], "0 demonstrations"),
        (sft(), [Demonstration([5, 6, 7], [False] * 3)], "row 0 has no token"),
        (sft(), [Demonstration([5, 6], [True, True])], "row 0 has no token"),
        (sft(), [Demonstration([5, VOCAB], [False, True])], "outside the vocabulary of 61"),
        (dpo(), [Pair([5], [6], [6])], "two equal turns"),
        (dpo(), [Pair([5], [6], [])], "an empty part"),
    ],
)
def test_data_that_teaches_nothing_is_refused(
    bases: Bases, recipe: Recipes, tmp_path: Path, stage: Any, data: Any, reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        warm_start.train(bases(), recipe(), stage, data, tmp_path / "out")


def test_nothing_that_is_not_finite_is_kept(bases: Bases, recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(warm_start.WarmStartFailed, match="lower|Lower"):
        warm_start.train(
            bases(), recipe("learner.max_grad_norm=1e30"), sft(learning_rate=1e30, epochs=4), rows(), tmp_path / "out"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", [sft(epochs=3), dpo(epochs=3)], ids=["sft", "dpo"])
@pytest.mark.parametrize("value", [1e30, math.inf])
def test_a_gradient_without_a_finite_norm_is_told_and_nothing_of_it_kept(
    bases: Bases, recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, value: float
) -> None:
    """In the second update, of which nothing is logged: clipping makes zeros of the one and NaN of the other."""
    real, calls = warm_start._model, []

    def spoiled(*args: Any) -> Any:
        model, forward = real(*args)
        first = next(p for p in model.parameters() if p.requires_grad)
        first.register_hook(lambda g: (calls.append(0), torch.full_like(g, value) if len(calls) == 2 else g)[1])
        return model, forward

    monkeypatch.setattr(warm_start, "_model", spoiled)
    monkeypatch.setattr("frontier_tune.learning.warm_start_trainers.LOGGED", 1)
    what = r"the gradient's norm at update 2 was not finite.*Lower warm_start\.(sft|dpo)\.learning_rate"
    with pytest.raises(warm_start.WarmStartFailed, match=what):
        warm_start.train(bases(), recipe(), stage, rows() if isinstance(stage, Sft) else pairs(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_updates_that_were_not_logged_are_counted(
    bases: Bases, recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontier_tune.learning.warm_start_trainers.LOGGED", 2)
    found = warm_start.train(bases(), recipe(), sft(epochs=5), rows(), tmp_path / "out")
    assert found["updates"] == 5 and [h["update"] for h in found["history"]] == [2, 4]


def test_a_start_that_does_not_fit_is_refused(bases: Bases, recipe: Recipes, write_base: Callable, tmp_path: Path) -> None:
    out = tmp_path / "sft"
    found = warm_start.train(bases(), recipe(), sft(), rows(), out)
    learner = Learner(bases(), recipe())
    assert warm_start.finished(out, learner.policy.config) == found
    with pytest.raises(BadInput, match="other targets, rank or alpha"):
        warm_start.start_from(Learner(bases(), recipe("adapter.rank=2")), out)
    with pytest.raises(BadInput, match="other targets, rank or alpha"):
        warm_start.start_from(Learner(bases(), recipe("adapter.alpha=12")), out)
    other = write_base(tmp_path / "other", "qwen3_moe", initializer_range=0.1)
    with pytest.raises(BadInput, match="another base"):
        warm_start.start_from(Learner(other, recipe()), out)
    with pytest.raises(BadInput, match="holds no finished stage"):
        warm_start.start_from(learner, tmp_path / "nothing")
    learner.version = 3
    with pytest.raises(BadInput, match="3 updates already"):
        warm_start.start_from(learner, out)
    weights = out / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert warm_start.finished(out, learner.policy.config) is None  # it is trained again
    with pytest.raises(BadInput, match="is damaged"):
        warm_start.start_from(Learner(bases(), recipe()), out)


def test_trainers_open_no_connection(bases: Bases, recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where nothing in the environment asks for silence."""
    import huggingface_hub.constants as hub

    called: list[Any] = []
    for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRL_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setattr(hub, name, False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: called.append(a) or (_ for _ in ()).throw(OSError("no network")))
    warm_start.train(bases(), recipe(), sft(), rows(), tmp_path / "sft")
    warm_start.train(bases(), recipe(), dpo(), pairs(), tmp_path / "dpo")
    assert not called and hub.HF_HUB_DISABLE_TELEMETRY
