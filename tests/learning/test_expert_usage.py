"""Training confined to chosen experts: which are chosen, and that the others stay the base's, after a resume, too."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from frontier_tune.contracts import BadInput
from frontier_tune.experts import selection
from frontier_tune.learning import expert_usage
from frontier_tune.learning.learner import Learner
from frontier_tune.orchestration import canary

SEQUENCES = [[5, 6, 7, 8, 9, 10], [20, 21], [30, 31, 32, 33]]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_routing_mass_is_what_stock_routers_give(bases, recipe, family):
    learner = Learner(bases(family), recipe())
    mass = expert_usage.measured(learner.policy, SEQUENCES, learner.score)
    base = AutoModelForCausalLM.from_pretrained(bases(family))
    expected = torch.zeros_like(mass)

    def add(row):
        def hook(module, given):  # returns nothing: the arguments stay
            row.index_add_(0, given[1].reshape(-1), given[2].detach().reshape(-1).double())

        return hook

    for layer, row in zip(base.model.layers, expected, strict=True):
        layer.mlp.experts.register_forward_pre_hook(add(row))
    with torch.no_grad():
        for sequence in SEQUENCES:
            base(torch.tensor([sequence]))
    torch.testing.assert_close(mass[0], expected[0], rtol=1e-4, atol=1e-4)
    tokens = sum(map(len, SEQUENCES))
    assert mass[0].sum() == pytest.approx(tokens, rel=1e-4)
    assert mass[1].sum() == pytest.approx(tokens - len(SEQUENCES), rel=1e-4)  # the last layer: only what predicts a token


def test_only_chosen_experts_learn_and_a_resumed_learner_goes_on(bases, recipe, episodes, tmp_path):
    asked = recipe("adapter.expert_mass=0.4", "learner.learning_rate=0.02", "learner.weight_decay=0.1")
    learner, (played, _) = Learner(bases(), asked), episodes()
    for t in played:
        t.reward = float(t.spec.member == 0)
    learner.learn([[]])
    assert learner.policy.selection is None  # nothing was played to choose them by
    learner.learn([played])
    chosen = learner.policy.selection
    assert chosen is not None and 0 < chosen.share < 0.7

    def check(policy):
        changed = 0
        for name, p in policy.named_parameters():
            place = selection.place(name)
            if place and place[1] == "B":
                kept = selection.mask(chosen, *place)
                assert not p.detach()[:, ~kept].any()
                changed += int(p.detach()[:, kept].any())
        assert changed == 4

    check(learner.policy)
    learner.save(tmp_path / "at")
    learner.save_adapter(tmp_path / "adapter")
    assert selection.read(tmp_path / "adapter") == (chosen, "all")
    canary.overwrite(tmp_path / "adapter", learner.policy.config, "float32")  # of the same files: the chosen experts alone
    heard = selection.load_tensors(tmp_path / "adapter")
    assert any(t.any() for name, t in heard.items() if ".lora_B" in name and selection.place(name))
    learner.save_adapter(tmp_path / "adapter")
    selection.load_tensors(tmp_path / "adapter")  # A of the others is what it was drawn as: allowed, as their B is zero
    resumed = Learner(bases(), asked)
    resumed.load(tmp_path / "at")
    assert resumed.policy.selection == chosen  # not chosen anew by the episodes that come next
    for one in (learner, resumed):
        one.learn([played])
        check(one.policy)
    assert resumed.digests() == learner.digests() and resumed.policy.selection == chosen


def test_a_learner_that_goes_back_before_its_choice_is_free_again(bases, recipe, episodes, tmp_path):
    learner, (played, _) = Learner(bases(), recipe("adapter.expert_mass=0.4", "learner.learning_rate=0.02")), episodes()
    for t in played:
        t.reward = float(t.spec.member == 0)
    learner.save(tmp_path / "start")
    learner.learn([played])
    first = learner.policy.selection
    assert first is not None
    learner.load(tmp_path / "start")
    assert learner.policy.selection is None
    everything = selection.Selection(first.experts, learner.policy.rank, {n: tuple(range(first.experts)) for n in first.layers})
    expert_usage.confine(learner.policy, everything)
    learner.learn([played])
    outside = 0
    for name, p in learner.policy.named_parameters():
        place = selection.place(name)
        if place and place[1] == "B":
            outside += int(p.detach()[:, ~selection.mask(first, *place)].any())
    assert outside > 0


def test_several_learners_choose_by_what_the_first_has_measured(bases, recipe, episodes):
    """Unlike processors: the second measures other mass, by which it would choose the opposite experts."""

    class World:
        def __init__(self, rank):
            self.rank = rank

        def add_arrays(self, arrays):
            arrays[0] = arrays[0] + (0 if self.rank == 0 else ahead)

    played, chosen = episodes()[0], []
    first = Learner(bases(), recipe())
    ahead = expert_usage.measured(first.policy, [t.tokens for t in played], first.score).numpy()
    other = torch.from_numpy(ahead.max() - ahead)
    assert expert_usage.select(first.policy, other, 0.4) != expert_usage.select(first.policy, torch.from_numpy(ahead), 0.4)
    with pytest.MonkeyPatch.context() as patch:
        for rank, mass in enumerate((torch.from_numpy(ahead), other)):
            policy = Learner(bases(), recipe()).policy
            patch.setattr(expert_usage, "measured", lambda *_, found=mass: found)
            expert_usage.choose_once(policy, 0.4, [played], None, World(rank))
            chosen.append(policy.selection)
    assert chosen[0] == chosen[1] is not None


def test_what_cannot_be_confined_is_refused(bases, recipe):
    trained = Learner(bases(), recipe())
    for _, p in trained.policy.named_parameters():
        torch.nn.init.ones_(p)
    with pytest.raises(BadInput, match="outside of its selection"):
        expert_usage.confine(trained.policy, selection.Selection(5, trained.policy.rank, {0: (1,), 1: (2,)}))
    with pytest.raises(BadInput, match="no routing mass"):
        expert_usage.select(trained.policy, torch.zeros(2, 5), 0.5)
    with pytest.raises(BadInput, match="set adapter.experts to true"):
        recipe("adapter.expert_mass=0.5", "adapter.experts=false")
    with pytest.raises(BadInput, match="a warm start adapts all experts"):
        recipe("adapter.expert_mass=0.5", "warm_start.sft.traces=traces")
