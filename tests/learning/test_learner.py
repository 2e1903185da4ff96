import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from frontier_tune.algorithms.batch import Totals
from frontier_tune.contracts import BadInput, Blame, Failure
from frontier_tune.experts import canonical
from frontier_tune.learning import checkpoint
from frontier_tune.learning.batch import samples
from frontier_tune.learning.checkpoint import NotFinite
from frontier_tune.learning.learner import Learner

SEQUENCES = [[5, 6, 7, 8, 9, 10], [20, 21], [3], [30, 31, 32, 33]]


def gradients(learner: Learner, trajectories, advantages, normalizer: int | None = None) -> dict[str, torch.Tensor]:
    members = samples(trajectories, advantages, 61)
    learner._accumulate(members, Totals(normalizer or sum(len(s.target) for s in members), len(members)))
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in learner.policy.named_parameters()}


def perturbed(learner: Learner, std: float = 0.1) -> Learner:
    torch.manual_seed(1)
    for _, p in learner.policy.named_parameters():
        torch.nn.init.normal_(p, std=std)
    return learner


def test_a_fresh_adapter_is_the_base_and_scores_are_stock(bases, recipe, stock) -> None:
    learner = Learner(bases(), recipe(), seed=3)
    base = AutoModelForCausalLM.from_pretrained(bases())
    scores = learner.score(SEQUENCES)
    assert [len(s) for s in scores] == [5, 1, 0, 3]
    with torch.no_grad():
        for sequence, got in zip(SEQUENCES, scores, strict=True):
            torch.testing.assert_close(torch.tensor(got), stock(base, sequence), atol=1e-5, rtol=1e-5)
    perturbed(learner)
    assert learner.score(SEQUENCES)[0] != scores[0]
    assert learner.score_base(SEQUENCES) == scores
    a, b = (Learner(bases(), recipe(), seed=s).digests() for s in (3, 4))
    assert a != b and a == Learner(bases(), recipe(), seed=3).digests()


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
def test_updates_raise_what_was_rewarded(bases, recipe, episodes, family: str) -> None:
    learner = Learner(bases(family), recipe("learner.learning_rate=0.02"))
    played, _ = episodes()
    for t in played:  # as the sampler would have it: log-probabilities of the policy that played
        score = learner.score([t.tokens])[0]
        t.logprobs = [score[i - 1] if s else 0.0 for i, s in enumerate(t.mask)]
    advantages = [1.0 if t.spec.member == 0 else -0.5 for t in played]
    before = [sum(x for x, s in zip(learner.score([t.tokens])[0], t.mask[1:], strict=True) if s) for t in played]
    first = learner.update(played, advantages)
    for _ in range(3):
        last = learner.update(played, advantages)
    after = [sum(x for x, s in zip(learner.score([t.tokens])[0], t.mask[1:], strict=True) if s) for t in played]
    assert first["logprob_gap"] < 1e-5 and first["kl_sampler"] < 1e-9 and first["clip_share"] == 0 and first["kl_base"] == 0
    assert last["kl_sampler"] > 0 and last["kl_base"] > 0 and learner.version == learner.steps == 4
    gain = [b - a for a, b in zip(before, after, strict=True)]
    assert sum(g for g, t in zip(gain, played, strict=True) if t.spec.member == 0) > 0
    assert sum(g for g, t in zip(gain, played, strict=True) if t.spec.member != 0) < 0
    for key in ("loss", "grad_norm", "entropy", "tokens", "rows", "learning_rate", "seconds_forward", "seconds_backward"):
        assert key in last


def test_the_gradient_does_not_depend_on_microbatches_or_sharing(bases, recipe, episodes, monkeypatch) -> None:
    played, advantages = episodes(groups=6, members=5)
    whole = gradients(perturbed(Learner(bases(), recipe("learner.tokens_per_microbatch=100000"))), played, advantages)
    split = gradients(perturbed(Learner(bases(), recipe("learner.tokens_per_microbatch=64"))), played, advantages)
    monkeypatch.setattr("frontier_tune.learning.attention.shares_prefixes", lambda device: False)
    alone = gradients(perturbed(Learner(bases(), recipe())), played, advantages)
    for name, want in whole.items():
        scale = float(want.abs().max())
        assert scale > 0, name
        assert (split[name] - want).abs().max() <= 2e-5 * scale and (alone[name] - want).abs().max() <= 2e-5 * scale, name


