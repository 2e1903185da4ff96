"""Whole steps of the learner on random episodes against the plainest way to compute them: each sequence alone, by stock models.

Losses and advantages are the algorithms' own, which tests/algorithms holds against TRL and scalar loops. What is held here is
all that lies between episodes and gradients: which token is predicted by which row of a pack, shared prefixes, micro-batches,
temperatures, who counts in a baseline, normalisers, the base's log-probabilities, the critic's states.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from frontier_tune.algorithms.batch import Rollout, Tokens, Totals
from frontier_tune.algorithms.kl import ESTIMATORS
from frontier_tune.contracts import Blame, EpisodeSpec, Failure, Task, Trajectory
from frontier_tune.experts import families
from frontier_tune.learning.learner import Learner

FAMILIES = ("qwen3_moe", "olmoe", "mixtral", "deepseek_v3", "gpt_oss")
NAMES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo")


def drawn(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """A recipe's settings, of one update a step."""

    def one(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    found: dict[str, Any] = {
        "algorithm.name": name,
        "algorithm.normalization": one("token", "sequence", "constant"),
        "algorithm.kl_coefficient": one(0.0, 0.3),
        "algorithm.entropy_coefficient": one(0.0, 0.05),
        "learner.tokens_per_microbatch": one(64, 150, 8192),
        "learner.activation_checkpointing": one(True, False),
        "learner.max_grad_norm": 1e6,
    }
    if found["algorithm.kl_coefficient"]:
        found["algorithm.kl_in"] = one("loss", "reward")
    if name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo"):
        found |= {"algorithm.advantage": one("group", "batch", "turn"), "algorithm.scale_by_std": one(True, False)}
    if name == "dapo":
        found["algorithm.dynamic_sampling"] = 0
    if name != "ppo" and rng.random() < 0.5:
        found |= {"algorithm.proximal": "learner", "algorithm.correction": one("truncate", "mask")}
        found |= {"algorithm.correction_level": one("token", "sequence"), "algorithm.correction_low": 0.5}
    return found


def episodes_of(rng: np.random.Generator) -> list[Trajectory]:
    """Groups of any size, in any order, whose members part in the opening, in a turn or in an observation, early or late."""

    def text(least: int, most: int) -> list[int]:
        return rng.integers(3, 61, int(rng.integers(least, most))).tolist()

    out = []
    for group in range(int(rng.integers(1, 4))):
        temperature = float(rng.choice([0.7, 1.0, 1.3]))
        before: list[list[tuple[list[int], bool]]] = []
        early = rng.random() < 0.5  # all part in the opening: no two predict from one row
        for member in range(int(rng.integers(1, 6))):
            parts = [(text(30, 60), False)]
            if before:  # what an earlier one did, up to somewhere
                of_it = before[rng.integers(len(before))]
                kept = 0 if early else int(rng.integers(len(of_it)))
                said, sampled = of_it[kept]
                parts = [*of_it[:kept], (said[: int(rng.integers(1, len(said) + 1))] + text(1, 8), sampled)]
            for _ in range(int(rng.integers(0, 2)) if before else 1):
                parts += [(text(1, 30), True), (text(1, 12), False)]
            if not any(sampled for _, sampled in parts):
                parts.append((text(1, 20), True))
            before.append(parts)
            tokens = [t for said, _ in parts for t in said]
            mask = [sampled for said, sampled in parts for _ in said]
            spec = EpisodeSpec(Task("kind", "train", {"group": group}), group, member, 0, temperature)
            t = Trajectory(spec, tokens, mask, [0.0] * len(tokens), [m - 1 for m in mask], reward=float(rng.normal()))
            if rng.random() < 0.1:
                t.failure = Failure("x", Blame.ENVIRONMENT)
            out.append(t)
    return [out[i] for i in rng.permutation(len(out))]


class Plain:
    """Stock model and PEFT adapter with a learner's weights."""

    def __init__(self, learner: Learner) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            learner.policy.base_dir, attn_implementation="eager", experts_implementation="eager"
        )
        self.model = peft.get_peft_model(model, families.peft_config(learner.recipe.adapter, model.config)).eval()
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, p in learner.policy.named_parameters():
                self.parameters[name].copy_(p)

    def run(self, t: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, entropy and last hidden state of each sampled token, [n], [n], [n, H]."""
        where = torch.from_numpy(np.flatnonzero(t.mask))
        out = self.model(input_ids=torch.tensor([t.tokens]), use_cache=False, output_hidden_states=True)
        logp = (out.logits[0, where - 1] / t.spec.temperature).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, torch.tensor(t.tokens)[where, None])[:, 0], entropy, out.hidden_states[-1][0, where - 1]


def turns(t: Trajectory) -> list[int]:
    runs = [len(list(run)) for sampled, run in itertools.groupby(t.mask) if sampled]
    return [n for n, length in enumerate(runs) for _ in range(length)]


def plainly(learner: Learner, head: torch.nn.Module | None, plain: Plain, played: list[Trajectory]) -> tuple[float, Tensor]:
    """Loss of a step's only update, and its gradient as one vector."""
    algorithm, base, values = learner.algorithm, [], []
    valid = [t for t in played if t.trainable]
    with torch.no_grad():
        for t in valid:
            values.append(head(plain.run(t)[2])[:, 0] if head else None)
            with plain.model.disable_adapter():
                base.append(plain.run(t)[0])
    sampler = [torch.tensor([x for x, s in zip(t.logprobs, t.mask, strict=True) if s], dtype=torch.float64) for t in valid]
    kl_T = torch.cat([ESTIMATORS[algorithm.kl_estimator](s, b.double()) for s, b in zip(sampler, base, strict=True)])
    rollout = Rollout(
        reward_N=torch.tensor([t.reward if t.trainable else 0.0 for t in played], dtype=torch.float64),
        group_N=torch.tensor([t.spec.group for t in played]),
        valid_N=torch.tensor([t.trainable for t in played]),
        length_N=torch.tensor([t.sampled_tokens if t.trainable else 0 for t in played]),
        turn_T=torch.tensor([k for t in valid for k in turns(t)]),
        kl_T=kl_T if algorithm.penalises else None,
        kl_coefficient=algorithm.kl_coefficient,
        value_T=torch.cat(values) if head else None,
    )
    lengths = [t.sampled_tokens for t in valid]
    advantages, returns_T = algorithm.advantages(rollout).float().split(lengths), algorithm.returns(rollout)
    returns = [None] * len(valid) if returns_T is None else returns_T.float().split(lengths)
    totals, total = Totals(sum(lengths), len(valid)), 0.0
    for n, t in enumerate(valid):
        logp, entropy, hidden = plain.run(t)
        own = algorithm.proximal == "learner"
        tokens = Tokens(
            logprob_T=logp,
            old_logprob_T=logp.detach() if own else sampler[n].float(),
            advantage_T=advantages[n],
            sequence_T=torch.zeros(len(logp), dtype=torch.long),
            sequences=1,
            entropy_T=entropy,
            base_logprob_T=base[n],
            sampler_logprob_T=sampler[n].float() if own else None,
            value_T=head(hidden.detach())[:, 0] if head else None,
            old_value_T=values[n],
            return_T=returns[n],
        )
        loss, _ = algorithm.loss(tokens, totals)
        loss.backward()
        total += float(loss.detach())
    return total, flat(plain.parameters.values())


def flat(parameters: Iterable[torch.nn.Parameter]) -> Tensor:
    """Gradients as one vector."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


@pytest.mark.parametrize("seed", range(24))
def test_a_step_is_what_each_sequence_alone_makes_of_it(bases, recipe, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    asked = drawn(rng, NAMES[seed % len(NAMES)])
    learner = Learner(bases(FAMILIES[seed % len(FAMILIES)]), recipe(*(f"{k}={v}" for k, v in asked.items())), seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, p in learner.policy.named_parameters():
            p.normal_(std=0.1)
        for p in learner.critic.head.parameters() if learner.critic else ():
            p.add_(0.1 * torch.randn_like(p))
    head, plain, played = copy.deepcopy(learner.critic.head) if learner.critic else None, Plain(learner), episodes_of(rng)
    for t in played:  # a sampler that rounds otherwise
        with torch.no_grad():
            exact = plain.run(t)[0].tolist()
        for at, value in zip(np.flatnonzero(t.mask), exact, strict=True):
            t.logprobs[at] = min(-1e-4, value + 0.05 * float(rng.normal()))
    taken: list[tuple[float, Tensor]] = []

    def keep(loss: float) -> float:
        own = dict(learner.policy.named_parameters())
        taken.append((loss, flat(own[name] for name in plain.parameters)))
        return 0.0

    monkeypatch.setattr(learner, "_step", keep)
    metrics = learner.learn([played])
    if not any(t.trainable for t in played):
        assert not taken
        return
    loss, gradient = plainly(learner, head, plain, played)
    if not taken:  # nothing differs and no other term is at work
        assert metrics["sequences_skipped"] == metrics["sequences"] and not gradient.any()
        return
    ((got, found),) = taken
    assert got == pytest.approx(loss, rel=3e-4, abs=3e-5)
    assert float((found - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-6
