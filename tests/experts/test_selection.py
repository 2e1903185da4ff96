"""Choosing experts: the sets, the file of chosen experts alone, and what is refused."""

import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from frontier_tune.contracts import BadInput
from frontier_tune.experts import selection
from frontier_tune.experts.selection import Selection

E, R = 5, 3
PREFIX = "base_model.model.model.layers"


def adapter(seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = {"mlp.experts.base_layer": (16, 24), "mlp.experts": (12, 16)}
    tensors = {}
    for layer in (0, 2):
        for module, (n_in, n_out) in sizes.items():
            tensors[f"{PREFIX}.{layer}.{module}.lora_A.weight"] = torch.randn(E * R, n_in, generator=g)
            tensors[f"{PREFIX}.{layer}.{module}.lora_B.weight"] = torch.randn(n_out, R * E, generator=g)
        tensors[f"{PREFIX}.{layer}.self_attn.q_proj.lora_A.weight"] = torch.randn(R, 16, generator=g)
    return tensors


CHOSEN = Selection(E, R, {0: (1, 4), 2: (0,)})


def write(path, tensors, stored, chosen=CHOSEN):
    path.mkdir()
    save_file(tensors, str(path / selection.WEIGHTS))
    chosen.write(path, stored)
    return path


def delta(tensors, layer, expert, module="mlp.experts"):
    """What one expert's weights change by, from PEFT's layout: A expert-major, B rank-major."""
    a, b = (tensors[f"{PREFIX}.{layer}.{module}.lora_{m}.weight"] for m in "AB")
    return b.reshape(-1, R, E)[:, :, expert] @ a.reshape(E, R, -1)[expert]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100, allow_subnormal=False), min_size=2, max_size=12), st.floats(0.01, 1))
@example([5e-324, 0.0], 0.6)
def test_the_fewest_experts_that_cover_the_share(masses, share):
    mass = torch.tensor([masses], dtype=torch.float64)
    if not mass.sum() > 0:
        with pytest.raises(BadInput, match="no routing mass"):
            selection.covering(mass, [7], share, R)
        return
    chosen = selection.covering(mass, [7], share, R).layers[7]
    kept = mass[0, list(chosen)]
    assert kept.sum() >= share * mass.sum() * (1 - 1e-9)
    assert kept.sum() - kept.min() < share * mass.sum()  # one less would not do
    rest = [m for i, m in enumerate(masses) if i not in chosen]
    assert not rest or kept.min() >= max(rest)


def test_chosen_experts_keep_their_change_and_others_have_none(tmp_path):
    tensors = adapter()
    whole = selection.narrowed(tensors, CHOSEN)
    for module in ("mlp.experts", "mlp.experts.base_layer"):
        for layer in (0, 2):
            for expert in range(E):
                kept = expert in CHOSEN.layers[layer]
                expected = delta(tensors, layer, expert, module) if kept else 0 * delta(tensors, layer, expert, module)
                assert torch.equal(delta(whole, layer, expert, module), expected)
    small = write(tmp_path / "small", selection.gathered(tensors, CHOSEN), "chosen")
    again = selection.load_tensors(small)
    assert set(again) == set(whole) and all(torch.equal(again[n], t) for n, t in whole.items())
    stored = load_file(str(small / selection.WEIGHTS))
    assert stored[f"{PREFIX}.0.mlp.experts.lora_A.weight"].shape == (2 * R, 12)
    assert torch.equal(
        stored[f"{PREFIX}.0.self_attn.q_proj.lora_A.weight"], tensors[f"{PREFIX}.0.self_attn.q_proj.lora_A.weight"]
    )
    assert selection.read(small) == (CHOSEN, "chosen") and CHOSEN.share == 3 / 10


def test_a_file_that_does_not_hold_what_its_selection_says_is_refused(tmp_path):
    tensors = adapter()
    with pytest.raises(BadInput, match="adapts experts that expert_selection.json does not name"):
        selection.load_tensors(write(tmp_path / "wide", tensors, "all"))
    other = Selection(E, R, {0: (1, 2, 3), 2: (0,)})
    with pytest.raises(BadInput, match="3 experts of rank 3 have 9"):
        selection.load_tensors(write(tmp_path / "count", selection.gathered(tensors, CHOSEN), "chosen", other))
    with pytest.raises(BadInput, match=r"names layers \[0\], the file has \[0, 2\]"):
        selection.load_tensors(
            write(tmp_path / "layers", selection.gathered(tensors, CHOSEN), "chosen", Selection(E, R, {0: (1, 4)}))
        )
    path = write(tmp_path / "broken", tensors, "all")
    for content in ("{", "{}", json.dumps({"experts": 5, "rank": 3, "stored": "some", "layers": {"0": [1]}})):
        (path / selection.FILE).write_text(content)
        with pytest.raises(BadInput, match="not an expert selection"):
            selection.load_tensors(path)
    with pytest.raises(BadInput, match="rising order"):
        Selection(E, R, {0: (4, 1)})
    with pytest.raises(BadInput, match="give one above 0"):
        selection.covering(torch.ones(1, 3), [0], 0.0, R)
