"""Plans from config.json alone: published counts, cache formulas, placement, and refusals that name part and key."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.orchestration import base, dry_run, plan, preflight
from frontier_tune.orchestration.plan import actors, cache, capability, machine, placement, plans, sizes, work
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.recipe import idle
from tests import tiny

ROOT = Path(__file__).parents[2]
PRODUCTION = ROOT / "recipes" / "production"
CONFIGS = sorted(p.parent.name for p in PRODUCTION.glob("configs/*/config.json"))
RECIPES = sorted(PRODUCTION.glob("*.yaml"))
GIB = 2**30


def config(name: str) -> Any:
    return base.read_config(PRODUCTION / "configs" / name)


def planned(file: Path, *overrides: str) -> plan.Plan:
    recipe = recipes.load(file, overrides)
    made = plan.make(recipe, base.for_plan(recipe, file, ROOT).config, ROOT, file.stem)
    plan.require_resources(made, ROOT)
    return made


# In billions: all parameters; those active for a token. As published: Qwen3 (arXiv:2505.09388, table 2; model card 30.5 and 3.3),
# gpt-oss (arXiv:2508.10925, table 1: 20.91 and 3.61, without the input embedding), OLMoE (arXiv:2409.02060: 6.92 and 1.28),
# DeepSeek-V3 (arXiv:2412.19437: 671 and 37).
@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen3-30B-A3B", 30.5, 3.35),
        ("gpt-oss-20b", 20.91, 3.61),
        ("OLMoE-1B-7B-0924", 6.92, 1.28),
        ("DeepSeek-V3", 671.0, 37.55),
    ],
)
def test_parameters_are_the_published_ones(name: str, total: float, active: float) -> None:
    p = sizes.parameters(config(name))
    assert p.total / 1e9 == pytest.approx(total, abs=0.05)
    counted = p.active - (p.embedding if name == "gpt-oss-20b" else 0)
    assert counted / 1e9 == pytest.approx(active, abs=0.05)


def test_mxfp4_experts_take_what_the_published_checkpoint_does() -> None:
    """gpt-oss-20b's checkpoint has 12.8 GiB (arXiv:2508.10925, table 1)."""
    c = config("gpt-oss-20b")
    p = sizes.parameters(c)
    assert sizes.weight_bytes(p, c, "bfloat16") / GIB == pytest.approx(12.8, abs=0.05)
    assert p.experts == 24 * 32 * 3 * 2880 * 2880 and p.expert_biases == 24 * 32 * 3 * 2880


def test_fp8_leaves_embedding_head_router_and_norms() -> None:
    c = config("DeepSeek-V3")
    p = sizes.parameters(c)
    inside = p.experts + p.attention + p.dense
    assert sizes.weight_bytes(p, c, "bfloat16") == round(inside * (1 + 4 / 128**2)) + 2 * (p.total - inside)


def test_another_quantization_is_refused() -> None:
    c = config("OLMoE-1B-7B-0924")
    c.quantization_config = {"quant_method": "awq"}
    with pytest.raises(BadInput, match="awq"):
        sizes.weight_bytes(sizes.parameters(c), c, "bfloat16")


@pytest.mark.parametrize(
    ("name", "per_token", "block"),
    [
        ("Qwen3-30B-A3B", 48 * 2 * 4 * 128 * 2, 16),
        ("OLMoE-1B-7B-0924", 16 * 2 * 16 * 128 * 2, 16),
        ("DeepSeek-V3", 61 * (512 + 64) * 2, 128),  # one compressed vector and one rotary key a layer
    ],
)
def test_a_sequence_s_cache(name: str, per_token: int, block: int) -> None:
    z = sizes.sizes(config(name))
    assert cache.cached_bytes(z, "bfloat16", 4096) == 4096 * per_token
    assert cache.cached_bytes(z, "bfloat16", 4097) == (4096 + block) * per_token  # whole blocks
    assert cache.least_bytes(z, "bfloat16", 4097) == (4096 + 2 * block) * per_token


