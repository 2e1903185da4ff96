"""The families of mixture-of-experts models that this project adapts, and what their modules are called where.

One row a family: which parameters hold the experts in transformers, which projections attention has, and what vLLM calls the
same modules. A name that differs between the two (Mixtral's ``mlp`` is ``block_sparse_moe`` in vLLM, and vLLM's own mapper
does not rename it) would otherwise make vLLM drop the expert part of an adapter without a word.

Everything here is derived from the model's configuration alone: no weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import Adapter

if TYPE_CHECKING:
    from peft import LoraConfig

QKV = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}


@dataclass(frozen=True)
class Family:
    """Names and layout of one family. Module names are relative to a decoder layer ``model.layers.<i>``.

    ``transposed``: expert weights are stored [E, in, out] instead of [E, out, in].
    ``interleaved``: gate and up alternate along gate_up's output instead of lying one after the other.
    ``router``: the router, where it can be trained: a plain matrix of logits, which chooses by nothing else.
    ``vllm_packed``: projections that vLLM fuses, by the name of the fused module.
    """

    model_type: str
    label: str
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    num_experts: str = "num_experts"
    expert_width: str = "moe_intermediate_size"
    transposed: bool = False
    interleaved: bool = False
    experts: str = "mlp.experts"
    gate_up: str = "gate_up_proj"
    down: str = "down_proj"
    router: str | None = "mlp.gate"
    vllm_experts: str = "mlp.experts"
    vllm_router: str = "mlp.gate"
    vllm_attention: str = "self_attn"
    vllm_packed: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: QKV)

    @property
    def target_parameters(self) -> list[str]:
        """PEFT's ``target_parameters``. gate_up comes first: PEFT nests wrappers in this order and names files after it."""
        return [f"{self.experts}.{self.gate_up}", f"{self.experts}.{self.down}"]


FAMILIES: dict[str, Family] = {
    f.model_type: f
    for f in (
        Family("qwen3_moe", "Qwen3-MoE"),
        Family("olmoe", "OLMoE", expert_width="intermediate_size"),
        Family(
            "mixtral",
            "Mixtral",
            num_experts="num_local_experts",
            expert_width="intermediate_size",
            vllm_experts="block_sparse_moe.experts",
            vllm_router="block_sparse_moe.gate",
        ),
        Family(
            "gpt_oss",
            "gpt-oss",
            num_experts="num_local_experts",
            expert_width="intermediate_size",
            transposed=True,
            interleaved=True,
            router=None,  # it has a bias, too
            vllm_attention="attn",
        ),
        Family(
            "deepseek_v3",
            "DeepSeek-V3",
            # Of latent attention only the output: vLLM folds kv_b_proj into other matrices when it loads the base, so that an
            # adapter on it is taken and ignored, and its CPU kernels did not reproduce adapters on the other projections.
            attention=("o_proj",),
            num_experts="n_routed_experts",
            router=None,  # it chooses by scores with a bias that is balanced outside of any gradient
            vllm_packed={},
        ),
    )
}


@dataclass(frozen=True)
class MoEShape:
    """Sizes read from a configuration. ``layers``: the decoder layers that are MoE, of ``depth`` in all."""

    depth: int
    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    hidden: int
    expert_width: int


def supported() -> str:
    return ", ".join(f"{f.label} ({f.model_type})" for f in FAMILIES.values())


def family_of(config: Any) -> Family:
    """The family of a transformers configuration. Raises BadInput for an unknown or dense one."""
    model_type = getattr(config, "model_type", None)
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise BadInput(
            f"base: model type '{model_type}' has no experts that this version can adapt (dense, or an unknown family); "
            f"choose a mixture-of-experts base of one of: {supported()}"
        )
    return family


def moe_shape(config: Any) -> MoEShape:
    """Sizes and MoE layers of a configuration. Raises BadInput where no layer is a mixture of experts."""
    family = family_of(config)
    depth = int(config.num_hidden_layers)
    experts = int(getattr(config, family.num_experts, 0) or 0)
    if family.model_type == "qwen3_moe":
        dense, step = set(config.mlp_only_layers or ()), int(config.decoder_sparse_step)
        layers = tuple(i for i in range(depth) if i not in dense and experts > 0 and (i + 1) % step == 0)
    elif family.model_type == "deepseek_v3":
        layers = tuple(range(int(config.first_k_dense_replace), depth))
    else:
        layers = tuple(range(depth))
    if experts < 2 or not layers:
        raise BadInput(
            f"base: this {family.label} configuration has {experts} experts on {len(layers)} of {depth} layers: it is dense; "
            "choose a base with at least two experts on at least one layer"
        )
    return MoEShape(
        depth,
        layers,
        experts,
        int(config.num_experts_per_tok),
        int(config.hidden_size),
        int(getattr(config, family.expert_width)),
    )


