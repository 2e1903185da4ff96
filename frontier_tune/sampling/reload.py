"""The engine's weights read anew while it stands: for whole models in the place of adapters (``learner.trainable: all``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from frontier_tune.contracts import BadInput
from frontier_tune.experts import whole


def require(config: Any) -> None:
    """Raises BadInput where versions can't be whole models: on a GPU, or of another family than those that learn so."""
    from vllm.platforms import current_platform

    whole.require_family(config)
    if not current_platform.is_cpu():
        raise BadInput("learner.trainable: all: whole models are taken by the CPU engine alone; set it to adapter")


def reload(engine: Any, directory: Path | None, adapters: bool) -> None:
    """Read all weights again, from ``directory`` (None: where they were read last). Nothing may be open.

    Raises RuntimeError where something of the old model is left: the engine is of no use then.
    """
    from frontier_tune.experts.vllm_plugin_experts import loads, tie_again

    model = model_of(engine)
    before = loads(model)
    engine.collective_rpc("reload_weights", kwargs={"weights_path": str(directory) if directory else None})
    tie_again(model)
    if not engine.reset_prefix_cache():  # it would go on with what the old weights computed
        raise RuntimeError("vLLM did not empty its prefix cache after its weights were read again")
    if adapters and any(new == old for new, old in zip(loads(model), before, strict=True)):
        raise RuntimeError("vLLM did not read all experts again: the model in the sampler is a mixture of old and new")


def held(engine: Any, config: Any, dtype: Any) -> dict[str, Tensor]:
    """Every weight that the engine computes with, by transformers' names."""
    return whole.read(model_of(engine), config, dtype)


def model_of(engine: Any) -> Any:
    """vLLM's model: in this process, as there is one worker."""
    return engine.model_executor.driver_worker.worker.model_runner.get_model()
