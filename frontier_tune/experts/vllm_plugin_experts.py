"""The CPU kernels that apply expert adapters in vLLM, and the re-packing of experts after a reload.

In float32 and in bfloat16 our own operator computes base and adapters in one pass (``native_experts``): no merged copies.

Elsewhere (other activations, biases, sizes that are no multiples of 32) each adapter slot has its own copy of the experts with
the low-rank update merged in, packed as the stock kernel wants it, and lying behind the base's in one tensor:
[(1 + slots) * E, ...]. A token of slot s is sent to expert (1 + s) * E + e, so one call of the stock kernel serves base rows and
any number of adapters, at the base's speed. The price is memory: one copy of the experts per slot, plus the unpacked weights to
merge into. The copies are made when a slot is first used after a change, in float32, and rounded once. This covers every CPU
kernel class that vLLM may choose (AMX for bfloat16, NEON, VSX, and the portable vector one).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe import modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin import LoRAExpertsMixin
from vllm.model_executor.layers.fused_moe.fused_moe_modular_method import FusedMoEModularMethod
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend, backend_to_kernel_cls
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from frontier_tune.experts import native_experts


class _CPULoRAExperts(LoRAExpertsMixin):
    """Mixed into one of vLLM's CPU experts classes by ``lora_experts_class``."""

    isa: str
    w1_bias: Tensor | None
    w2_bias: Tensor | None
    loads: int = 0  # how often weights were packed, so that a reload that skipped them can be told
    native: bool = False
    _adapters: native_experts.Adapters | None = None
    _raw: tuple[Tensor, Tensor]
    _packed: tuple[Tensor, Tensor] | None = None  # base experts, then one copy per slot
    _biases: tuple[Tensor | None, Tensor | None] = (None, None)
    _merged: dict[int, tuple[int, ...]]  # slot -> versions of the adapter buffers that its copy was made from

    def _is_native(self, layer: Any) -> bool:
        w2, config = layer.w2_weight, self.moe_config
        return (
            native_experts.supported(w2.dtype, w2.shape[1], w2.shape[2])
            and layer.w13_weight.dtype == w2.dtype
            and layer.w13_weight.shape[1] == 2 * w2.shape[2]
            and config.activation == MoEActivation.SILU
            and config.is_act_and_mul
            and self.w1_bias is None
            and self.w2_bias is None
        )

    def process_weights_after_loading(self, layer: Any) -> None:
        self.native = self._is_native(layer)
        if self.native:
            self._adapters, self._merged = None, {}
            self.loads += 1
            for weight in (layer.w13_weight, layer.w2_weight):  # in place: one layout at a time, no second copy
                weight.data.copy_(native_experts.pack(weight.data))
                native_experts.large_pages(weight.data)
            return
        self._raw = (layer.w13_weight.data.clone(), layer.w2_weight.data.clone())
        self._packed, self._merged = None, {}
        self.loads += 1
        super().process_weights_after_loading(layer)
        if self._use_zentorch:
            raise RuntimeError("zentorch's MoE kernel takes no expert adapters; uninstall zentorch to use LoRA over experts")

    def _pack(self, w13: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
        """Pad the expert width as the stock class does, then prepack."""
        extra = type(self)._padded_intermediate_size(self.moe_config) - w2.shape[-1]
        if extra:
            gate, up = w13.chunk(2, dim=1)
            w13, w2 = torch.cat([pad(gate, (0, 0, 0, extra)), pad(up, (0, 0, 0, extra))], 1), pad(w2, (0, extra))
        return cpu_prepack_moe_weight(w13.contiguous(), self.isa), cpu_prepack_moe_weight(w2.contiguous(), self.isa)

    def _stacks(self, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
        if self._packed is None:
            slots, experts = self._lora_context.max_loras, w1.shape[0]
            packed = tuple(w.new_zeros((1 + slots) * experts, *w.shape[1:]) for w in (w1, w2))
            packed[0][:experts].copy_(w1)
            packed[1][:experts].copy_(w2)
            self._packed = (packed[0], packed[1])
            self._biases = tuple(  # type: ignore[assignment]
                None if b is None else b.repeat(1 + slots, 1) for b in (self.w1_bias, self.w2_bias)
            )
        return self._packed

    def _merge(self, slot: int, w1: Tensor, w2: Tensor) -> None:
        """Bring the merged copy of ``slot`` up to date with the adapter buffers."""
        ctx = self._lora_context
        assert ctx is not None
        a13, b13, (a2,), (b2,) = ctx.w13_lora_a_stacked, ctx.w13_lora_b_stacked, ctx.w2_lora_a_stacked, ctx.w2_lora_b_stacked
        version = tuple(t._version for t in (*a13, *b13, a2, b2))
        if self._merged.get(slot) == version:
            return
        halves = [torch.matmul(b[slot].float(), a[slot].float()) for a, b in zip(a13, b13, strict=True)]
        if len(halves) == 2 and self.moe_config.activation == MoEActivation.SWIGLUOAI:  # gate and up alternate
            delta13 = torch.stack(halves, dim=2).flatten(1, 2)
        else:
            delta13 = torch.cat(halves, dim=1)
        delta2 = torch.matmul(b2[slot].float(), a2[slot].float())
        raw13, raw2 = self._raw
        merged = self._pack((raw13.float() + delta13).to(raw13.dtype), (raw2.float() + delta2).to(raw2.dtype))
        at, experts = (1 + slot) * w1.shape[0], w1.shape[0]
        for stack, new in zip(self._stacks(w1, w2), merged, strict=True):
            stack[at : at + experts].copy_(new)
        self._merged[slot] = version

    def _version(self) -> tuple[int, ...]:
        ctx = self._lora_context
        stacked = (ctx.w13_lora_a_stacked, ctx.w13_lora_b_stacked, ctx.w2_lora_a_stacked, ctx.w2_lora_b_stacked)
        return tuple(t._version for parts in stacked for t in parts)

    def _apply_native(
        self, output: Tensor, x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, groups: list[tuple[int, Any]]
    ) -> None:
        slots = None
        if any(slot >= 0 for slot, _ in groups):
            ctx, version = self._lora_context, self._version()
            if self._adapters is None:
                rank, (experts, hidden, width) = ctx.w2_lora_a_stacked[0].shape[2], w2.shape
                self._adapters = native_experts.Adapters.empty(ctx.max_loras, experts, hidden, width, rank, w2.dtype)
            for slot, _ in groups:
                if slot >= 0 and self._merged.get(slot) != version:
                    a13, b13 = ([t[slot] for t in stack] for stack in (ctx.w13_lora_a_stacked, ctx.w13_lora_b_stacked))
                    if len(a13) == 1:  # gate and up share an A
                        a13, b13 = a13 * 2, list(b13[0].chunk(2, dim=1))
                    down = (ctx.w2_lora_a_stacked[0][slot], ctx.w2_lora_b_stacked[0][slot])
                    self._adapters.set(slot, (a13[0], b13[0]), (a13[1], b13[1]), down)
                    self._merged[slot] = version
            slots = ctx.punica_wrapper.frontier_slots(x.shape[0])
        native_experts.forward(x, ids, weights, w1, w2, slots, self._adapters, out=output)

    def apply(
        self,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        activation: MoEActivation,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As the stock class, with each token's experts taken from the copy of its adapter slot."""
        ctx = self._lora_context
        groups = [] if ctx is None else ctx.punica_wrapper.frontier_groups(hidden_states.shape[0])
        if self.native:
            if args[-1] if args else kwargs["apply_router_weight_on_input"]:
                raise NotImplementedError("routing weights on the input: no family that is served here has them")
            self._apply_native(output, hidden_states, w1, w2, topk_weights, topk_ids, groups)
            return
        if all(slot < 0 for slot, _ in groups):
            super().apply(output, hidden_states, w1, w2, topk_weights, topk_ids, activation, *args, **kwargs)
            return
        for slot, _ in groups:
            if slot >= 0:
                self._merge(slot, w1, w2)
        packed13, packed2 = self._stacks(w1, w2)
        experts = w1.shape[0]
        if len(groups) == 1:  # one adapter for all rows: its copy alone
            part = slice((1 + groups[0][0]) * experts, (2 + groups[0][0]) * experts)
            packed13, packed2, ids, (b1, b2) = packed13[part], packed2[part], topk_ids, (self.w1_bias, self.w2_bias)
        else:
            assert ctx is not None
            slots = ctx.punica_wrapper.frontier_slots(hidden_states.shape[0])
            ids = (topk_ids + (slots[:, None] + 1) * experts).to(torch.int32).contiguous()
            b1, b2 = self._biases
        skip_weighted = args[-1] if args else kwargs["apply_router_weight_on_input"]
        cpu_fused_moe(
            output, hidden_states, packed13, packed2, b1, b2, topk_weights, ids, activation.value, self.isa, skip_weighted
        )


def lora_experts_class(moe_config: Any) -> type[CPUUnquantizedExperts]:
    """The CPU experts class that vLLM would choose without LoRA, with expert adapters added to it."""
    reason = None
    for cls in backend_to_kernel_cls(UnquantizedMoeBackend.CPU):
        able = type(f"LoRA{cls.__name__}", (_CPULoRAExperts, cls), {})
        ok, reason = able.is_supported_config(able, moe_config, None, None, mk.FusedMoEActivationFormat.Standard)  # type: ignore[attr-defined]
        if ok:
            return able
    raise ValueError(f"no CPU kernel takes this MoE layer: {reason}")


def experts_of(model: Any) -> list[Any]:
    """What computes the experts of each MoE layer of ``model``."""
    methods = {id(m.quant_method): m.quant_method for m in model.modules() if isinstance(m, RoutedExperts)}
    return [method.moe_kernel.fused_experts for method in methods.values()]


def loads(model: Any) -> list[int]:
    """How often the experts of each MoE layer of ``model`` were packed. A reload raises every number."""
    return [getattr(experts, "loads", 0) for experts in experts_of(model)]


def tie_again(model: Any) -> None:
    """After a reload: the CPU kernels pack a copy of the output embedding, which no one makes anew where it is the input one."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(head, "weight", None) is model.model.embed_tokens.weight:
        head.quant_method.process_weights_after_loading(head)


_stock_load_weights = RoutedExperts.load_weights


def _load_weights(self: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """With LoRA on, vLLM looks for per-expert weights as ``<expert>.gate_proj.base_layer.`` only, and skips a checkpoint's
    own names without a word. Here names without ``base_layer.`` are looked up as they are."""
    prefix = self.lora_base_layer_prefix
    for wrapped, group in itertools.groupby(weights, key=lambda item: "base_layer." in item[0]):
        self.lora_base_layer_prefix = prefix if wrapped else ""
        try:
            yield from _stock_load_weights(self, group)
        finally:
            self.lora_base_layer_prefix = prefix


def install() -> list[str]:
    """Register the MoE method and close the holes of the reload path. Returns what was changed."""
    if "UnquantizedFusedMoEMethod" in op_registry_oot:
        raise RuntimeError(
            "another vLLM plugin has replaced UnquantizedFusedMoEMethod: expert adapters on CPU can't be installed beside it"
        )

    @UnquantizedFusedMoEMethod.register_oot
    class CPULoRAMoEMethod(UnquantizedFusedMoEMethod):
        def __init__(self, moe: Any) -> None:
            super().__init__(moe)
            if moe.is_lora_enabled:
                self.unquantized_backend = UnquantizedMoeBackend.CPU
                self.experts_cls = lora_experts_class(moe)

        def _setup_kernel(self, layer: Any, w13: Tensor, w2: Tensor) -> None:
            reload = self.moe_kernel is not None
            super()._setup_kernel(layer, w13, w2)
            if reload and self.unquantized_backend == UnquantizedMoeBackend.CPU:
                self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    def process_weights_after_loading(self: Any, layer: Any) -> None:
        """LoRA swaps the method for this wrapper, which by default does nothing when weights are loaded anew."""
        self.old_quant_method.process_weights_after_loading(layer)

    FusedMoEModularMethod.process_weights_after_loading = process_weights_after_loading
    RoutedExperts.load_weights = _load_weights
    return [
        "MoE layers with LoRA use the CPU kernels, expert adapters included",
        "reloaded expert weights are found under a checkpoint's names and packed again",
    ]
