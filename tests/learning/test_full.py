"""Full fine-tuning against stock transformers: loss, gradient of every weight, one step; then files, rollbacks, canaries."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from frontier_tune.algorithms.batch import Tokens, Totals
from frontier_tune.contracts import BadInput
from frontier_tune.experts import canonical, whole
from frontier_tune.learning.batch import samples
from frontier_tune.learning.checkpoint import NotFinite
from frontier_tune.learning.learner import Learner
from frontier_tune.recipe import idle

ALL = "learner.trainable=all"
SEQUENCES = [[5, 6, 7, 8, 9, 10], [20, 21, 22], [30, 31, 32, 33]]


@pytest.fixture
def full(recipe):
    """A recipe that trains all weights; the adapter's section is left at its defaults."""

    def make(*overrides: str):
        return recipe(ALL, "adapter.rank=8", "adapter.alpha=16", *overrides)

    return make


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.policy.named_parameters()}


def accumulated(learner: Learner, members) -> float:
    """The loss; gradients are the parameters'."""
    return learner._accumulate(members, Totals(sum(len(s.target) for s in members), len(members)))[0]


def stock_loss(model, learner: Learner, members) -> torch.Tensor:
    """The algorithm's loss of log-probabilities and entropies by stock transformers, one unpadded sequence at a time."""
    logprob, entropy, sequence = [], [], []
    for number, s in enumerate(members):
        ids = torch.tensor([s.tokens])
        rows = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        at = torch.from_numpy(s.target)
        logprob.append(rows[at - 1, ids[0, at]])
        entropy.append(-(rows.exp() * rows).sum(-1)[at - 1])
        sequence.append(torch.full((len(at),), number))
    flat = lambda name: torch.cat([torch.tensor(getattr(s, name)).float() for s in members])  # noqa: E731
    tokens = Tokens(
        logprob_T=torch.cat(logprob),
        old_logprob_T=flat("logprob"),
        advantage_T=flat("advantage"),
        sequence_T=torch.cat(sequence),
        sequences=len(members),
        entropy_T=torch.cat(entropy),
    )
    loss, _ = learner.algorithm.loss(tokens, Totals(len(tokens.logprob_T), len(members)), learner.coefficients)
    return loss


@pytest.mark.parametrize("family, tied", [("qwen3_moe", True), ("qwen3_moe", False), ("olmoe", False), ("mixtral", False)])
def test_loss_gradients_and_a_step_are_stock(write_base, full, episodes, tmp_path, family: str, tied: bool) -> None:
    base = write_base(tmp_path / "base", family, tie_word_embeddings=tied)
    learner = Learner(base, full("algorithm.entropy_coefficient=0.01", "learner.tokens_per_microbatch=64"))
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    played, advantages = episodes()
    for t in played:  # a ratio near 1, so that clipping leaves most tokens in
        scores = [0.0, *learner.score([t.tokens])[0]]
        t.logprobs = [x - 0.05 if sampled else 0.0 for x, sampled in zip(scores, t.mask, strict=True)]
    members = samples(played, advantages, 61)
    loss = accumulated(learner, members)
    want = stock_loss(stock, learner, members)
    want.backward()
    assert loss == pytest.approx(float(want.detach()), rel=1e-5)
    own = dict(learner.policy.named_parameters())
    assert own.keys() == {n for n, _ in stock.named_parameters()} and ("lm_head.weight" in own) != tied
    gradients = {n: p.grad.clone() for n, p in own.items()}
    for name, p in stock.named_parameters():
        scale = float(p.grad.abs().max())
        assert scale > 0, name
        assert float((gradients[name] - p.grad).abs().max()) <= 1e-5 * scale, name

    norm = torch.nn.utils.clip_grad_norm_(stock.parameters(), learner.recipe.learner.max_grad_norm)
    section = learner.recipe.learner
    torch.optim.AdamW(stock.parameters(), section.learning_rate, section.betas, weight_decay=section.weight_decay).step()
    assert learner._step(loss) == pytest.approx(float(norm), rel=1e-5)
    for name, p in stock.named_parameters():  # Adam's first step is the gradient's sign: where that is rounding, it is anything
        heard = gradients[name].abs() > 1e-3 * gradients[name].abs().max()
        torch.testing.assert_close(own[name][heard], p[heard], rtol=1e-5, atol=1e-6)


