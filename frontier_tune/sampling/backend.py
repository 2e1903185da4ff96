"""The engine itself, as its own thread sees it: vLLM's LLMEngine, the versions it serves, and its open requests."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from frontier_tune import recipe
from frontier_tune.contracts import BadInput, Completion, Request
from frontier_tune.experts import canonical, families, resident, vllm_plugin, whole
from frontier_tune.sampling import environment, reload
from frontier_tune.sampling.versions import Version, Versions

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the buffer sizes that vLLM offers
_LEAST_FREE = 0.01  # of a GPU: what an engine takes is planned, not tried
_engines, _closing = 0, threading.Lock()  # of this process
SLOTS = 2  # adapters in one batch: the current version, and the one whose last requests still run


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send what native code prints (Gloo, OpenMP) to ``log`` as well: it writes to file descriptors 1 and 2."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), saved, strict=True):
                os.dup2(old, fd)
                os.close(old)


def _log_to(log: Path) -> None:
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("vllm", "frontier_tune.experts.vllm_plugin"):
        logger = logging.getLogger(name)
        for old in logger.handlers:
            old.close()
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def read_base(base_dir: Path) -> Any:
    """The base's configuration. Raises BadInput where there is none."""
    from transformers import AutoConfig

    if not (base_dir / "config.json").is_file():
        raise BadInput(f"{base_dir}: no base model here (config.json is missing)")
    return AutoConfig.from_pretrained(str(base_dir), local_files_only=True, trust_remote_code=False)


