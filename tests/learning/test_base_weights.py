"""Slices of a base's files against what transformers' own loader makes of the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from frontier_tune.contracts import BadInput
from frontier_tune.experts import canonical
from frontier_tune.learning import shard
from frontier_tune.learning.base_weights import BaseWeights

FAMILIES = ("qwen3_moe", "olmoe", "mixtral", "deepseek_v3")


def rewritten(base: Path, out: Path, change, files: int = 1) -> Path:
    """The base with its tensors changed, in one file or in several with an index."""
    out.mkdir(parents=True)
    (out / "config.json").write_text((base / "config.json").read_text())
    tensors = change(load_file(str(base / "model.safetensors")))
    if files == 1:
        save_file(tensors, str(out / "model.safetensors"))
        return out
    names = sorted(tensors)
    where = {name: f"model-{i % files}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, str(out / file))
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_rows_of_any_parameter_as_transformers_loads_it(bases, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """With experts one by one, as transformers saves them, over several files; and stacked, as its modules have them."""
    model = AutoModelForCausalLM.from_pretrained(bases(family), dtype=dtype)
    several = rewritten(bases(family), tmp_path / "several", lambda t: t, files=3)
    stacked = rewritten(bases(family), tmp_path / "stacked", lambda t: dict(model.state_dict()))
    wanted = dict(model.state_dict())
    for directory in (several, stacked):
        with BaseWeights(directory) as weights:
            assert weights.names == sorted(wanted)
            for name, want in wanted.items():
                assert weights.shape(name) == tuple(want.shape)
                for first, stop in ((0, len(want)), (1, len(want)), (len(want) // 2, len(want) // 2)):
                    out = torch.full((stop - first, *want.shape[1:]), float("nan"), dtype=want.dtype)
                    weights.read(name, first, out)
                    assert torch.equal(out, want[first:stop]), name
            embedding = "model.embed_tokens.weight"
            assert shard.digest(weights, embedding, dtype) == canonical.digest(wanted[embedding])


def test_files_that_do_not_make_a_base_are_refused(bases, tmp_path: Path) -> None:
    base, expert = bases(), "model.layers.0.mlp.experts.3.up_proj.weight"

    def refused(name: str, change) -> str:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
        directory = rewritten(base, tmp_path / name, change)
        with pytest.raises(BadInput) as e, BaseWeights(directory) as weights:
            shard.load(model, weights, torch.float32, torch.device("cpu"))
        assert all(p.is_meta for p in model.parameters())  # nothing was read
        return str(e.value)

    assert "9 of 10 matrices" in refused("expert", lambda t: {n: x for n, x in t.items() if n != expert})
    assert "1 missing (lm_head" in refused("head", lambda t: {n: x for n, x in t.items() if not n.startswith("lm_head")})
    assert "1 unexpected (other)" in refused("more", lambda t: t | {"other": torch.zeros(2)})
    assert "1 mismatched (model.norm" in refused("shape", lambda t: t | {"model.norm.weight": torch.zeros(3)})
    with pytest.raises(BadInput, match="no weights as safetensors"):
        BaseWeights(tmp_path)
