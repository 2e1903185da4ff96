"""The plan's figures for the learner against what torch allocates and keeps, on tiny bases of every family that is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plan_memory
from frontier_tune.orchestration.plan import activations, sizes

TINY = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3}
CASES = {c.name: replace(c, config=c.config | TINY, sequences=4, length=128) for c in plan_memory.CASES}


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3-MoE",
        "Qwen3-MoE, bfloat16",
        "OLMoE",
        "Mixtral",
        "gpt-oss",
        "DeepSeek-V3",
        "Qwen3-MoE, layers run again",
        "DeepSeek-V3, layers run again",
    ],
)
def test_the_learner_takes_what_was_planned(name: str) -> None:
    plan, found = plan_memory.planned(CASES[name]), plan_memory.measured(CASES[name], resident=False)
    assert found["base"] == plan["base"] and found["adapter and its optimizer"] == plan["adapter and its optimizer"]
    assert plan["kept for backward"] == pytest.approx(found["kept for backward"], rel=0.05)
    assert plan["peak of activations and gradient"] == pytest.approx(found["peak of activations and gradient"], rel=0.1)


@pytest.mark.parametrize("name", ["Qwen3-MoE, bfloat16"])
def test_what_a_gpu_s_attention_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that GPUs take, run here: tensors of the same shapes are kept."""
    from frontier_tune.learning import attention

    monkeypatch.setattr(attention, "shares_prefixes", lambda device: False)
    plan, found = plan_memory.planned(CASES[name], "cuda"), plan_memory.measured(CASES[name], resident=False)
    assert plan["kept for backward"] == pytest.approx(found["kept for backward"], rel=0.05)
    assert plan["kept for backward"] > plan_memory.planned(CASES[name])["kept for backward"]


def need(rows: int, predicting: int | None = None, **changes: Any) -> activations.Need:
    z = sizes.sizes(plan_memory.base_config(CASES["Qwen3-MoE"]))
    setting = activations.Setting("float32", 8, ("q_proj", "o_proj"), True, **changes)
    return activations.need(z, setting, activations.Batch(rows, rows if predicting is None else predicting), 10_000)