def test_windows_do_not_bound_what_an_engine_asks_for() -> None:
    z = sizes.sizes(config("gpt-oss-20b"))
    per_layer = 2 * 8 * 64 * 2
    assert cache.cached_bytes(z, "bfloat16", 8192) == 12 * per_layer * (2 * 8192 + 16)
    assert cache.cached_bytes(z, "bfloat16", 8192, 4) * 4 == cache.cached_bytes(z, "bfloat16", 8192)
    latent = sizes.sizes(config("DeepSeek-V3"))
    assert cache.cached_bytes(latent, "bfloat16", 64, 8) == cache.cached_bytes(latent, "bfloat16", 64)  # whole on each GPU


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(("windowed", "whole"), [(0, 16), (3, 0), (12, 12), (5, 4), (20, 10), (21, 10)])
@pytest.mark.parametrize("tokens", [64, 4097, 16385])
def test_the_engine_asks_for_no_more_cache(device: str, windowed: int, whole: int, tokens: int) -> None:
    """vLLM's own count, from its descriptions of a layer's cache, without an engine."""
    pytest.importorskip("vllm")
    import torch
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
    from vllm.v1.kv_cache_layout import KVCacheLayout

    block = cache.CPU_BLOCK if device == "cpu" else cache.BLOCK
    own = {"block_size": block, "num_kv_heads": 2, "head_size": 64, "dtype": torch.bfloat16}
    specs = {f"w{n}": SlidingWindowSpec(sliding_window=128, **own) for n in range(windowed)}
    specs |= {f"f{n}": FullAttentionSpec(**own) for n in range(whole)}
    engine: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=tokens),
        max_in_flight_tokens=2 * max(tokens, 4096),  # one forward runs while the next is prepared
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        cache_config=SimpleNamespace(get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBHNC),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
    )
    groups = kv_cache_utils.get_kv_cache_groups(engine, specs)
    asked = kv_cache_utils._max_memory_usage_bytes_from_groups(engine, groups)
    kept = kv_cache_utils._pool_bytes_per_block(engine, groups)
    z = replace(sizes.sizes(tiny.config()), kv_heads=2, head=64, windows=(128,) * windowed + (None,) * whole)
    assert cache.cached_bytes(z, "bfloat16", tokens, 1, device) == asked
    assert cache.least_bytes(z, "bfloat16", tokens, 1, device) == asked + kept


def test_the_engine_s_own_token_is_counted_where_there_is_a_position_for_it(tmp_path: Path) -> None:
    c = tiny.config()
    with_room, without = (
        plans.sequence_bytes(plan.make(recipes.parse({"sampler": {"max_model_len": n}}), c, tmp_path, "x"))
        for n in (c.max_position_embeddings - 32, c.max_position_embeddings)
    )
    assert with_room == without  # one more block, and none