def test_zero_advantages_are_skipped_without_changing_the_gradient(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    advantages = [0.0 if t.spec.group == 1 else a for t, a in zip(played, advantages, strict=True)]
    learner = perturbed(Learner(bases(), recipe()))
    everything = gradients(learner, played, advantages)
    kept = [(t, a) for t, a in zip(played, advantages, strict=True) if a]
    fewer = gradients(learner, *map(list, zip(*kept, strict=True)), normalizer=sum(t.sampled_tokens for t in played))
    for name, want in everything.items():
        assert (fewer[name] - want).abs().max() <= 2e-5 * float(want.abs().max()), name
    metrics = learner.update(played, advantages)
    assert metrics["sequences_skipped"] == 3 and metrics["sequences"] == 9
    norm = torch.stack([g.norm() for g in everything.values()]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4), "what is skipped still counts in the normaliser"
    assert learner.update(played, [0.0] * 9)["updates"] == 0 and learner.version == 1


def test_failures_of_others_never_reach_the_loss(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    learner = perturbed(Learner(bases(), recipe()))
    played[0].failure = Failure("worker-died", Blame.INFRASTRUCTURE)
    played[1].failure = Failure("bad-call", Blame.AGENT)
    played[0].logprobs = [float("nan")] * len(played[0].tokens)
    metrics = learner.update(played, advantages)
    assert metrics["sequences"] == 8 and metrics["tokens"] == sum(t.sampled_tokens for t in played[1:])


def test_kl_and_entropy_terms_and_minibatches(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    algorithm = ("kl_coefficient=0.1", "entropy_coefficient=0.01", "epochs=2", "minibatches=3")
    learner = perturbed(Learner(bases(), recipe(*(f"algorithm.{a}" for a in algorithm))))
    metrics = learner.update(played, advantages)
    assert metrics["updates"] == 6 == learner.version and learner.steps == 1
    assert metrics["kl_base"] > 0 and metrics["sequences_skipped"] == 0
    assert learner.update(played, [0.0] * 9)["updates"] == 6  # these terms learn without advantages


def test_temperature_enters_the_ratio(bases, recipe, episodes, tmp_path) -> None:
    learner = perturbed(Learner(bases(), recipe()))
    played, advantages = episodes(temperature=0.7)
    learner.save_adapter(tmp_path)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases()), tmp_path)
    with torch.no_grad():
        for t in played:
            ids = torch.tensor([t.tokens])
            logits = stock(input_ids=ids, use_cache=False).logits[0, :-1]
            logprob = (logits / 0.7).log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            t.logprobs = [float(logprob[i - 1]) if s else 0.0 for i, s in enumerate(t.mask)]
    assert learner.update(played, advantages)["logprob_gap"] < 1e-5


def test_saved_adapter_is_stock_peft(bases, recipe, stock, tmp_path, monkeypatch) -> None:
    learner = perturbed(Learner(bases(), recipe()))
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *a, **k: pytest.fail("asks the hub"))
    learner.save_adapter(tmp_path)
    learner.policy.state()
    assert {p.suffix for p in tmp_path.iterdir()} <= {".safetensors", ".json"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "qwen3_moe"
    assert not [p for p in tmp_path.iterdir() if str(bases().parent).encode() in p.read_bytes()]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases()), tmp_path)
    with torch.no_grad():
        for sequence, got in zip(SEQUENCES, learner.score(SEQUENCES), strict=True):
            torch.testing.assert_close(torch.tensor(got), stock(model, sequence), atol=1e-5, rtol=1e-5)
    for dtype in (torch.float32, torch.bfloat16):
        assert learner.digests(dtype) == canonical.digests(canonical.load(tmp_path, learner.policy.config, dtype))
    assert learner.digests("bfloat16") == learner.digests(torch.bfloat16)


