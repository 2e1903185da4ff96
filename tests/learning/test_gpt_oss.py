"""gpt-oss: sinks, windows, clamped experts with biases, MXFP4 checkpoints; against stock transformers (eager) and PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from frontier_tune.contracts import BadInput
from frontier_tune.learning import attention, checkpoint, model, packing, windows
from frontier_tune.learning.learner import Learner
from frontier_tune.learning.model import Policy
from frontier_tune.learning.packing import pack
from frontier_tune.learning.windows import windowed
from frontier_tune.recipe import Adapter
from tests.mxfp4 import quantize

LENGTHS = (1, 2, 5, 6, 7, 16, 33)  # around the window of 5, and several blocks of it


@pytest.fixture(autouse=True)
def share_every_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MIN_SAVED_ROWS", 1)


def trees() -> tuple[list[list[int]], list[int]]:
    """Seven sequences alone, and a group of four whose branches leave each other before, in and behind a window."""
    g = torch.Generator().manual_seed(0)
    alone = [torch.randint(3, 61, (n,), generator=g).tolist() for n in LENGTHS]
    stem = torch.randint(3, 61, (9,), generator=g).tolist()
    group = [stem + [n, *alone[-1][:10]] for n in (3, 4)] + [stem + [5, 6, 7, n, n, n, n, n] for n in (8, 9)]
    return alone + group, [*range(len(alone)), *[len(alone)] * len(group)]


def policy(base: Path, dtype: torch.dtype = torch.float32, seed: int = 1) -> Policy:
    p = Policy(base, Adapter(rank=3, alpha=6), 0, dtype, torch.device("cpu"))
    torch.manual_seed(seed)
    for _, parameter in p.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return p


def logprobs(p: Policy, sequences: list[list[int]], groups: list[int] | None) -> list[Tensor]:
    packed = pack(sequences, groups)
    rows = torch.cat([torch.from_numpy(r[:-1]) for r in packed.rows])
    targets = torch.tensor([t for s in sequences for t in s[1:]])
    return list(p.logprobs(packed, rows, targets)[0].split([len(s) - 1 for s in sequences]))


def stock(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> PeftModel:
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager", experts_implementation="eager")
    return PeftModel.from_pretrained(causal, adapter, is_trainable=True)


def padded(theirs: PeftModel, sequences: list[list[int]]) -> list[Tensor]:
    """One right-padded batch through stock code."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s), dtype=torch.long) for s in sequences], batch_first=True)
    logits = theirs(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    all_ = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return [row[: len(s) - 1] for row, s in zip(all_, sequences, strict=True)]


def total(parts: list[Tensor]) -> Tensor:
    return sum((p * torch.linspace(-1, 1, len(p) or 1)[: len(p)]).sum() for p in parts)


def test_packed_equals_padded_stock_through_an_optimizer_step(bases, tmp_path: Path) -> None:
    """Log-probabilities, the gradient of every A and B, and what a step of AdamW makes of them; trees included."""
    sequences, groups = trees()
    ours = policy(bases("gpt_oss"))
    checkpoint.save_adapter(ours, tmp_path)
    theirs = stock(bases("gpt_oss"), tmp_path)
    pairs = [(p, dict(theirs.named_parameters())[n]) for n, p in ours.named_parameters()]
    steps = [torch.optim.AdamW([x[i] for x in pairs], lr=0.01, eps=1e-3) for i in (0, 1)]
    for step in range(2):
        mine, want = logprobs(ours, sequences, groups), padded(theirs, sequences)
        for a, b in zip(mine, want, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
        for parts, optimizer in zip((mine, want), steps, strict=True):
            optimizer.zero_grad()
            total(parts).backward()
        assert len(pairs) == 3 * 2 * (4 + 2)
        for a, b in pairs:
            assert b.grad is not None and b.grad.abs().max() > 0
            assert (a.grad - b.grad).abs().max() <= 5e-5 * float(b.grad.abs().max()), step
        for optimizer in steps:
            optimizer.step()
        for a, b in pairs:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    frozen = [p for n, p in ours.peft.named_parameters() if n.endswith(("sinks", "bias"))]
    assert frozen and not any(p.requires_grad for p in frozen)


def test_bfloat16_is_as_near_to_float32_as_stock_bfloat16(bases, tmp_path: Path) -> None:
    """Both round, in other places: a token whose experts change by it is off in either. Gradients point the same way."""
    sequences, groups = trees()
    exact, ours = policy(bases("gpt_oss")), policy(bases("gpt_oss"), torch.bfloat16)
    checkpoint.save_adapter(ours, tmp_path)
    theirs = stock(bases("gpt_oss"), tmp_path, torch.bfloat16)
    with torch.no_grad():
        want = torch.cat(logprobs(exact, sequences, groups))
    mine, their = logprobs(ours, sequences, groups), padded(theirs, sequences)
    gaps = [float((torch.cat(x).detach() - want).abs().median()) for x in (mine, their)]
    assert gaps[0] <= 1.5 * gaps[1] < 0.1, gaps
    for parts in (mine, their):
        total(parts).backward()
    named = dict(theirs.named_parameters())
    a, b = (
        torch.cat([g.float().flatten() for g in x]) for x in zip(*((p.grad, named[n].grad) for n, p in ours.named_parameters()))
    )
    assert torch.cosine_similarity(a, b, dim=0) > 0.95
    assert all(p.dtype == p.grad.dtype == torch.float32 for _, p in ours.named_parameters())


def eager(q: Tensor, k: Tensor, v: Tensor, packed, window: int | None, sinks: Tensor) -> Tensor:
    """transformers' eager attention, one whole sequence at a time, with a mask written down here."""
    out = torch.zeros_like(q)
    for rows in packed.rows:
        at = torch.from_numpy(rows)
        i = torch.arange(len(at))
        behind = i[:, None] - i[None]
        seen = (behind >= 0) & (behind < (window or len(at)))
        mask = torch.zeros(len(at), len(at), dtype=q.dtype).masked_fill(~seen, float("-inf"))
        module = torch.nn.Module()
        module.num_key_value_groups, module.sinks = q.shape[1] // k.shape[1], sinks
        parts = (x[at].transpose(0, 1)[None] for x in (q, k, v))
        o, _ = eager_attention_forward(module, *parts, mask, scaling=0.3)
        out = out.index_copy(0, at, o[0])
    return out


@pytest.mark.parametrize("window", [None, 1, 4, 5, 32])
@pytest.mark.parametrize("path", ["native", "cpu", "portable"])
def test_sinks_and_windows_with_all_gradients(path: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of queries, keys, values and of the sinks themselves, by every way that the learner has."""
    dtype = torch.float32 if path == "native" else torch.float64
    monkeypatch.setattr(attention, "shares_prefixes", lambda device: path != "portable")
    sequences, groups = trees()
    packed = pack(sequences, None if path == "portable" else groups)
    g = torch.Generator().manual_seed(3)
    rows = len(packed.tokens_T)
    tensors = [torch.randn(rows, n, 8, generator=g, dtype=dtype) for n in (4, 2, 2)] + [torch.randn(4, generator=g, dtype=dtype)]
    probe = torch.randn(rows, 4, 8, generator=g, dtype=dtype)
    found = []
    for ours in (True, False):
        q, k, v, sinks = leaves = [t.clone().requires_grad_() for t in tensors]
        if ours:
            parts = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = attention.packed_attention(None, *parts, None, 0.3, packed, sliding_window=window, s_aux=sinks)[0][0]
        else:
            out = eager(q, k, v, packed, window, sinks)
        (out * probe).sum().backward()
        found.append([out.detach(), *(x.grad for x in leaves)])
    limit = 2e-5 if path == "native" else 1e-10
    for mine, want in zip(*found, strict=True):
        assert (mine - want).abs().max() <= limit * float(want.abs().max())


def test_finite_differences_through_sinks_and_windows() -> None:
    packed = pack([[1, 2, 3, 4, 5], [1, 2, 4, 5], [1, 2], [7]], [0, 0, 0, 1])
    g = torch.Generator().manual_seed(0)
    shapes = [(len(packed.tokens_T), heads, 4) for heads in (4, 2, 2)] + [(4,)]
    q, k, v, s = (torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes)
    assert torch.autograd.gradcheck(lambda *x: attention._PackedAttentionCPU.apply(*x[:3], packed, 0.5, x[3]), (q, k, v, s))
    assert torch.autograd.gradcheck(lambda *x: windowed(*x[:3], packed, 2, 0.5, x[3]), (q, k, v, s))
    assert torch.autograd.gradcheck(lambda *x: windowed(*x, packed, 2, 0.5), (q, k, v))


def test_no_sequence_sees_another_and_no_token_beyond_its_window(bases) -> None:
    """Exactly: gradients at rows of other sequences are zero; and through one windowed layer so are those of tokens out of it."""
    sequences, groups = trees()
    p = policy(bases("gpt_oss"))
    embedded: list[Tensor] = []
    p.peft.get_input_embeddings().register_forward_hook(lambda m, i, out: embedded.append(out.requires_grad_()) or out)
    found = logprobs(p, sequences, groups)
    packed = pack(sequences, groups)
    for i in range(1, len(sequences)):  # the first has one token, which predicts nothing
        (grad,) = torch.autograd.grad(found[i].sum(), embedded[0], retain_graph=True)
        assert {row for row in range(len(packed.tokens_T)) if grad[0, row].any()} == set(packed.rows[i][:-1].tolist())
    x = torch.randn(len(packed.tokens_T), 1, 8, dtype=torch.float64, requires_grad=True)
    out = windowed(x.detach(), x, x, packed, 4, 1.0, torch.zeros(1, dtype=torch.float64))
    last = packed.rows[-1]
    (grad,) = torch.autograd.grad(out[last[-1]].sum(), x)
    assert {row for row in range(len(x)) if grad[row].any()} == set(last[-4:].tolist())


def test_a_step_with_its_own_routes_replayed_and_some_experts_chosen(bases, recipe, episodes) -> None:
    settings = ("algorithm.replay=learner", "algorithm.epochs=3", "adapter.expert_mass=0.6", "learner.learning_rate=0.1")
    learner = Learner(bases("gpt_oss"), recipe(*settings))
    played, _ = episodes()
    for t in played:
        t.reward = float(t.spec.member == 0)
    before = learner.policy.state()["base_model.model.model.layers.1.mlp.experts.lora_B.weight"].clone()
    metrics = learner.learn([played])
    assert metrics["updates"] == 3 and metrics["grad_norm"] > 0 and learner.policy.selection is not None
    after = learner.policy.state()["base_model.model.model.layers.1.mlp.experts.lora_B.weight"]
    moved = (after != before).view(after.shape[0], 3, 8).any(0).any(0)  # B is rank-major, experts run fastest
    assert moved.nonzero()[:, 0].tolist() == list(learner.policy.selection.layers[1])


def test_windows_cost_what_tokens_do() -> None:
    """Scores of a layer with a window: at most twice the window for each token, however long the sequence."""
    for length in (1000, 4000):
        calls, place_T = windows.plan(pack([list(range(length))]), 128)
        assert sum(b.seen_NLS.numel() for b in calls) <= length * (2 * 128 + 16)
        assert len(place_T.unique()) == length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_mxfp4_checkpoint_trains_as_the_numbers_it_stands_for(write_base, tmp_path: Path, dtype: torch.dtype) -> None:
    plain = write_base(tmp_path / "plain", "gpt_oss", hidden_size=64, intermediate_size=32)
    values = quantize(plain, tmp_path / "packed")
    ours = policy(tmp_path / "packed", dtype)
    base = ours.peft.get_base_model()
    assert len(values) == 6
    for name, want in values.items():
        module, _, part = name.rpartition(".")
        held = base.get_submodule(module).get_base_layer().get_parameter(part)
        assert held.dtype == dtype and torch.equal(held.float(), want)
    save_file(load_file(plain / "model.safetensors") | values, plain / "model.safetensors", metadata={"format": "pt"})
    sequences, groups = trees()
    with torch.no_grad():
        for a, b in zip(logprobs(ours, sequences, groups), logprobs(policy(plain, dtype), sequences, groups), strict=True):
            assert torch.equal(a, b)
    checkpoint.save_adapter(ours, tmp_path / "adapter")
    assert "quantization_config" not in json.loads((tmp_path / "adapter/adapter_config.json").read_text())


def test_another_quantization_and_slices_of_one_are_refused(write_base, tmp_path: Path) -> None:
    base = write_base(tmp_path / "b", "gpt_oss")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(BadInput, match="quantized by fp8"):
        policy(base)
    with pytest.raises(BadInput, match="shard_base.*quantized by fp8"):
        model._load_shard(str(base), torch.float32, torch.device("cpu"), None)
    assert AutoConfig.from_pretrained(base).model_type == "gpt_oss"