@pytest.mark.parametrize("file", RECIPES, ids=lambda p: p.stem)
def test_production_recipes_fit_their_hardware(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 40
    made = planned(file)
    said = plan.describe(made, made.subject.recipe, {"training": 1})
    assert all(w in said for w in ("placement", "learner: base", "sampler: KV cache", "micro-batch", "here "))
    p = made.subject.recipe.placement
    impossible = file.stem.endswith("cluster")
    assert bool(made.missing) == impossible, made.missing
    held = placement.by_gpu(made.placed)
    assert len(held) == p.gpus and max(sum(part.bytes for _, part in parts) for parts in held.values()) < p.gpu_memory_gib * GIB


def test_every_configuration_names_its_source() -> None:
    assert len(CONFIGS) == 5
    for name in CONFIGS:
        assert "arXiv:" in config(name).source


@pytest.mark.parametrize(
    ("stem", "overrides", "words"),
    [
        ("qwen3_30b_a3b_8gpu", ["placement.shard_base=false"], ["learner", "base", "too much", "placement.shard_base"]),
        ("qwen3_30b_a3b_8gpu", ["learner.activation_checkpointing=false"], ["activations", "learner.tokens_per_microbatch"]),
        ("qwen3_30b_a3b_8gpu", ["sampler.kv_cache_mb=30000"], ["sampler", "KV cache", "sampler.kv_cache_mb"]),
        ("qwen3_30b_a3b_8gpu", ["sampler.kv_cache_mb=1000"], ["sampler.kv_cache_mb", "16,384 tokens", "to 1539"]),
        ("qwen3_30b_a3b_8gpu", ["placement.samplers=5"], ["9 GPUs", "have 8"]),
        ("qwen3_30b_a3b_8gpu", ["placement.node_memory_gib=20"], ["main memory of node 0", "placement.node_memory_gib"]),
        ("qwen3_30b_a3b_8gpu", ["placement.gpu_memory_gib=null"], ["gpu_memory_gib"]),
        ("qwen3_30b_a3b_cluster", ["placement.tensor_parallel=16"], ["16", "8 GPUs", "one node"]),
        ("qwen3_30b_a3b_cluster", ["placement.tensor_parallel=8", "placement.samplers=3", "placement.learners=7"], []),
        ("qwen3_30b_a3b_cluster", ["placement.tensor_parallel=8", "placement.samplers=3", "placement.learners=4"], []),
        ("olmoe_7b_1gpu", ["placement.gpu_memory_gib=39.4"], ["GPU 0 of node 0", "too much"]),
    ],
)
def test_what_does_not_fit_is_refused_by_part_and_key(stem: str, overrides: list[str], words: list[str]) -> None:
    file = PRODUCTION / f"{stem}.yaml"
    if not words:
        planned(file, *overrides)
        return
    with pytest.raises(BadInput) as e:
        planned(file, *overrides)
    assert all(w in str(e.value) for w in words), e.value


def test_a_sampler_does_not_span_nodes() -> None:
    made = planned(PRODUCTION / "qwen3_30b_a3b_cluster.yaml", "placement.tensor_parallel=4", "placement.samplers=6")
    samplers = [one for one in made.placed if one.actor.name.startswith("sampler")]
    assert [(s.node, s.gpus) for s in samplers[:3]] == [(1, (0, 1, 2, 3)), (1, (4, 5, 6, 7)), (2, (0, 1, 2, 3))]
    with pytest.raises(BadInput, match="finds no node"):
        planned(PRODUCTION / "qwen3_30b_a3b_cluster.yaml", "placement.tensor_parallel=5", "placement.samplers=4")


def test_a_colocated_gpu_holds_sampler_and_learner() -> None:
    made = planned(PRODUCTION / "olmoe_7b_1gpu.yaml")
    (parts,) = placement.by_gpu(made.placed).values()
    assert {actor for actor, _ in parts} == {"learner", "sampler"}


def test_sharding_splits_the_base_and_nothing_else() -> None:
    """What is split comes back a layer at a time; vectors and routers are whole everywhere."""
    whole, split = (planned(PRODUCTION / "olmoe_7b_8gpu.yaml", f"placement.shard_base={flag}") for flag in ("false", "true"))
    part = {n: {x.name: x.bytes for x in p.placed[0].actor.device} for n, p in (("whole", whole), ("split", split))}
    p = whole.subject.parameters
    assert part["split"]["base"] == part["whole"]["base"] // 4 + (p.vector + p.router) * 2 * 3 // 4
    assert all(part["split"][n] == b for n, b in part["whole"].items() if n != "base")
    layer = (p.experts + p.attention) * 2 // 16
    assert part["split"].keys() - part["whole"].keys() == {"whole layers of the base in use"}
    assert part["split"]["whole layers of the base in use"] <= 2 * layer
    assert "placement.shard_base" not in " ".join(split.missing)


def test_what_a_split_base_cannot_have_yet() -> None:
    file = PRODUCTION / "deepseek_v3_cluster.yaml"
    assert "placement.learners" not in " ".join(planned(file).missing)  # 32 of them, on several nodes of 8 GPUs
    recipe = recipes.load(PRODUCTION / "qwen3_30b_a3b_8gpu.yaml", ["warm_start.sft.traces=x"])
    assert any("warm_start" in line for line in capability.missing(recipe, config("Qwen3-30B-A3B")))
    with pytest.raises(BadInput, match=r"placement\.shard_base.*single learner"):
        idle.check(recipes.parse({"placement": {"shard_base": True}}))


def test_what_a_base_in_mxfp4_costs_and_cannot_have() -> None:
    """The learner holds it at 16 bits, in main memory too while it loads; the sampler as it is. No adapters over it on CPUs."""
    file, c = PRODUCTION / "gpt_oss_20b_8gpu.yaml", config("gpt-oss-20b")
    made = planned(file)
    parts = {one.actor.name: {x.name: x.bytes for x in one.actor.device} for one in made.placed}
    p = made.subject.parameters
    assert parts["learner 1"]["base, unpacked from MXFP4"] == 2 * p.total > 3 * parts["sampler 1"]["base"]
    (loading,) = (x.bytes for x in made.placed[0].actor.host if x.name == "base while it is loaded")
    assert loading == 2 * p.total
    padded = next(x for one in made.placed for x in one.actor.device if "MXFP4 as" in x.name)
    assert not padded.exact and padded.bytes == 24 * 32 * 3 * (2944 * 3072 - 2880**2) * 17 // 32
    recipe = recipes.load(file, ["placement.shard_base=true", "sampler.routes=true"])
    lines = " ".join(capability.missing(recipe, c))
    assert "split over learners" in lines and "several caches" in lines and "MXFP4 on a CPU" not in lines
    (line,) = capability.missing(recipes.parse({"sampler": {"dtype": "bfloat16"}}), c)
    assert "MXFP4 on a CPU" in line
    del c.quantization_config
    assert capability.missing(recipes.parse({}), c) == []


@pytest.mark.parametrize(
    ("file", "overrides", "words"),
    [
        ("qwen3_30b_a3b_8gpu", ["algorithm.replay=sampler"], "routes kept by a sampler on a GPU.*sampler.routes"),
        ("qwen3_30b_a3b_8gpu", ["sampler.routes=true"], "algorithm.replay: learner takes the learner's own"),
        ("olmoe_7b_8gpu", ["adapter.rank=1024"], "rank above 512.*adapter.rank"),
        ("gpt_oss_20b_8gpu", ["sampler.dtype=float32"], "float32 over weights in mxfp4.*sampler.dtype"),
        ("deepseek_v3_cluster", ["sampler.dtype=float32"], "float32 over weights in fp8.*sampler.dtype"),
        ("deepseek_v3_cluster", ["sampler.dtype=float32", "placement.gpus_per_node=0"], "latent attention in float32 on a CPU"),
        ("olmoe_7b_1gpu", ["learner.device=cuda", "placement.gpus_per_node=null"], "a learner on a GPU, of which there is none"),
    ],
)
def test_what_an_engine_would_refuse_is_said_before_it_starts(file: str, overrides: list[str], words: str) -> None:
    recipe = recipes.load(PRODUCTION / f"{file}.yaml", overrides)
    c = config(Path(str(recipe.base_config)).name)
    before = recipes.load(PRODUCTION / f"{file}.yaml")
    (line,) = [x for x in capability.missing(recipe, c) if re.search(words, x)]
    assert line not in capability.missing(before, c)


def test_cpus_alone_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, c = recipes.parse({"placement": {"gpus_per_node": 0}}), config("OLMoE-1B-7B-0924")
    assert not capability.missing(recipe, c)
    monkeypatch.setattr(machine, "gpus", lambda: [machine.GPU("H100", 80 * GIB)])
    assert "hide them (CUDA_VISIBLE_DEVICES=)" in " ".join(capability.missing(recipe, c))


def test_gpus_that_cuda_does_not_show_are_not_there() -> None:
    found = [machine.GPU(f"GPU {n}", n) for n in range(4)]
    assert machine.visible(found, None) == found
    assert machine.visible(found, "2,0") == [found[2], found[0]]
    assert machine.visible(found, "") == machine.visible(found, "-1") == []
    assert machine.visible(found, "1,7,2") == [found[1]]  # as CUDA reads it
    assert len(machine.visible(found, "GPU-8932f937,GPU-aa")) == 2


def test_openings_are_tried_for_a_plan_on_stated_gpus_too(tmp_path: Path) -> None:
    directory = tiny.build_base(tmp_path / "base")
    file = tiny.write_workspace(tmp_path, directory, {"placement": {"gpus_per_node": 1, "gpu_memory_gib": 80}})
    assert "not tried   the disk's free space" in dry_run.dry_run(recipes.load(file), file)
    with pytest.raises(BadInput, match="sampler.max_model_len: .* leaves .* after an opening"):
        dry_run.dry_run(recipes.load(file, ["environment.max_tokens_per_turn=500"]), file)


@pytest.mark.parametrize("split", [1, 2, 4, 8])
def test_no_kernel_pads_mxfp4_by_more_than_is_planned(split: int) -> None:
    """Of vLLM's, but for AMD's."""
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4

    z = sizes.sizes(config("gpt-oss-20b"))
    most = 0
    for backend in mxfp4.Mxfp4MoeBackend:
        hidden, width = mxfp4.mxfp4_round_up_hidden_size_and_intermediate_size(backend, z.hidden, z.moe.expert_width // split)
        most = max(most, 24 * 32 * 3 * (hidden * width - z.hidden * z.moe.expert_width // split) * 17 // 32)
    assert actors.mxfp4_padding(z, split) == most


def test_a_gpu_measures_its_experts_kernels_once() -> None:
    """Where Triton trains them; gpt-oss' experts have no such kernels."""
    for stem, there in (("olmoe_7b_1gpu", True), ("gpt_oss_20b_1gpu", False)):
        (learner,) = (one.actor for one in planned(PRODUCTION / f"{stem}.yaml").placed if one.actor.name == "learner")
        assert any(p.bytes == actors.TUNING and not p.exact for p in learner.device) is there


def test_256k_tokens_can_be_planned() -> None:
    """Logits are never held whole and layers keep their inputs alone; without that it does not fit."""
    file = PRODUCTION / "qwen3_30b_a3b_256k_8gpu.yaml"
    learner = {p.name: p.bytes for p in planned(file).placed[0].actor.device}
    assert learner["activations of a micro-batch"] > 48 * 262144 * 2048 * 2
    with pytest.raises(BadInput, match=r"activations.*learner\.tokens_per_microbatch"):
        planned(file, "learner.activation_checkpointing=false")


def test_dynamic_sampling_and_rehearsal_are_counted() -> None:
    environment = {"max_turns": 4, "max_tokens_per_turn": 10}
    section = {"name": "dapo", "groups_per_step": 6, "group_size": 5, "rehearsal_groups": 2, "dynamic_sampling": 3}
    w = work.of(recipes.parse({"environment": environment, "algorithm": section}))
    assert (w.planned, w.tokens) == (8 * 5, 8 * 5 * 40)
    assert (w.episodes_at_most, w.tokens_at_most) == ((8 + 3 * 6) * 5, (8 + 3 * 6) * 5 * 40)


def test_what_is_held_grows_with_staleness_and_routes(tmp_path: Path) -> None:
    made = {}
    for name, sections in {"plain": {}, "stale": {"run": {"staleness": 2}}, "routes": {"sampler": {"routes": True}}}.items():
        recipe = recipes.parse({"environment": {"general_tasks": 0}, **sections})
        made[name] = plan.make(recipe, tiny.config(), tmp_path, "x").memory["trajectories"]
    assert made["stale"] == 3 * made["plain"]
    assert made["routes"] == made["plain"] * (40 + 2 * 2 * 2) // 40  # two processes, two layers, two experts of each


def test_adapters_on_disk_are_all_that_a_run_keeps(tmp_path: Path) -> None:
    stages = {"sft": {"traces": "x"}, "dpo": {"pairs": "y"}}
    plain, warm = (plan.make(recipes.parse({"warm_start": w}), tiny.config(), tmp_path, "x") for w in ({}, stages))
    each = 4 * plain.adapter_parameters
    run = RunDir(tmp_path / "run")
    for version in range(1, 9):  # as the loop hands them over
        for path in (run.canary(version), run.adapter_version(version)):
            path.mkdir(parents=True)
        most = len(list((run.root / "sync").iterdir()))
        run.prune_versions()
    assert plain.disk["adapter versions and canaries"] == most * each
    assert plain.disk["the tuned adapter"] == each and "adapters of the warm start" not in plain.disk
    assert warm.disk["adapters of the warm start"] == 2 * each
    assert warm.disk_total - plain.disk_total == 2 * each


def sampler_memory(directory: Path, **sections: Any) -> dict[str, int]:
    made = plan.make(recipes.parse(sections), tiny.config(), directory, "x")
    (sampler,) = (one.actor for one in made.placed if one.actor.name == "sampler")
    return {part.name: part.bytes for part in sampler.host}


def test_routers_of_adapters_are_counted_once_in_the_sampler(tmp_path: Path) -> None:
    """They are whole matrices beside the slots, which hold low-rank ones."""
    plain, trained = (sampler_memory(tmp_path, adapter={"router": flag}) for flag in (False, True))
    z = sizes.sizes(tiny.config())
    assert trained.pop("routers of adapters") == cache.SLOTS * len(z.moe.layers) * z.moe.num_experts * z.hidden * 4
    assert trained == plain
    learner = plan.make(recipes.parse({"adapter": {"router": True}}), tiny.config(), tmp_path, "x").subject
    assert sizes.router_parameters(learner.recipe, learner.config) == learner.parameters.router


def test_a_head_in_float32_is_a_copy_of_the_output_embedding(tmp_path: Path) -> None:
    c = tiny.config()
    plain, cast = ({"dtype": "bfloat16", "head_dtype": name} for name in ("model", "float32"))
    more = set(sampler_memory(tmp_path, sampler=cast).items()) - set(sampler_memory(tmp_path, sampler=plain).items())
    assert more == {("output embedding in float32", c.vocab_size * c.hidden_size * 4)}
    exact = sampler_memory(tmp_path, sampler={"dtype": "float32", "head_dtype": "float32"})
    assert "output embedding in float32" not in exact


def test_compiled_layers_are_said_with_what_is_not_known_of_them(tmp_path: Path) -> None:
    said = []
    for flag in (False, True):
        recipe = recipes.parse({"learner": {"compile": flag}})
        made = plan.make(recipe, tiny.config(), tmp_path, "x")
        said.append(plan.describe(made, recipe, {"training": 1}))
        (learner,) = (one.actor for one in made.placed if one.actor.name == "learner")
        parts = {part.name: part for part in learner.host}
        assert parts["activations of a micro-batch"].exact is not flag and ("process, torch.compile" in parts) is flag
    assert "compile " not in said[0] and "when they first run" in said[1]


def test_stated_speeds_make_the_time_and_overlap_shortens_it() -> None:
    placed = {"sampler_tokens_per_second": 1000, "learner_tokens_per_second": 2000}
    section = {"groups_per_step": 10, "group_size": 10}
    text = {"environment": {"max_turns": 1, "max_tokens_per_turn": 100}, "sampler": {"max_model_len": 200}}
    both = [recipes.parse({**text, "algorithm": section, "placement": placed, "run": {"staleness": n}}) for n in (0, 2)]
    times = [work.stated_speed(r, work.of(r)) for r in both]
    assert times == [100 * 100 / 1000 + 100 * 200 / 2000, 10.0]
    assert work.stated_speed(recipes.parse(text), work.of(recipes.parse(text))) is None


def test_gpus_are_read_from_the_driver_s_tool() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\n[N/A], [N/A]\n"
    assert machine.read_gpus(text) == [machine.GPU("NVIDIA H100 80GB HBM3", 81559 * 2**20)] * 2
    assert machine.read_gpus("") == []


def test_what_cannot_run_is_planned_and_then_refused(tmp_path: Path) -> None:
    directory = tiny.build_base(tmp_path / "base")
    file = tiny.write_workspace(
        tmp_path, directory, {"placement": {"episode_actors": 2, "nodes": 2}, "run": {"deterministic": True}}
    )
    recipe = recipes.load(file)
    said = dry_run.dry_run(recipe, file)
    assert "not yet" in said and "several episode actors" in said and "placement.nodes" in said and "40 training" in said
    with pytest.raises(BadInput, match=r"placement\.episode_actors") as e:
        preflight.check(recipe, file)
    assert "--dry-run" in str(e.value)


def test_gpus_that_are_not_here_are_refused_by_a_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [machine.GPU("H100", 80 * GIB)])
    directory = tiny.build_base(tmp_path / "base")
    file = tiny.write_workspace(tmp_path, directory, {"placement": {"gpus_per_node": 1, "gpu_memory_gib": 140}})
    recipe = recipes.load(file)
    said = dry_run.dry_run(recipe, file)
    assert "1 x H100 of 80.0 GiB; the plan wants 1 of 140 GiB: too little" in said
    with pytest.raises(BadInput, match="1 GPUs of 140 GiB are wanted"):
        preflight.check(recipe, file)


def test_a_hub_id_that_is_not_here_is_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def refuse(name: str, local_files_only: bool = False, **_: Any) -> str:
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    recipe = recipes.parse({"base": "allenai/OLMoE-1B-7B-0924"})
    with pytest.raises(BadInput, match="base_download"):
        base.find(recipe)
    with pytest.raises(BadInput, match="base_config"):
        base.for_plan(recipe, tmp_path / "r.yaml", tmp_path)
    assert asked == [True, True]
    assert base.for_plan(recipes.load(PRODUCTION / "olmoe_7b_1gpu.yaml"), PRODUCTION / "x.yaml", ROOT).directory is None


def test_a_dry_run_needs_no_more_than_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from frontier_tune.cli import main

    tiny.config().save_pretrained(tmp_path / "published")
    file = tiny.write_workspace(tmp_path, tmp_path, {"base": "acme/not-here", "base_config": "../published"})
    assert main.main(["tune", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "base: acme/not-here" in said and "40 training" in said and "no tokenizer of acme/not-here" in said
    assert not (tmp_path / "runs").exists()
    assert main.main(["tune", str(file), "--dry-run", "run.staleness=1"]) == 2
    assert "decoupled loss" in capsys.readouterr().err
    assert main.main(["tune", str(file)]) == 2
    assert "base_download: true" in capsys.readouterr().err


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(BadInput, match="transformers"):
        base.read_config(tmp_path)


def test_bad_input_does_not_wait_for_torch() -> None:
    """What is refused before there is anything to plan is refused at once."""
    code = "import sys, frontier_tune.orchestration.dry_run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
