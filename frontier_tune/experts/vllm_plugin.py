"""vLLM plugin: LoRA over the experts of MoE models on CPU, and four faults of vLLM's CPU path mended.

Loaded by vLLM in each of its processes through the entry point group ``vllm.general_plugins``; ``register`` may also be
called directly, and any number of times. What it changes, and why:

- **experts**: with LoRA on, vLLM picks a Triton kernel for every MoE layer whatever the platform, and dies in it on CPU.
  Mended by the public ``register_oot`` hook for ``UnquantizedFusedMoEMethod`` with a CPU kernel that applies expert adapters.
- **reload**: on a weight update the CPU kernel's prepacked weights are overwritten with unpacked ones of the same shape,
  which silently corrupts every expert; with LoRA on, experts are not even read again. Both mended.
- **mixed batches**: a token without adapter has slot -1, which CPU kernels use as an index: it gets the *last* adapter.
  Rows are grouped by adapter instead, and rows of the base are left alone.
- **prompt_logprobs**: an adapter-capable ``lm_head`` crashes on them because the rows don't match the batch. They pass
  where no adapter touches ``lm_head``, and are refused clearly where one does.
- **routing**: experts are chosen by the routing op that the learner uses, from logits in float32 (docs/routing-op.md).
- **norms**, **rotary**, **sampling**: one operator each, instead of eight, a slow one and a dozen.
- **head**: an output embedding in another type than the model's (``sampler.head_dtype``) is cast once, not in every forward.
- **slots**: a token that fits a request's last block is scheduled without asking for one.
- **selection**: adapters that hold the chosen experts alone can be loaded.
- **seeds**: a seeded request whose prompt is read in several steps (chunked prefill) crashes, as CPU generators have no
  offset to set back. The draw is taken back another way, so that the same seed gives the same tokens however it is chunked.

The hooks reach into vLLM's internals, so versions that this was not tested with are refused.
"""

from __future__ import annotations

import logging

from frontier_tune.contracts import BadInput

TESTED = ("0.32.0",)
log = logging.getLogger("frontier_tune.experts.vllm_plugin")
_changes: list[str] | None = None


def check_version(version: str) -> None:
    """Raise BadInput unless ``version`` (a local suffix such as +cpu is ignored) is one that the plugin was tested with."""
    if version.split("+")[0] not in TESTED:
        raise BadInput(
            f"vLLM {version}: the frontier-tune plugin was tested with {', '.join(TESTED)} and changes internals; "
            "install that version, or uninstall the plugin for plain vLLM"
        )


def register() -> list[str]:
    """Mend this process's vLLM. Returns what was changed; a second call changes nothing and returns the same list.

    On other platforms than CPU only the loading of adapters is mended (chosen experts, names): vLLM's own kernels apply expert
    adapters there.
    """
    global _changes
    if _changes is None:
        import vllm
        from vllm.platforms import current_platform

        check_version(vllm.__version__)
        from frontier_tune.experts import vllm_plugin_names, vllm_plugin_selection

        changes = vllm_plugin_selection.install() + vllm_plugin_names.install()
        if current_platform.is_cpu():
            from frontier_tune.experts import (
                vllm_plugin_experts,
                vllm_plugin_head,
                vllm_plugin_norms,
                vllm_plugin_punica,
                vllm_plugin_rotary,
                vllm_plugin_router,
                vllm_plugin_sampling,
                vllm_plugin_seeds,
                vllm_plugin_slots,
            )

            parts = (
                *(vllm_plugin_experts, vllm_plugin_router, vllm_plugin_punica, vllm_plugin_norms, vllm_plugin_rotary),
                *(vllm_plugin_sampling, vllm_plugin_seeds, vllm_plugin_slots, vllm_plugin_head),
            )
            changes += [change for part in parts for change in part.install()]
        for change in changes:
            log.info("vLLM %s: %s", vllm.__version__, change)
        _changes = changes
    return list(_changes)
