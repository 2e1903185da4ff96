"""Exports against stock PEFT and transformers, and what export refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from frontier_tune.cli.main import main
from frontier_tune.contracts import BadInput, GateFailed
from frontier_tune.governance.digests import tree, tree_digest
from frontier_tune.serving import export as serving
from frontier_tune.serving.export import export
from tests.mxfp4 import quantize


def make_base(path: Path, hidden: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=96,
        hidden_size=hidden,
        intermediate_size=80,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=6,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    Qwen3MoeForCausalLM(config).to(dtype).save_pretrained(path)
    (path / "tokenizer.json").write_text('{"made": "up"}')
    return path


def make_adapter(path: Path, base: Path, size: float = 0.2) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = get_peft_model(
        model,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "o_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    )
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.normal_(std=size)
    tuned.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("run") / "adapter", base)


def log_probabilities(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(40).reshape(2, 20) % 96
    with torch.no_grad():
        return model(input_ids=tokens).logits.log_softmax(-1)


def test_merged_copy_computes_what_base_plus_adapter_compute(base: Path, adapter: Path, tmp_path: Path) -> None:
    done = export(adapter, "merged", tmp_path / "out", base)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(log_probabilities(merged), log_probabilities(stock), atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert (log_probabilities(merged) - log_probabilities(plain)).abs().mean() > 0.05, "the adapter changes something"
    assert done.gap is not None and done.gap < 1e-5
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert {p.suffix for p in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "no working directory is left"


@pytest.mark.parametrize("kind", ["float32", "mxfp4"])
def test_gpt_oss_goes_out_in_every_layout(tmp_path: Path, kind: str) -> None:
    """Sinks, biases, transposed experts; of a base in MXFP4 the merged copy is bfloat16, and says nothing of MXFP4 any more."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, num_local_experts=6, num_experts_per_tok=2, sliding_window=8, max_position_embeddings=256,
        initializer_range=0.05, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    base = tmp_path / "base"
    GptOssForCausalLM(config).save_pretrained(base)
    if kind == "mxfp4":
        quantize(base, tmp_path / "packed")
        base = tmp_path / "packed"
    adapter = make_adapter(tmp_path / "adapter", base, 0.1)
    export(adapter, "peft", tmp_path / "peft", base)
    there = load_file(adapter / "adapter_model.safetensors")
    assert all(t.equal(there[n]) for n, t in load_file(tmp_path / "peft/adapter_model.safetensors").items())
    done = export(adapter, "merged", tmp_path / "merged", base)
    assert done.gap is not None and done.gap < (1e-5 if kind == "float32" else 3e-2)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    assert merged.dtype == (torch.float32 if kind == "float32" else torch.bfloat16)
    assert getattr(merged.config, "quantization_config", None) is None
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, experts_implementation="eager")
    want = log_probabilities(PeftModel.from_pretrained(stock, str(tmp_path / "peft")).eval()).float()
    gap = (log_probabilities(merged).float() - want).abs()
    assert gap.mean() < (1e-5 if kind == "float32" else 5e-2)


def test_adapter_copy_loads_in_stock_peft(base: Path, adapter: Path, tmp_path: Path) -> None:
    done = export(adapter.parent, "peft", tmp_path / "out", base)
    assert set(done.files) == {"adapter_config.json", "adapter_model.safetensors"}
    a, b = load_file(adapter / "adapter_model.safetensors"), load_file(tmp_path / "out/adapter_model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out"))


def with_routers(path: Path, base: Path, *sizes: float) -> dict[str, torch.nn.Parameter]:
    """Write an adapter whose routers have moved by noise: each layer's first row by the first size, the others by the second."""
    from frontier_tune.experts import families
    from frontier_tune.recipe import Adapter

    tuned = families.adapted(AutoModelForCausalLM.from_pretrained(base), Adapter(rank=4, router=True))
    routers = {n: p for n, p in tuned.named_parameters() if ".modules_to_save." in n}
    for parameter in routers.values():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        noise[0] *= sizes[0]
        noise[1:] *= sizes[-1]
        parameter.data += noise
    families.save(tuned, path)
    return routers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_routers_are_merged_and_stock_vllm_is_warned_off(tmp_path: Path, dtype: torch.dtype) -> None:
    base = make_base(tmp_path / "base", dtype=dtype)
    routers = with_routers(tmp_path / "adapter", base, 1.0)
    assert len(routers) == 2
    assert "stock vLLM refuses" in export(tmp_path / "adapter", "peft", tmp_path / "peft", base).remark
    done = export(tmp_path / "adapter", "merged", tmp_path / "merged", base)
    merged = load_file(tmp_path / "merged/model.safetensors")
    for name, parameter in routers.items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        assert merged[plain].equal(parameter.detach().to(dtype))
    assert done.gap is not None and done.gap < (1e-5 if dtype == torch.float32 else 1e-2)
    assert done.rounding is not None and (done.rounding.rows, done.rounding.changed) == (0, 12)
    if dtype == torch.float32:
        assert done.rounding.share == 0 and done.remark == ""
    else:  # 8 bits: at most 2^-9 of a weight, and the change is about as large as the weights
        assert 0 < done.rounding.share < 2**-9 and "0 of 12 rows" in done.remark and "WARNING" not in done.remark