def test_the_gradient_does_not_depend_on_checkpointing_or_replay(bases, full, episodes) -> None:
    members = samples(*episodes(), 61)
    found = []
    for more in ([], ["learner.activation_checkpointing=true", "sampler.routes=true", "learner.tokens_per_microbatch=64"]):
        learner = Learner(bases(), full(*more))
        accumulated(learner, members)
        found.append({n: p.grad for n, p in learner.policy.named_parameters()})
    for name, a in found[0].items():
        assert float((a - found[1][name]).abs().max()) <= 2e-5 * float(a.abs().max()), name


def test_an_update_moves_everything_and_nothing_is_measured_against_the_base(bases, full, episodes) -> None:
    learner = Learner(bases(), full("learner.learning_rate=0.001", "learner.weight_decay=0.1"))
    before, metrics = weights(learner), learner.update(*episodes())
    assert all(not torch.equal(p, before[n]) for n, p in weights(learner).items())
    assert "kl_base" not in metrics and "router_change" not in metrics and metrics["updates"] == learner.version == 1
    with pytest.raises(BadInput, match="nothing can be scored by the base"):
        learner.score_base(SEQUENCES)
    decayed = {len(group["params"]): group["weight_decay"] for group in learner.optimizer.param_groups}
    norms = [n for n, p in learner.policy.named_parameters() if p.ndim < 2]
    assert decayed[len(norms)] == 0 and all("norm" in n for n in norms) and 0.1 in decayed.values()


def test_a_resumed_learner_goes_on_to_the_same_bytes(bases, full, recipe, episodes, tmp_path) -> None:
    learner, again = (Learner(bases(), full("learner.threads=1"), seed=seed) for seed in (0, 4))
    learner.update(*episodes())
    next(p for _, p in learner.policy.named_parameters()).data[0] = -0.0  # equal to 0, and other bytes
    learner.save(tmp_path / "state")
    again.load(tmp_path / "state")
    assert again.digests() == learner.digests()
    for one in (learner, again):
        one.update(*episodes(seed=1))
    assert again.digests() == learner.digests() and all(torch.equal(p, weights(again)[n]) for n, p in weights(learner).items())
    with pytest.raises(BadInput, match="learner.trainable to all"):
        Learner(bases(), recipe()).load(tmp_path / "state")
    Learner(bases(), recipe()).save(tmp_path / "adapter")
    with pytest.raises(BadInput, match="learner.trainable to adapter"):
        again.load(tmp_path / "adapter")
    shutil.copyfile(tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "state" / "weights.safetensors")
    with pytest.raises(BadInput, match="another base"):
        again.load(tmp_path / "state")