def test_score_with_another_adapter_leaves_this_one_alone(bases, recipe, tmp_path) -> None:
    other = perturbed(Learner(bases(), recipe()), std=0.3)
    other.save_adapter(tmp_path / "other")
    learner = perturbed(Learner(bases(), recipe()))
    mine, digests = learner.score(SEQUENCES), learner.digests()
    assert learner.score(SEQUENCES, adapter_dir=tmp_path / "other") == other.score(SEQUENCES) != mine
    assert learner.score(SEQUENCES) == mine and learner.digests() == digests
    Learner(bases(), recipe("adapter.rank=4")).save_adapter(tmp_path / "wide")
    with pytest.raises(BadInput, match="rank or alpha"):
        learner.score(SEQUENCES, adapter_dir=tmp_path / "wide")


def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(bases, recipe, episodes, tmp_path) -> None:
    r = recipe("algorithm.epochs=2", "algorithm.minibatches=2", "learner.weight_decay=0.01")
    batches = [episodes(seed) for seed in range(4)]
    straight = Learner(bases(), r)
    for n, batch in enumerate(batches):
        straight.update(*batch)
        if n == 1:
            straight.save(tmp_path)
    resumed = Learner(bases(), r, seed=99)
    resumed.load(tmp_path)
    resumed_metrics = [resumed.update(*batch) for batch in batches[2:]]
    for (name, a), (_, b) in zip(straight.policy.named_parameters(), resumed.policy.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (resumed.steps, resumed.version, resumed.seed) == (4, straight.version, straight.seed) and len(resumed_metrics) == 2


def test_a_run_made_longer_does_not_raise_its_learning_rate_again(bases, recipe, episodes, tmp_path) -> None:
    short = ("run.steps=2", "learner.schedule=linear", "learner.final_lr_ratio=0.1", "learner.learning_rate=0.01")
    learner = Learner(bases(), recipe(*short))
    rates = [learner.update(*episodes())["learning_rate"] for _ in range(2)]
    learner.save(tmp_path / "at")
    longer = Learner(bases(), recipe(*short, "run.steps=40"))
    longer.load(tmp_path / "at")
    rates.append(longer.update(*episodes())["learning_rate"])
    assert rates == pytest.approx([0.01, 0.001, 0.001])


def test_load_refuses_what_does_not_belong(bases, recipe, episodes, write_base, tmp_path) -> None:
    learner = Learner(bases(), recipe())
    learner.update(*episodes())
    learner.save(tmp_path / "state")
    with pytest.raises(BadInput, match="no learner state"):
        learner.load(tmp_path)
    with pytest.raises(BadInput, match="other targets or another rank"):
        Learner(bases(), recipe("adapter.rank=4")).load(tmp_path / "state")
    with pytest.raises(BadInput, match=r"scaled by 2 \(alpha / rank\).*asks for 4"):
        Learner(bases(), recipe("adapter.alpha=12")).load(tmp_path / "state")
    with pytest.raises(BadInput, match="another base"):
        Learner(write_base(tmp_path / "b", "qwen3_moe", initializer_range=0.1), recipe()).load(tmp_path / "state")
    learner.update(*episodes(1))
    learner.save_adapter(tmp_path / "state")  # tampered: not the tensors that the state was written with
    with pytest.raises(BadInput, match="damaged"):
        learner.load(tmp_path / "state")


def test_nothing_that_is_not_finite_is_saved(bases, recipe, tmp_path) -> None:
    learner = Learner(bases(), recipe())
    learner.policy.named_parameters()[0][1].data[0, 0] = float("nan")
    for save in (learner.save, learner.save_adapter):
        with pytest.raises(NotFinite, match="1 tensors are not finite"):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bfloat16_base_keeps_a_float32_adapter(bases, recipe, episodes) -> None:
    learner = Learner(bases(), recipe("learner.dtype=bfloat16"))
    assert {p.dtype for _, p in learner.policy.named_parameters()} == {torch.float32}
    metrics = learner.update(*episodes())
    assert metrics["updates"] == 1 and metrics["grad_norm"] > 0
    base = Learner(bases(), recipe()).score_base(SEQUENCES)
    gap = torch.tensor(learner.score_base(SEQUENCES)[0]) - torch.tensor(base[0])
    assert gap.abs().max() < 0.3


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda t: t.logprobs.pop(), "log-probabilities"),
        (lambda t: t.mask.__setitem__(0, True), "first token"),
        (lambda t: t.logprobs.__setitem__(t.mask.index(True), float("nan")), "not finite"),
        (lambda t: t.logprobs.__setitem__(t.mask.index(True), 0.5), "above 0"),
        (lambda t: t.tokens.__setitem__(1, 61), "vocabulary"),
    ],
)
def test_malformed_trajectories_are_refused(bases, recipe, episodes, spoil, message: str) -> None:
    played, advantages = episodes()
    spoil(played[4])
    with pytest.raises(ValueError, match=message):
        samples(played, advantages, 61)