def attention_projections(config: Any) -> dict[str, tuple[int, int]]:
    """Projections of the attention block that adapters may target: name -> (in, out) features. The same in every layer."""
    family, hidden = family_of(config), int(config.hidden_size)
    heads = int(config.num_attention_heads)
    if family.model_type == "deepseek_v3":
        return {"o_proj": (heads * int(config.v_head_dim), hidden)}
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    kv = int(config.num_key_value_heads) * head
    return {"q_proj": (hidden, heads * head), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (heads * head, hidden)}


def target_modules(adapter: Adapter, config: Any) -> list[str]:
    """Names of the attention projections that ``adapter`` targets. Raises BadInput for a target that matches nothing."""
    family, known = family_of(config), list(attention_projections(config))
    if adapter.targets is None:
        return known if adapter.attention else []
    wrong = [t for t in adapter.targets if t not in known]
    if wrong:
        counts = ", ".join(f"'{t}': 0 modules" for t in wrong)
        raise BadInput(
            f"adapter.targets: {counts} of {int(config.num_hidden_layers)} layers match; {family.label} attention has: "
            f"{', '.join(known)} (experts are switched by adapter.experts)"
        )
    return sorted(set(adapter.targets), key=known.index)


def router_of(config: Any) -> str:
    """Name of the router that an adapter may bring weights of. Raises BadInput for a family whose routers can't be trained."""
    family = family_of(config)
    if family.router is None:
        able = ", ".join(f.label for f in FAMILIES.values() if f.router)
        raise BadInput(f"adapter.router: routers of {family.label} can't be trained, those of {able} can; set it to false")
    return family.router


def base_name(directory: str | Path) -> str:
    """What a base is called in files that leave this machine: its name on the hub where it lies in the hub's cache
    (``models--<owner>--<name>/snapshots/<commit>``), else its directory's, without the way there. "" stays ""."""
    if directory == "":  # a model made from its configuration lies nowhere, and Path("") is the working directory
        return ""
    path = Path(directory).resolve()
    cached = path.parent.parent.name
    if path.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/", 1)
    return path.name


def peft_config(adapter: Adapter, config: Any) -> LoraConfig:
    """PEFT's configuration for ``adapter`` on a model of ``config``. Raises BadInput where it would adapt nothing."""
    from peft import LoraConfig

    family, modules = family_of(config), target_modules(adapter, config)
    if adapter.experts:
        moe_shape(config)  # dense: refused here
    if not modules and not adapter.experts:
        raise BadInput("adapter: 0 modules match; set adapter.experts or adapter.attention to true, or name adapter.targets")
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # annotated as int in PEFT, which only divides it by r
        target_modules=modules,
        target_parameters=family.target_parameters if adapter.experts else None,
        modules_to_save=[router_of(config)] if adapter.router else None,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def adapted(model: Any, adapter: Adapter) -> Any:
    """``model`` with a fresh adapter on it: a PeftModel. Raises BadInput where nothing would be adapted."""
    from peft import get_peft_model

    config = peft_config(adapter, model.config)
    config.base_model_name_or_path = model.name_or_path
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():  # PEFT casts the low-rank matrices of a bfloat16 base, and nothing else
        if ".modules_to_save." in name:
            parameter.data = parameter.data.float()
    peft.create_or_update_model_card = lambda directory: None  # an empty form but for where the base lies on this machine
    return peft


def save(peft: Any, directory: str | Path) -> None:
    """Write the adapter of ``adapted`` in PEFT's format. The files name the base, not where it lies on this machine, and none for
    a model that was made from its configuration.

    Only they do: in memory it stays a directory, as PEFT looks for a base that is none on the hub.
    """
    config = peft.peft_config["default"]
    here = config.base_model_name_or_path
    config.base_model_name_or_path = base_name(here) if here else None
    try:  # embeddings are frozen: without the flag PEFT looks the base up to find out whether they were resized
        peft.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"])
    finally:
        config.base_model_name_or_path = here
