"""Packed, prefix-sharing attention in whole models against stock transformers on one unpadded sequence at a time."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from frontier_tune.learning import attention, checkpoint, packing
from frontier_tune.learning.model import Policy
from frontier_tune.learning.packing import pack
from frontier_tune.recipe import Adapter


@pytest.fixture(autouse=True)
def share_every_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MIN_SAVED_ROWS", 1)


ALL = ["qwen3_moe", "olmoe", "mixtral", "deepseek_v3", "gpt_oss"]
SEQUENCES = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 20, 21], [5, 6, 7], [30, 31, 32, 33], [5, 6, 7, 8, 9, 40, 41, 42, 43, 44, 45, 46]]


def policy(base, adapter: Adapter | None = None) -> Policy:
    p = Policy(base, adapter or Adapter(rank=3, alpha=6), 0, torch.float32, torch.device("cpu"))
    torch.manual_seed(1)
    for _, parameter in p.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return p


def all_logprobs(p: Policy, sequences, groups):
    packed = pack(sequences, groups)
    rows, targets, sizes = [], [], []
    for i, s in enumerate(sequences):
        rows.append(torch.from_numpy(packed.rows[i][:-1]))
        targets += s[1:]
        sizes.append(len(s) - 1)
    return p.logprobs(packed, torch.cat(rows), torch.tensor(targets))[0].split(sizes)


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("family", ALL)
def test_packed_equals_stock_with_every_gradient(bases, stock, tmp_path, family: str, groups) -> None:
    ours = policy(bases(family))
    weights = [torch.randn(len(s) - 1, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(SEQUENCES)]
    mine = all_logprobs(ours, SEQUENCES, groups)
    sum((m * w).sum() for m, w in zip(mine, weights, strict=True)).backward()

    base = AutoModelForCausalLM.from_pretrained(bases(family), attn_implementation="eager", experts_implementation="eager")
    checkpoint.save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    total = 0.0
    for s, m, w in zip(SEQUENCES, mine, weights, strict=True):
        want = stock(theirs, s)
        torch.testing.assert_close(m, want, atol=1e-5, rtol=1e-5)
        total = total + (want * w).sum()
    total.backward()
    want_grads = dict(theirs.named_parameters())
    checked = 0
    for name, p in ours.named_parameters():
        reference = want_grads[name].grad
        reference = torch.zeros_like(p) if reference is None else reference
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert (got - reference).abs().max() <= 2e-5 * max(1e-3, float(reference.abs().max())), name
        checked += 1
    assert checked == len(want_grads) - sum(not p.requires_grad for p in want_grads.values())


def test_no_sequence_sees_another(bases) -> None:
    """The gradient of a sequence's log-probabilities is exactly zero at every row that is not its own, and nowhere at its own."""
    p = policy(bases())
    embedded: list[torch.Tensor] = []
    p.peft.get_input_embeddings().register_forward_hook(lambda m, i, out: embedded.append(out.requires_grad_()) or out)
    groups = [0, 0, 0, 1, 0]
    packed = pack(SEQUENCES, groups)
    logprobs = all_logprobs(p, SEQUENCES, groups)
    for i in range(len(SEQUENCES)):
        (grad,) = torch.autograd.grad(logprobs[i].sum(), embedded[0], retain_graph=True)
        own = set(packed.rows[i][:-1].tolist())  # the last token predicts nothing here
        assert {row for row in range(len(packed.tokens_T)) if grad[0, row].any()} == own


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_portable_path_equals_the_cpu_path(bases, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    p = policy(bases(family))
    with torch.no_grad():
        want = all_logprobs(p, SEQUENCES, None)
        monkeypatch.setattr(attention, "shares_prefixes", lambda device: False)
        torch.testing.assert_close(all_logprobs(p, SEQUENCES, None), want, atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="without groups"):
            all_logprobs(p, SEQUENCES, [0, 0, 0, 1, 0])


def test_keys_copied_to_all_heads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 on CUDA takes: results and gradients, with sinks too, are those of grouped heads."""
    packed = pack([[1, 2, 3], [1, 2, 4, 5], [7]], None)
    g = torch.Generator().manual_seed(0)
    rows = len(packed.tokens_T)
    x = [torch.randn(rows, heads, 8, generator=g).requires_grad_() for heads in (4, 2, 2)]
    found: list[tuple[torch.Tensor, ...]] = []
    given: list[bool] = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def attend(*args: torch.Tensor, enable_gqa: bool, **how: object) -> torch.Tensor:
        given.append(enable_gqa)
        return stock(*args, enable_gqa=enable_gqa, **how)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attend)
    assert not attention._expands(x[0])
    for copied in (False, True):
        monkeypatch.setattr(attention, "_expands", lambda q, copied=copied: copied)
        for sinks in (None, torch.tensor([0.5, -1.0, 2.0, 0.0])):
            out = attention._portable(*x, packed, 0.3, sinks)
            found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    assert set(given[: len(given) // 2]) == {True} and set(given[len(given) // 2 :]) == {False}
    for grouped, alone in zip(found[:2], found[2:], strict=True):
        for a, b in zip(grouped, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_finite_differences_through_merged_blocks() -> None:
    packed = pack([[1, 2, 3], [1, 2, 4, 5], [1, 2], [7]], [0, 0, 0, 1])
    g = torch.Generator().manual_seed(0)
    rows = len(packed.tokens_T)
    q, k, v = (torch.randn(rows, heads, 4, generator=g, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2))
    assert torch.autograd.gradcheck(lambda *x: attention._PackedAttentionCPU.apply(*x, packed, 0.5), (q, k, v))


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 0]])
def test_sliding_windows_shorter_than_a_sequence(write_base, stock, tmp_path, groups) -> None:
    windowed = policy(write_base(tmp_path / "w", "mixtral", sliding_window=4))
    checkpoint.save_adapter(windowed, tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "w", attn_implementation="eager", experts_implementation="eager")
    theirs = PeftModel.from_pretrained(base, tmp_path / "a")
    with torch.no_grad():
        for mine, s in zip(all_logprobs(windowed, SEQUENCES, groups), SEQUENCES, strict=True):
            torch.testing.assert_close(mine, stock(theirs, s), atol=1e-5, rtol=1e-5)