def test_routers_that_a_merge_rounds_away_are_told(tmp_path: Path) -> None:
    """A change far below half a unit in the last place of a bfloat16 weight: the probe can't see that it is gone."""
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    for name, sizes, rows in (("all", (1e-8, 1e-8), 12), ("first", (1e-8, 1.0), 2)):
        routers = with_routers(tmp_path / name, base, *sizes)
        done = export(tmp_path / name, "merged", tmp_path / f"merged-{name}", base)
        rounding = done.rounding
        assert done.gap is not None and done.gap < 1e-2 and rounding is not None
        assert (rounding.rows, rounding.changed) == (rows, 12)
        plain = load_file(base / "model.safetensors")
        lost = change = 0.0
        for parameter, before in zip(routers.values(), (plain[f"model.layers.{i}.mlp.gate.weight"] for i in (0, 1)), strict=True):
            after = parameter.detach().double()
            lost += float((after - parameter.detach().to(torch.bfloat16).double()).norm() ** 2)
            change += float((after - before.double()).norm() ** 2)
        assert rounding.share == pytest.approx((lost / change) ** 0.5, rel=1e-6)
        assert done.remark.startswith("WARNING: most of what the routers learned") == (name == "all")
        assert f"{rows} of 12 rows that had changed are the base's again" in done.remark


def test_an_adapter_without_routers_has_nothing_to_round(base: Path, adapter: Path, tmp_path: Path) -> None:
    done = export(adapter, "merged", tmp_path / "out", base)
    assert done.rounding is None and done.remark == ""


def test_a_run_is_named_as_elsewhere(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(adapter, tmp_path / "runs/first/adapter")
    (tmp_path / "runs/first/recipe.yaml").write_text(f"base: {base}\n")
    (tmp_path / "runs/latest").symlink_to("first")
    monkeypatch.chdir(tmp_path)
    for name in ("first", "latest", "runs/latest"):
        assert main(["export", name, f"out-{name.replace('/', '-')}"]) == 0
    assert (tmp_path / "out-latest/adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert main(["export", "second", "out"]) == 2


@pytest.mark.parametrize(
    ("called", "shown"), [("acme/moe", "acme/moe"), ("nano", "nano"), ("/elsewhere/moe", "moe"), (None, "tiny")]
)
def test_an_export_does_not_say_where_the_base_lies_here(
    base: Path, adapter: Path, tmp_path: Path, called: str | None, shown: str
) -> None:
    shutil.copytree(adapter, tmp_path / "mine")
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base.resolve())}
    (tmp_path / "mine/adapter_config.json").write_text(json.dumps(config))
    if called:
        (tmp_path / "mine" / serving.PROVENANCE).write_text(json.dumps({"base": called, "base_sha256": tree_digest(tree(base))}))
    done = export(tmp_path / "mine", "peft", tmp_path / "out", base)
    again = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert again == config | {"base_model_name_or_path": shown}
    assert done.files["adapter_config.json"] == serving._digest(tmp_path / "out/adapter_config.json")


def test_a_bad_merge_never_takes_the_final_name(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "peft.tuners.lora.LoraModel.merge_and_unload", lambda self, safe_merge: self.unload()
    )  # the adapter is lost
    with pytest.raises(GateFailed, match="differ from base"):
        export(adapter, "merged", tmp_path / "out", base)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="trained on base"):
        export(adapter, "merged", tmp_path / "out", make_base(tmp_path / "other"))
    with pytest.raises(BadInput, match="does not fit"):
        export(adapter, "peft", tmp_path / "out", make_base(tmp_path / "tiny", hidden=128))
    assert not (tmp_path / "out").exists()


