"""Environment variables that the engine's process must have before it imports torch or vllm."""

from __future__ import annotations

import os


def engine_environment(threads: int) -> dict[str, str]:
    """Variables for a process that runs the engine with ``threads`` compute threads (a Ray actor's ``runtime_env``).

    They must be set before torch is imported: the OpenMP runtime reads them once. Threads wait passively, as spinning ones
    cost other processes on the same cores 5 to 20 times in wall clock. Nothing is sent anywhere. The model runner is the one that
    doesn't need Triton, which the plugin is tested with, and nothing is compiled: engines are made eager, as vLLM's CPU platform
    makes all with LoRA, so that the compiler would only cost seconds at start.
    """
    if threads < 1:
        raise ValueError(f"threads: at least 1, not {threads}")
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_DYNAMIC": "FALSE",
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # vLLM in this very process: a thread steps the engine.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_PLUGINS": "frontier_tune",  # no plugins but ours
        "VLLM_CONFIGURE_LOGGING": "0",  # the sampler sends the log to a file
        # Telemetry and downloads off.
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "TORCHDYNAMO_DISABLE": "1",
    }


def apply(threads: int) -> None:
    """Set the variables in this process, keeping OpenMP's where they are set already. Call before importing torch."""
    for key, value in engine_environment(threads).items():
        if key.startswith(("OMP_", "MKL_")):
            os.environ.setdefault(key, value)
        else:
            os.environ[key] = value