def test_greedy_or_mismatched_input_is_refused(bases, recipe, episodes) -> None:
    played, advantages = episodes()
    with pytest.raises(ValueError, match="9 trajectories but 8"):
        samples(played, advantages[:-1], 61)
    with pytest.raises(ValueError, match="advantage nan"):
        samples(played, [float("nan")] * 9, 61)
    with pytest.raises(ValueError, match="greedily"):
        samples(*episodes(temperature=0.0), 61)


def test_bases_that_cannot_be_adapted_are_refused(recipe, tmp_path) -> None:
    with pytest.raises(BadInput, match="no config.json"):
        Learner(tmp_path, recipe())
    config = AutoConfig.for_model(
        "qwen3", vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(BadInput, match="dense"):
        Learner(tmp_path / "dense", recipe())


def test_weights_that_do_not_fit_the_configuration_are_refused(bases, recipe, tmp_path) -> None:
    shutil.copytree(bases(), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["num_hidden_layers"] = 3
    config.pop("layer_types", None)
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="don't fit"):
        Learner(tmp_path / "b", recipe())


def test_only_attention_or_only_experts(bases, recipe, episodes) -> None:
    for override, expected in (("adapter.experts=false", "self_attn"), ("adapter.attention=false", "experts")):
        learner = Learner(bases(), recipe(override))
        assert all(expected in n for n, _ in learner.policy.named_parameters())
        assert learner.update(*episodes())["updates"] == 1
        assert all(expected in n for n in learner.digests())


def test_checkpoint_has_no_pickle(bases, recipe, episodes, tmp_path) -> None:
    learner = Learner(bases(), recipe())
    learner.update(*episodes())
    learner.save(tmp_path)
    for path in tmp_path.iterdir():
        head = path.read_bytes()[:2]
        assert head != b"\x80\x02" and head != b"PK", path
    assert (tmp_path / checkpoint.STATE).is_file()


def test_the_schedule_goes_by_the_run_s_steps(bases, recipe, episodes) -> None:
    """Steps without anything to learn count, too: the last one has the rate that the recipe says a run ends with."""
    asked = ("learner.schedule=linear", "learner.final_lr_ratio=0.1", "learner.learning_rate=0.01")
    learner = Learner(bases(), recipe(*asked))
    played = episodes()[0]
    for t in played:
        t.reward = float(t.spec.member)
    assert learner.learn([played], 0)["learning_rate"] == pytest.approx(0.01)
    assert learner.learn([played], 9)["learning_rate"] == pytest.approx(0.001)  # of 10 steps
    assert learner.steps == 10 and learner.version == 2


def test_the_warm_up_counts_steps_that_learned(bases, recipe, episodes, tmp_path) -> None:
    """Steps without anything to learn must not leave a fresh optimizer at the full rate."""
    learner = Learner(bases(), recipe("learner.warmup_steps=2", "learner.schedule=constant", "learner.learning_rate=0.03"))
    played = episodes()[0]
    for t in played:
        t.reward = float(t.spec.member)
    assert learner.learn([played], 5)["learning_rate"] == pytest.approx(0.01)
    learner.save(tmp_path)
    resumed = Learner(bases(), learner.recipe)
    resumed.load(tmp_path)
    assert resumed.learn([played], 6)["learning_rate"] == pytest.approx(0.02)
    assert resumed.learn([played], 7)["learning_rate"] == pytest.approx(0.03)