def test_updates_that_are_not_finite_are_skipped_and_rolled_back(bases, full, episodes, tmp_path) -> None:
    learner = Learner(bases(), full())
    fresh = learner.digests()
    learner.update(*episodes())
    trained = learner.digests()
    p = next(p for n, p in learner.policy.named_parameters() if n.endswith("down_proj"))
    p.register_hook(lambda gradient: gradient * float("inf"))
    for n in (1, 2):
        assert learner.update(*episodes())["bad_updates"] == n and learner.digests() == trained
    assert learner.update(*episodes())["rollbacks"] == 1
    assert learner.digests() == fresh != trained
    p.data[0] = float("nan")
    for write in (learner.save, learner.save_adapter, learner.save_model):
        with pytest.raises(NotFinite, match="weights"):
            write(tmp_path / "out")
    assert not (tmp_path / "out" / "learner.json").exists() and not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_handed_over_is_a_model_that_transformers_reads(bases, full, stock, episodes, tmp_path, dtype: str) -> None:
    learner = Learner(bases(), full(f"sampler.dtype={dtype}", "learner.learning_rate=0.01"))
    learner.update(*episodes())
    learner.save_adapter(tmp_path / "v1")
    whole.check_files(tmp_path / "v1")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "v1", dtype=torch.float32)
    assert json.loads((tmp_path / "v1" / "config.json").read_text())["dtype"] == dtype
    kind = getattr(torch, dtype)
    assert canonical.digests({n: whole.form(n, p, kind) for n, p in found.named_parameters()}) == learner.digests(dtype)
    routers = [n for n in weights(learner) if whole.is_router(n)]
    assert len(routers) == 2 and all(torch.equal(found.get_parameter(n), weights(learner)[n]) for n in routers)
    with torch.no_grad():
        for sequence, by_file, here in zip(
            SEQUENCES, learner.score(SEQUENCES, tmp_path / "v1"), learner.score(SEQUENCES), strict=True
        ):
            torch.testing.assert_close(torch.tensor(by_file), stock(found, sequence), atol=1e-5, rtol=1e-5)
            assert (here == by_file) == (dtype == "float32")
    whole.add_file(tmp_path / "v1", "source.json", "{}")
    whole.check_files(tmp_path / "v1")
    (tmp_path / "v1" / "more.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="more.safetensors: not in"):
        whole.add_file(tmp_path / "v1", "source.json", "{}")
    with pytest.raises(BadInput, match="more.safetensors: not in"):
        whole.check_files(tmp_path / "v1")
    learner.save_adapter(tmp_path / "v1")  # again, over the one that is there
    whole.check_files(tmp_path / "v1")
    (tmp_path / "v1" / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="config.json: is missing, or not the file that was written"):
        whole.check_files(tmp_path / "v1")
    (tmp_path / "v1" / whole.DIGESTS).write_text('{"config.json": "')
    with pytest.raises(BadInput, match="digests.json: damaged"):
        whole.check_files(tmp_path / "v1")


def test_a_canary_and_another_model_are_scored_and_leave_no_trace(bases, full, write_base, tmp_path) -> None:
    from frontier_tune.orchestration import canary

    learner = Learner(bases(), full())
    before, scores = weights(learner), learner.score(SEQUENCES)
    digests = canary.write_whole(learner, str(tmp_path / "canary"), "float32")
    moved = sorted(n for n, d in learner.digests().items() if digests[n] != d)
    assert moved and all(".experts." in n for n in moved)
    assert learner.score(SEQUENCES, tmp_path / "canary") != scores == learner.score(SEQUENCES)
    assert all(torch.equal(p, before[n]) for n, p in weights(learner).items())
    other = write_base(tmp_path / "other", "qwen3_moe", num_experts=4)
    with pytest.raises(BadInput, match="no model of this base"):
        learner.score(SEQUENCES, other)
    assert learner.score(SEQUENCES) == scores


@pytest.mark.parametrize(
    "asked, said",
    [
        (["run.staleness=1", "algorithm.proximal=learner", "algorithm.correction=truncate"], "run.staleness"),
        (["overlap.stream=true"], "overlap.stream"),
        (["algorithm.kl_coefficient=0.1"], "algorithm.kl_coefficient"),
        (["adapter.expert_mass=0.9"], "adapter.expert_mass"),
        (["adapter.router=true"], "adapter.router"),
        (["warm_start.sft.traces=traces/accepted"], "warm_start"),
        (["placement.learners=2", "placement.shard_base=true"], "placement.shard_base"),
        (["placement.learners=2"], "placement.learners"),
        (["placement.samplers=2"], "placement.samplers"),
        (["learner.dtype=bfloat16"], "learner.dtype"),
        (["learner.compile=true"], "learner.compile"),
    ],
)
def test_what_it_does_not_go_with_is_refused_where_the_recipe_is_read(full, asked: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=rf"{said}.*\(learner.trainable is all\)"):
        full(*asked)


def test_settings_of_an_adapter_and_families_that_cannot_be_are_refused(bases, recipe, full) -> None:
    with pytest.raises(BadInput, match="adapter.rank: it has no effect at learner.trainable: all"):
        idle.check(recipe(ALL))
    idle.check(full())
    with pytest.raises(BadInput, match="DeepSeek-V3 can't be trained, those of Qwen3-MoE, OLMoE, Mixtral can"):
        Learner(bases("deepseek_v3"), full())