def record_of(base: Path, adapter: Path) -> dict[str, object]:
    subject = [{"name": f"adapter/{n}", "digest": {"sha256": serving._digest(adapter / n)}} for n in serving.ADAPTER_FILES]
    files = {p.name: serving._digest(p) for p in base.iterdir()}
    entry = {"name": "base", "uri": "tiny", "digest": {"sha256": "0" * 64}, "annotations": {"files": files}}
    return {"subject": subject, "predicate": {"buildDefinition": {"resolvedDependencies": [entry]}}}


def test_the_record_decides_which_base_and_which_adapter(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = make_adapter(run / "adapter", base)
    (run / "record.json").write_text(json.dumps(record_of(base, made)))
    export(run, "peft", tmp_path / "good", base)
    twin = make_base(tmp_path / "elsewhere/tiny", seed=5)  # same name, same shapes, other weights
    with pytest.raises(BadInput, match=r"not the base of this adapter: model\.safetensors"):
        export(run, "peft", tmp_path / "out", twin)
    tensors = load_file(made / "adapter_model.safetensors")
    save_file({k: t * 2 for k, t in tensors.items()}, made / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"not the file that record\.json lists"):
        export(run, "peft", tmp_path / "out", base)


def test_an_adapter_away_from_its_run_carries_the_digest_of_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    carried = tmp_path / "carried"
    shutil.copytree(adapter, carried)
    (carried / "frontier_tune.json").write_text(json.dumps({"base": "tiny", "base_sha256": tree_digest(tree(base))}))
    done = export(carried, "peft", tmp_path / "good", base)
    assert "frontier_tune.json" in done.files
    with pytest.raises(BadInput, match="is another"):
        export(carried, "peft", tmp_path / "out", make_base(tmp_path / "elsewhere/tiny", seed=5))


def test_bad_requests(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        export(adapter, "peft", tmp_path)
    with pytest.raises(BadInput, match="layout 'onnx'"):
        export(adapter, "onnx", tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs the base"):
        export(adapter, "merged", tmp_path / "out")
    with pytest.raises(BadInput, match="no such run"):
        export(tmp_path / "nowhere", "peft", tmp_path / "out")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="pickle"):
        export(pickled, "peft", tmp_path / "out")


def test_chosen_experts_alone_read_back_as_the_same_adapter(tmp_path: Path) -> None:
    """Whole -> chosen alone -> whole again, and stock PEFT refuses the small file instead of loading something else."""
    from frontier_tune.experts import selection

    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    chosen = selection.Selection(6, 4, {0: (0, 3), 1: (5,)})
    narrowed = selection.narrowed(load_file(str(adapter / "adapter_model.safetensors")), chosen)
    save_file(narrowed, str(adapter / "adapter_model.safetensors"))
    with pytest.raises(BadInput, match="choose some with"):
        export(adapter, "compact", tmp_path / "none", base)
    assert not (tmp_path / "none").exists()
    chosen.write(adapter, "all")
    small = export(adapter, "compact", tmp_path / "small", base).path
    assert (small / "adapter_model.safetensors").stat().st_size < 0.5 * (adapter / "adapter_model.safetensors").stat().st_size
    back = export(small, "peft", tmp_path / "back", base).path
    again = load_file(str(back / "adapter_model.safetensors"))
    assert set(again) == set(narrowed) and all(torch.equal(again[n], t) for n, t in narrowed.items())
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(back))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(small))
    ones = [export(source, "merged", tmp_path / f"merged-{source.name}", base).path for source in (small, back)]
    one, other = (load_file(str(path / "model.safetensors")) for path in ones)
    assert all(torch.equal(one[n], t) for n, t in other.items())


def test_where_stock_vllm_would_leave_the_experts_out_it_is_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert export(adapter, "peft", tmp_path / "qwen", base).remark == ""
    shutil.copytree(adapter, tmp_path / "mixtral")
    (tmp_path / "mixtral" / "frontier_tune.json").write_text(json.dumps({"base": "mixtral", "model_type": "mixtral"}))
    said = export(tmp_path / "mixtral", "peft", tmp_path / "out").remark
    assert "calls this base's experts block_sparse_moe.experts" in said and "--layout merged" in said
