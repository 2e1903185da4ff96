"""Routers that learn beside the low-rank updates: against stock transformers and PEFT, and through checkpoints and rollbacks."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from frontier_tune.contracts import BadInput
from frontier_tune.learning.learner import Learner
from frontier_tune.learning.model import ROUTER
from frontier_tune.learning.packing import pack
from frontier_tune.learning.parallel import World
from frontier_tune.orchestration.plan import adapter_parameters, missing
from frontier_tune.recipe import idle
from tests.learning.test_parallel import everywhere, perturbed, trained

SEQUENCES = [[5, 6, 7, 8, 9, 10], [20, 21, 22], [30, 31, 32, 33]]


def routers(learner: Learner) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in learner.policy.named_parameters() if ROUTER in n}


def moved(bases, recipe, *overrides: str, family: str = "qwen3_moe", std: float = 0.1) -> Learner:
    """A learner whose adapter and routers are not the base's any more."""
    learner = Learner(bases(family), recipe("adapter.router=true", *overrides))
    torch.manual_seed(1)
    for _, p in learner.policy.named_parameters():
        p.data += torch.randn(p.shape) * std
    return learner


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
def test_gradients_reach_routers_as_in_transformers(bases, recipe, family: str) -> None:
    learner = Learner(bases(family), recipe("adapter.router=true"))
    stock = AutoModelForCausalLM.from_pretrained(bases(family))
    tokens = SEQUENCES[0]
    packed = pack([tokens], None, torch.device("cpu"))
    rows, targets = torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])
    learner.policy.logprobs(packed, rows, targets)[0].sum().backward()
    logits = stock(input_ids=torch.tensor([tokens])).logits[0, :-1]
    logits.log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    found = routers(learner)
    assert len(found) == 2
    counted = adapter_parameters(learner.recipe, learner.policy.config)
    assert counted == sum(p.numel() for _, p in learner.policy.named_parameters())
    for name, p in found.items():
        want = stock.get_parameter(name.removeprefix("base_model.model.").replace(ROUTER, ".")).grad
        assert want.abs().max() > 0 and p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, want, atol=2e-5 * float(want.abs().max()), rtol=1e-4)


def test_an_update_moves_routers_by_their_own_rate_and_leaves_the_base_alone(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("adapter.router=true", "learner.learning_rate=0.02"))
    before, base = {n: p.detach().clone() for n, p in routers(learner).items()}, learner.score_base(SEQUENCES)
    assert learner.score(SEQUENCES) == base  # a fresh router is the base's
    metrics = learner.update(*episodes())
    assert 0 < metrics["router_change"] < 0.1
    for name, p in routers(learner).items():  # Adam's first step is the rate itself, wherever the gradient is not tiny
        assert float((p - before[name]).abs().max().detach()) == pytest.approx(0.002, rel=1e-3)
    assert learner.score_base(SEQUENCES) == base != learner.score(SEQUENCES)
    plain = Learner(bases(), recipe())
    assert "router_change" not in plain.update(*episodes()) and not routers(plain)


def test_a_resumed_learner_goes_on_to_the_same_bytes(bases, recipe, episodes, tmp_path) -> None:
    learner, again = (Learner(bases(), recipe("adapter.router=true"), seed=seed) for seed in (0, 4))
    learner.update(*episodes())
    learner.save(tmp_path)
    again.load(tmp_path)
    assert again.digests() == learner.digests() and sum("router" in n for n in learner.digests()) == 2
    for one in (learner, again):
        one.update(*episodes(seed=1))
    assert again.digests() == learner.digests()
    with pytest.raises(BadInput, match="targets"):
        Learner(bases(), recipe()).load(tmp_path)


def test_updates_that_are_not_finite_leave_routers_and_roll_them_back(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("adapter.router=true"))
    fresh = learner.digests()
    learner.update(*episodes())
    trained = learner.digests()
    next(iter(routers(learner).values())).register_hook(lambda gradient: gradient * float("inf"))
    for n in (1, 2):
        assert learner.update(*episodes())["bad_updates"] == n and learner.digests() == trained
    assert learner.update(*episodes())["rollbacks"] == 1
    assert learner.digests() == fresh != trained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_is_peft_s(bases, recipe, stock, tmp_path, dtype: str) -> None:
    """Routers are kept in float32 whatever the base's type, and stock PEFT puts them in the place of the base's."""
    learner = moved(bases, recipe, f"learner.dtype={dtype}")
    assert {p.dtype for p in routers(learner).values()} == {torch.float32}
    learner.save_adapter(tmp_path)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases()), tmp_path)
    with torch.no_grad():
        for sequence, got in zip(SEQUENCES, learner.score(SEQUENCES), strict=True):
            want = stock(tuned, sequence)
            assert (torch.tensor(got) - want).abs().mean() < (1e-5 if dtype == "float32" else 0.1)


def test_replay_and_checkpointing_give_routers_the_same_gradient(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    whole = Learner(bases(), recipe("adapter.router=true"))
    whole.update(played, advantages)
    watched = Learner(bases(), recipe("adapter.router=true", "sampler.routes=true", "learner.activation_checkpointing=true"))
    watched.update(played, advantages)
    for a, b in zip(routers(whole).values(), routers(watched).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_two_learners_move_routers_as_one_does(bases, recipe, episodes, tmp_path) -> None:
    settings = ("adapter.router=true", "learner.learning_rate=0.1", "learner.router_lr_ratio=1", "learner.schedule=constant")
    batches = []
    for seed in range(3):
        batches.append(episodes(seed, groups=3, members=2)[0])
        for t in batches[-1]:
            t.reward = float(t.spec.member == 0)

    def learner(world: World | None = None) -> Learner:
        return perturbed(Learner(bases(), recipe(*settings), world=world))

    one = trained(learner(), batches, sgd=True)[0]
    both = everywhere(2, tmp_path / "meet", lambda world: trained(learner(world), batches, sgd=True)[0])
    start = routers(learner())
    assert len(start) == 2
    for name, before in start.items():
        assert torch.equal(both[0][name], both[1][name])
        assert (one[name] - before).abs().max() > 1e-4 and (both[0][name] - one[name]).abs().max() < 1e-6


def test_what_cannot_be_is_refused(bases, recipe) -> None:
    with pytest.raises(BadInput, match="adapter.router: routers of DeepSeek-V3"):
        Learner(bases("deepseek_v3"), recipe("adapter.router=true"))
    with pytest.raises(BadInput, match="expert_mass"):
        recipe("adapter.router=true", "adapter.expert_mass=0.9")
    with pytest.raises(BadInput, match="learner.router_lr_ratio: it has no effect"):
        idle.check(recipe("learner.router_lr_ratio=0.2"))
    config = AutoConfig.from_pretrained(bases())
    assert missing(recipe("adapter.router=true", "placement.learners=2"), config) == []
    for asked in (["placement.gpus_per_node=1"], ["placement.learners=2", "placement.shard_base=true"]):
        assert "adapter.router" in " ".join(missing(recipe("adapter.router=true", *asked), config))
        assert "adapter.router" not in " ".join(missing(recipe(*asked), config))