class Backend:
    """Owned by one thread. ``step`` advances every open request by one forward pass and calls their ``done``."""

    def __init__(
        self,
        base_dir: Path,
        sampler: recipe.Sampler,
        adapter: recipe.Adapter | None,
        seed: int,
        log: Path,
        spool: Path,
        routes: bool = False,
        slots: int = SLOTS,
        reloads: bool = False,
    ) -> None:
        """``reloads``: versions are whole models, one at a time, and no adapters."""
        environment.apply(sampler.threads)
        log.parent.mkdir(parents=True, exist_ok=True)
        self.base_dir, self.config, self.reloads = base_dir, read_base(base_dir), reloads
        if reloads:
            reload.require(self.config)
            adapter, slots = whole.ENGINE_ADAPTER, 1
        self.adapter = adapter
        targets: list[str] = []
        if adapter is not None:
            targets = families.target_modules(adapter, self.config)
            if adapter.experts:
                families.moe_shape(self.config)
                targets = [*targets, "experts"]
        positions = getattr(self.config, "max_position_embeddings", None) or sampler.max_model_len + 1
        if positions < sampler.max_model_len:
            raise BadInput(f"sampler.max_model_len: {sampler.max_model_len}, but {base_dir} has {positions} positions")
        # One more than asked for where the base has room: scoring a sequence of full length samples a token behind it.
        self.max_len = min(sampler.max_model_len + 1, positions)
        rank = adapter.rank if adapter is not None else 1
        self._ids = itertools.count()
        self._done: dict[str, Callable[[Any], None]] = {}
        import torch

        self.dtype = getattr(torch, sampler.dtype)
        self.versions = Versions(spool, self.config, rank)
        routes = routes or sampler.routes
        with _output_to(log):
            if routes:
                self._require_routes()  # before there is an engine that would have to be shut down
            self.engine = self._build(sampler, targets, rank, slots, seed, log)
        try:
            self.routes = self._route_store() if routes else None
        except BaseException:
            self.close()  # nobody else knows of it
            raise

    def _build(self, sampler: recipe.Sampler, targets: list[str], rank: int, slots: int, seed: int, log: Path) -> Any:
        import torch

        torch.set_num_threads(sampler.threads)
        set_num_threads = torch.set_num_threads
        from vllm import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        _log_to(log)
        changes = vllm_plugin.register()
        logging.getLogger(vllm_plugin.__name__).info("this engine runs with: %s", "; ".join(changes) or "vLLM's own kernels")
        lora: dict[str, Any] = {}
        if getattr(self.config, "kv_lora_rank", None) is not None and current_platform.is_cpu() and sampler.dtype == "float32":
            raise BadInput("sampler.dtype: vLLM's CPU kernels for latent attention (DeepSeek-V3) take bfloat16, not float32")
        if self.adapter is not None:
            if slots < 1:
                raise BadInput(f"slots: {slots}; a sampler with an adapter needs at least 1")
            if rank > RANKS[-1]:
                raise BadInput(f"adapter.rank: {rank}; vLLM takes at most {RANKS[-1]}")
            lora = {
                "enable_lora": True,
                "max_loras": slots,
                "max_cpu_loras": slots,
                "max_lora_rank": next(r for r in RANKS if r >= rank),
                "enable_mixed_moe_lora_format": True,
                "lora_target_modules": targets,
            }
        args = EngineArgs(
            model=str(self.base_dir),
            skip_tokenizer_init=True,
            generation_config="vllm",  # the checkpoint's own sampling defaults must not leak in
            dtype=sampler.dtype,
            seed=seed,
            max_model_len=self.max_len,
            max_num_seqs=sampler.max_sequences,
            max_num_batched_tokens=max(self.max_len, 4096),
            kv_cache_memory_bytes=sampler.kv_cache_mb * 2**20,
            enable_prefix_caching=sampler.prefix_caching,
            **self._device_choices(),
            hf_overrides={} if sampler.head_dtype == "model" else {"head_dtype": sampler.head_dtype},
            enforce_eager=True,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **lora,
        )
        global _engines
        try:
            engine = LLMEngine.from_engine_args(args)
        finally:
            torch.set_num_threads = set_num_threads  # vLLM replaces it for the whole process, and for good where it fails
        _engines += 1
        _log_to(log)  # again: vLLM sets its own handlers up at start
        # The engine makes many small objects a step and no cycles; what is there now stays. The collector looks seldom.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        return engine

    def _device_choices(self) -> dict[str, Any]:
        """Where vLLM's defaults don't suit a GPU that is shared, or, on a CPU, many short requests with common prompts."""
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            # It refuses to start where less than this share of the whole GPU is free, even with the cache's bytes given, which is
            # all it is for then: beside a learner the default, 0.92, would make a start a race, and that after a death hopeless.
            return {"gpu_memory_utilization": _LEAST_FREE}
        from frontier_tune.experts import vllm_plugin_norms

        choices: dict[str, Any] = {"ir_op_priority": vllm_plugin_norms.PRIORITY}
        if getattr(self.config, "kv_lora_rank", None) is None:  # latent attention has a block size of its own
            # Prefixes are shared by whole blocks, 128 tokens by default: more than many a prompt has.
            choices["block_size"] = 32
        return choices

    def _require_routes(self) -> None:
        """Raises BadInput where routes can't be captured: on a GPU, or of a base without experts."""
        from vllm.platforms import current_platform

        families.moe_shape(self.config)
        if not current_platform.is_cpu():
            raise BadInput(
                "sampler.routes, algorithm.replay: sampler: routes are captured by the CPU engine alone; use replay: learner"
            )

    def _route_store(self) -> Any:
        """Capture of routes, bound to this engine's routers."""
        from frontier_tune.experts.vllm_plugin_routes import RouteStore

        shape = families.moe_shape(self.config)
        return RouteStore(
            self.engine.model_executor.driver_worker.worker.model_runner, shape.layers, shape.num_experts, shape.top_k
        )

    @property
    def manager(self) -> Any:
        """vLLM's LoRA manager: in this process, as there is one worker."""
        return self.engine.model_executor.driver_worker.worker.model_runner.lora_manager._adapter_manager

    @property
    def busy(self) -> bool:
        return bool(self._done)

    def _lora(self, version: Version) -> Any:
        from vllm.lora.request import LoRARequest

        if version.path is None:
            return None
        return LoRARequest(
            version.name, version.id, str(version.path), is_3d_lora_weight=bool(version.peft.get("target_parameters"))
        )

    def _add(self, tokens: list[int], params: Any, version: Version, done: Callable[[Any], None]) -> str:
        """Open a request; returns vLLM's own name of it."""
        name = str(next(self._ids))
        internal: str = self.engine.add_request(name, {"prompt_token_ids": tokens}, params, lora_request=self._lora(version))
        version.open += 1

        def finish(output: Any) -> None:
            version.open -= 1
            done(output)

        self._done[name] = finish
        return internal

    def _check_tokens(self, tokens: list[int], room: int) -> None:
        vocabulary = int(self.config.vocab_size)
        if not tokens or min(tokens) < 0 or max(tokens) >= vocabulary:
            raise BadInput(f"a sequence of {len(tokens)} tokens: there must be some, with ids from 0 to {vocabulary - 1}")
        if len(tokens) > room:
            raise BadInput(f"a sequence of {len(tokens)} tokens; sampler.max_model_len leaves room for {room}")

    def sample(self, request: Request, done: Callable[[Completion], None], number: int | None = None) -> None:
        """Open a request under version ``number``, the current one by default."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        p, tokens = request.params, list(request.tokens)
        version = self.versions.current if number is None else self.versions.get(number)
        self._check_tokens(tokens, self.max_len - 1)
        if p.max_tokens < 1 or not (p.temperature == 0 or p.temperature >= recipe.LEAST_TEMPERATURE):
            raise BadInput(
                f"request {request.id}: max_tokens {p.max_tokens} and temperature {p.temperature}; at least 1, and 0 or at least "
                f"{recipe.LEAST_TEMPERATURE} (vLLM samples at that where it is given less)"
            )
        params = SamplingParams(
            max_tokens=min(p.max_tokens, self.max_len - len(tokens)),
            temperature=p.temperature,
            seed=p.seed,
            stop_token_ids=list(p.stop_token_ids),
            ignore_eos=True,  # the caller's stop ids alone end a turn
            logprobs=0,
            flat_logprobs=True,  # lists instead of one object a token
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

        def finish(output: Any) -> None:
            out = output.outputs[0]
            ids = tuple(out.token_ids)
            logprobs = tuple(out.logprobs.logprobs)
            if tuple(out.logprobs.token_ids) != ids:
                raise RuntimeError(f"vLLM returned log-probabilities of other tokens than those of request {request.id}")
            reason, error = ("stop" if out.finish_reason == "stop" else "length"), ""
            if not all(math.isfinite(x) for x in logprobs):
                reason, error = "error", "the sampler's log-probabilities are not finite"
            routes = None
            if self.routes is not None:
                routes = self.routes.read(internal, request.routes_from, len(tokens) + len(ids) - 1)
            done(Completion(request.id, ids, logprobs, version.number, reason, error, routes))  # type: ignore[arg-type]

        internal = self._add(tokens, params, version, finish)

    def score(self, sequences: list[list[int]], number: int | None, future: Future[list[list[float]]]) -> None:
        """Open one request a sequence; ``future`` gets all log-probabilities when the last is done."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        version = self.versions.current if number is None else self.versions.get(number)
        for tokens in sequences:
            self._check_tokens(tokens, self.max_len - 1)
        results: list[list[float]] = [[] for _ in sequences]
        wanted = [i for i, tokens in enumerate(sequences) if len(tokens) > 1]
        left = len(wanted)
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )

        def finish(i: int, output: Any) -> None:
            nonlocal left
            tokens, given = sequences[i], output.prompt_logprobs
            results[i] = [given[at][token].logprob for at, token in enumerate(tokens) if at > 0]
            left -= 1
            if left == 0 and not future.done():
                future.set_result(results)

        if not wanted:
            future.set_result(results)
        for i in wanted:
            self._add(sequences[i], params, version, functools.partial(finish, i))

    def step(self) -> None:
        for output in self.engine.step():
            if output.finished:
                self._done.pop(output.request_id)(output)
        self._drop(self.versions.stale())

    def sync(self, adapter_dir: str | Path, number: int, activate: bool) -> None:
        if self.adapter is None:
            raise BadInput("this sampler was built without adapter: it serves the base alone")
        if self.reloads:
            self._replace(Path(adapter_dir), number, activate)
            return
        version = self.versions.add(adapter_dir, number, self.dtype)
        try:
            try:
                self.engine.add_lora(self._lora(version))
            except ValueError as e:  # vLLM's own refusal must not end the engine, and every open request with it
                raise BadInput(f"{adapter_dir}: vLLM does not take this adapter: {e}") from e
            if version.routers:
                self._routers().put(self.manager, self.config, version.id, version.routers)
            resident.read(self.manager, version.id, self.config, version.peft)
        except Exception:
            self._forget(version)
            raise
        self._drop(self.versions.admit(version, activate))
        # The version is in every cached block's hash, so an old policy's blocks can't be hit; this frees them.
        self.engine.reset_prefix_cache()

    def release(self, number: int) -> None:
        self._drop(self.versions.release(number))

    def _drop(self, versions: list[Version]) -> None:
        for version in versions:
            if version.path is not None:
                self.engine.remove_lora(version.id)
                self._forget(version)

    def _forget(self, version: Version) -> None:
        if version.routers:
            self._routers().forget(self.manager, self.config, version.id)
        self.versions.forget(version)

    def _routers(self) -> Any:
        """The plugin's part that gives adapters routers of their own."""
        from frontier_tune.experts import vllm_plugin_router  # imports vllm

        return vllm_plugin_router

    def resident(self, number: int) -> dict[str, str]:
        version = self.versions.get(number)
        if self.reloads:
            return canonical.digests(reload.held(self.engine, self.config, self.dtype))
        if version.path is None:
            return {}
        self.engine.add_lora(self._lora(version))  # back into a slot where it was evicted
        return canonical.digests(resident.read(self.manager, version.id, self.config, version.peft))

    def _replace(self, directory: Path, number: int, activate: bool) -> None:
        """Serve the model of ``directory`` as version ``number``, and nothing else."""
        if not activate:
            raise BadInput(
                f"version {number}: a sampler of whole models holds the one that it samples from, and no other beside it"
            )
        self.versions.require_new(number)
        whole.check_files(directory)
        self.reload(directory)
        self.versions.replace(number)

    def reload(self, directory: Path | None = None) -> None:
        """Read all weights again, from ``directory`` (default: where they were read last)."""
        if self.busy:
            raise BadInput("the base's weights can't be read again while requests are open")
        reload.reload(self.engine, directory, adapters=self.adapter is not None)

    def close(self) -> None:
        """Shut the engine down. The process groups of vLLM belong to all engines of a process: they go with the last one."""
        global _engines
        from vllm.v1.engine import core

        with _closing:
            _engines -= 1
            stock = core.cleanup_dist_env_and_memory
            if _engines:
                core.cleanup_dist_env_and_memory = lambda *args, **kwargs: None
            try:
                self.engine.engine_core.shutdown()
            finally:
                core.cleanup_dist_env_and_memory = stock