def test_the_whole_logits_are_never_held() -> None:
    """Beyond a chunk a row costs nothing of the vocabulary: two vocabularies differ by the same bytes at any length."""
    chunk_rows = (1 << 24) // 512
    assert need(chunk_rows // 2).kept["logits"] == chunk_rows // 2 * 512 * 4
    assert need(4 * chunk_rows).kept["logits"] == 0


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    whole, again = need(4096), need(4096, checkpointing=True)
    assert again.kept["inputs of layers"] == 3 * 4096 * 64 * 4
    assert again.peak < whole.peak and "experts" not in again.kept


def test_the_last_layer_s_experts_see_the_predicting_rows_alone() -> None:
    every, half = need(4096).kept, need(4096, 2048).kept
    assert half["experts"] < every["experts"] and half["attention"] == every["attention"]
    third = every["experts"] / 3
    assert every["experts"] - half["experts"] == pytest.approx(third / 2, rel=1e-6)


ALLOCATED = """
import json, os, sys, types
os.environ["TRITON_INTERPRET"] = "1"
class Nothing:
    def __getitem__(self, grid): return lambda *a, **k: None
class Stub(types.ModuleType):
    def __getattr__(self, name): return name
triton, errors = Stub("triton"), Stub("triton.errors")
triton.jit = lambda f: Nothing()
triton.cdiv = lambda a, b: -(-a // b)
triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
triton.language = Stub("triton.language")
triton.language.constexpr = lambda x: x
errors.TritonError = RuntimeError
import torch
from benchmarks.plan_memory import _peak
with _peak():  # torch looks for triton when it first profiles
    pass
sys.modules |= {"triton": triton, "triton.language": triton.language, "triton.errors": errors}
from frontier_tune.experts.grouped import experts
experts._NARROWEST = 32
T, K, E, H, I, R = json.loads(sys.argv[1])
leaf = lambda *shape: torch.zeros(shape, dtype=torch.bfloat16).requires_grad_()
x, routing = leaf(T, H), leaf(T, K)
frozen = leaf(E, 2 * I, H).detach(), leaf(E, H, I).detach()
a1, b1, a2, b2 = leaf(E, R, H), leaf(E, R, 2 * I), leaf(E, R, I), leaf(E, R, H)
ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)])
with _peak() as forward:
    out = experts.swiglu_experts(x, ids, routing, *frozen, a1, b1, 1.0, a2, b2, 1.0)
given = torch.zeros_like(out)
with _peak() as backward:
    found = torch.autograd.grad(out, (x, routing, a1, b1, a2, b2), given)
print(json.dumps([experts.MOST_RANK, experts.MOST_EXPERTS, forward["bytes"], backward["bytes"]]))
"""


def test_a_gpu_s_experts_hold_all_routes_at_once() -> None:
    """The Triton path's own allocations, with kernels that do nothing, against what the plan counts for CUDA."""
    z = sizes.sizes(plan_memory.base_config(CASES["Qwen3-MoE"]))
    rows, moe = 512, z.moe
    shape = [rows, moe.top_k, moe.num_experts, moe.hidden, moe.expert_width, 8]
    command = [sys.executable, "-c", ALLOCATED, json.dumps(shape)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *most, forward, backward = json.loads(done.stdout.splitlines()[-1])
    assert most == [activations.GROUPED_RANK, activations.GROUPED_EXPERTS]
    s = activations.Setting("bfloat16", 8, (), True, "cuda")
    into, back = activations._experts(z, s, rows)
    own = rows * moe.hidden * 2  # the result, or the gradient of the input
    kept = activations.moe_row(z, s)["experts"] * rows - own - rows * moe.top_k * 2  # without what was there before
    adapter = activations.expert_adapter(z, s) * 2
    assert forward == pytest.approx(into + own + kept, rel=0.02)
    assert backward == pytest.approx(back + own + adapter, rel=0.02)
    on_cpu = activations._experts(z, replace(s, device="cpu"), rows)
    assert into > on_cpu[0] and back > on_cpu[1]


def test_which_experts_a_gpu_trains_by_triton() -> None:
    z, oss = (sizes.sizes(plan_memory.base_config(CASES[name])) for name in ("Qwen3-MoE", "gpt-oss"))
    setting = activations.Setting("bfloat16", 128, (), True, "cuda")
    assert activations.grouped_experts(z, setting) and not activations.grouped_experts(oss, setting)
    for change in ({"rank": 129}, {"device": "cpu"}, {"experts": False}, {"whole": True}):
        assert not activations.grouped_experts(z, replace(setting, **change))


def test_the_optimizer_of_a_gpu_holds_a_copy_of_all_that_learns() -> None:
    """CUDA's AdamW takes all parameters in one call, run here: the root of every second moment is there at once."""
    adapter = 1 << 22
    z = sizes.sizes(plan_memory.base_config(CASES["Qwen3-MoE"]))
    planned = {}
    for device in ("cpu", "cuda"):
        s = activations.Setting("float32", 8, ("q_proj",), True, device)
        planned[device] = activations.need(z, s, activations.Batch(8, 8), adapter).moments["optimizer"]
    weights = [torch.nn.Parameter(torch.ones(adapter // 8)) for _ in range(8)]
    optimizer = torch.optim.AdamW(weights, foreach=True)
    for _ in range(2):  # the first makes the moments
        for p in weights:
            p.grad = torch.ones_like(p)
        with plan_memory._peak() as peak:
            optimizer.step()
    assert planned["cuda"] == pytest.approx(adapter * 4 + peak["bytes"], rel=0.01)
    assert planned["cuda"] > planned["cpu"]


def test_keys_copied_to_all_heads_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that float32 takes on CUDA, run here: what it keeps more than grouped heads is what the plan has more."""
    from frontier_tune.learning import attention

    monkeypatch.setattr(attention, "shares_prefixes", lambda device: False)
    case = CASES["Qwen3-MoE, attention alone"]
    kept = {}
    for copied in (False, True):
        monkeypatch.setattr(attention, "_expands", lambda q, copied=copied: copied)
        kept[copied] = plan_memory.measured(case, resident=False)["kept for backward"]
    z = sizes.sizes(plan_memory.base_config(case))
    setting = activations.Setting("float32", 8, ("q_proj",), False, "cuda")
    wide, half = (activations.attention_row(z, replace(setting, dtype=d), False)["attention"] for d in ("float32", "bfloat16"))
    copies = wide - 2 * (half - 4 * z.heads) - 4 * z.heads  # beyond what grouped heads keep at that type
    assert kept[True] - kept[False] == 3 * case.sequences * case.length * copies
