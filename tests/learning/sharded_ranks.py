"""What each of two processes does that share a base: all scenarios in one world, for the tests to look at. See test_shard."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from benchmarks import plan_memory
from frontier_tune import recipe as recipes
from frontier_tune.algorithms.batch import Totals
from frontier_tune.experts import canonical
from frontier_tune.learning import shard
from frontier_tune.learning.batch import Batch, samples
from frontier_tune.learning.guard import TrainingDiverged
from frontier_tune.learning.learner import Learner
from frontier_tune.learning.parallel import World
from frontier_tune.orchestration.plan import activations, actors, sizes, work
from tests.learning.conftest import trajectories
from tests.learning.test_parallel import perturbed, trained

# name -> (family, changes of its configuration, learner.dtype)
BASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen3_moe": ("qwen3_moe", {}, "float32"),
    "tied": ("qwen3_moe", {"tie_word_embeddings": True}, "float32"),
    "olmoe": ("olmoe", {}, "float32"),
    "mixtral": ("mixtral", {}, "bfloat16"),
    "deepseek_v3": ("deepseek_v3", {}, "float32"),
    "deepseek_v3, bfloat16": ("deepseek_v3", {}, "bfloat16"),
}
STEPS = (
    "learner.schedule=constant",
    "learner.learning_rate=0.1",
    "algorithm.kl_coefficient=0.05",
    "learner.tokens_per_microbatch=64",
)
PPO = (
    "algorithm.name=ppo",
    "algorithm.epochs=2",
    "algorithm.minibatches=2",
    "algorithm.replay=learner",
    "learner.learning_rate=0.1",
    "learner.tokens_per_microbatch=64",
)
# Wide layers beside a short batch, so that what is put together of the base is most of the peak.
CASE = replace(
    plan_memory.CASES[0], sequences=4, length=64,
    config=plan_memory.CASES[0].config | {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 6, "num_experts": 24},
)  # fmt: skip


def recipe(*overrides: str) -> recipes.Recipe:
    learner = {"threads": 1, "device": "cpu", "warmup_steps": 0}
    return recipes.parse({"adapter": {"rank": 3, "alpha": 6}, "learner": learner, "run": {"steps": 10}}, overrides)


def look(base: Path, dtype: str, world: World | None = None, *more: str) -> dict[str, Any]:
    """A base as loaded, what it scores, and the gradient of one update in micro-batches of which ranks have unequal numbers."""
    learner = perturbed(Learner(base, recipe(*STEPS, f"learner.dtype={dtype}", *more), world=world))
    policy = learner.policy
    frozen = {n: p for n, p in policy.peft.named_parameters() if not p.requires_grad}
    found: dict[str, Any] = {
        "rows": {n: (p.to_local() if isinstance(p, DTensor) else p).shape[0] for n, p in frozen.items()},
        "bytes": shard.own_bytes(policy.peft),
        "whole": {n: canonical.digest(p.full_tensor() if isinstance(p, DTensor) else p) for n, p in frozen.items()},
        "buffers": {n: canonical.digest(b) for n, b in policy.peft.named_buffers()},
        "fingerprint": policy.fingerprint(),
        "adapter": learner.digests(),
    }
    played, advantages = trajectories(0)
    sequences = [t.tokens for t in played]
    found |= {"score": learner.score(sequences), "score_base": learner.score_base(sequences)}
    members = samples(played, advantages, policy.config.vocab_size)
    forwards: list[int] = []
    run = learner.passes.policy_run

    def counted(b: Batch) -> Any:
        forwards.append(b.packed.tokens_T.numel())
        return run(b)

    learner.passes.policy_run = counted  # type: ignore[method-assign]
    totals = Totals(sum(len(s.target) for s in members), len(members))
    loss, *_ = learner._accumulate(members, totals)
    gradient = {n: p.grad.double().numpy() for n, p in policy.named_parameters() if p.grad is not None}
    return found | {"loss": loss, "gradient": gradient, "forwards": forwards}


def batches(count: int) -> list[Any]:
    """Of which one (the second) has a single sequence to compute, so that one of two ranks has nothing to do."""
    made = []
    for seed in range(count):
        played, _ = trajectories(seed, groups=3, members=2)
        rng = np.random.default_rng(seed)
        for t in played:
            t.reward = float(t.spec.member == 0 and (seed != 1 or t.spec.group == 0))
            t.routes = np.array([[rng.permutation(5)[:2] for _ in range(2)] for _ in t.tokens], np.uint8)
        made.append(played)
    for t in [t for played in made[1:2] for t in played[1:]]:
        t.mask = [False] * len(t.tokens)
    return made


def steps(base: Path, settings: tuple[str, ...], count: int, world: World | None = None) -> dict[str, Any]:
    learner = perturbed(Learner(base, recipe(*settings), world=world))
    weights, metrics = trained(learner, batches(count), sgd=True)
    return {"weights": {n: w.numpy() for n, w in weights.items()}, "metrics": metrics}


def checkpoints(base: Path, root: Path, world: World) -> dict[str, Any]:
    """A step; the state written and read; then gradients that are not finite, until it goes back and, later, gives up."""
    learner = Learner(base, recipe("learner.learning_rate=0.01"), world=world)
    (played,) = batches(1)
    learner.learn([played])
    found: dict[str, Any] = {"after a step": learner.digests()}
    if world.rank == 0:
        learner.save(root / "state")
    world.most(0)  # all wait for the file
    learner.load(root / "state")
    found["read"] = learner.digests()
    learner.learn([played])
    with torch.no_grad():
        learner.policy.named_parameters()[0][1].fill_(float("nan"))
    for _ in range(3):
        learner.learn([played])
    found["gone back"] = learner.digests()
    found["rollbacks"] = learner.guard.rollbacks
    with torch.no_grad():
        learner.policy.named_parameters()[0][1].fill_(float("nan"))
    try:
        for _ in range(4):
            learner.learn([played])
    except TrainingDiverged as e:
        found["given up"] = str(e)
    return found


def memory(base: Path, world: World) -> dict[str, int]:
    """Bytes that torch's allocator handed out at most, and the plan's."""
    made = plan_memory.recipe_of(CASE)
    config = plan_memory.base_config(CASE)
    z, adapter = sizes.sizes(config), sizes.adapter_parameters(made, config)
    setting = activations.Setting("float32", CASE.rank, ("q_proj", "k_proj", "v_proj", "o_proj"), True)
    rows = CASE.sequences * CASE.length // world.size
    need = activations.need(z, setting, activations.Batch(rows, rows // 2), adapter, True)
    parameters = sizes.parameters(config)
    subject = actors.subject(made, config, parameters, z, work.of(made))
    with plan_memory._peak() as loading:
        learner = Learner(base, made, world=world)
    own = shard.own_bytes(learner.policy.peft)
    batch, rewards = plan_memory._batch(CASE, CASE.sequences, CASE.length), [(-1.0) ** n for n in range(CASE.sequences)]
    learner.update(batch, rewards)
    with plan_memory._peak() as peak:
        learner.update(batch, rewards)
    left = [p.untyped_storage().nbytes() for p in learner.policy.peft.parameters() if isinstance(p, DTensor)]
    return {
        "own": own, "own, planned": actors.kept_by_one(parameters, world.size) * 4, "all": parameters.total * 4,
        # The file is mapped, which torch reports like an allocation of its size; no memory is taken by it.
        "loading": loading["bytes"] - (base / "model.safetensors").stat().st_size, "adapter": adapter * 4,
        "step": peak["bytes"], "step, planned": need.peak + actors.gathered(subject, need, "cpu"), "step, unsplit": need.peak,
        "dtensors": len(left), "layer": (parameters.attention + parameters.experts) * 4 // z.moe.depth,
    }  # fmt: skip


def serve(rank: int, size: int, root: Path, connection: Connection) -> None:
    """All scenarios; the answer is a dictionary by scenario, or the traceback of what went wrong."""
    found: dict[str, Any] = {}
    try:
        torch.set_num_threads(1)
        world = World.join(rank, size, root / "meet", torch.device("cpu"), timeout_s=60, sharded=True)
        for name, (family, _, dtype) in BASES.items():
            found[name] = look(root / (family if name != "tied" else name), dtype, world)
        found["again"] = look(root / "qwen3_moe", "float32", world, "learner.activation_checkpointing=true")
        found["steps"] = steps(root / "qwen3_moe", STEPS, 20, world)
        found["ppo"] = steps(root / "qwen3_moe", PPO, 2, world)
        found["checkpoints"] = checkpoints(root / "qwen3_moe", root, world)
        found["memory"] = memory(root / "memory", world)
        learner = Learner(root / "qwen3_moe", recipe(), world=world)
        if rank == 1:
            connection.send(found)
            os._exit(1)  # as one that is killed
        try:
            learner.learn(batches(1))
        except RuntimeError as e:
            found["alone"] = f"{type(e).__name__}: {e}"
        connection.send(found)
    except BaseException:
        connection.send(traceback.format_exc())
    os._exit(0)  # past the collective's own clean-up, which would wait for the other
