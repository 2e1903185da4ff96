"""vLLM in process behind the Sampler protocol: one thread steps the engine while requests come and go."""

from __future__ import annotations

import atexit
import queue
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from frontier_tune import recipe
from frontier_tune.contracts import BadInput, Blame, Completion, FrontierTuneError, Request
from frontier_tune.sampling.backend import SLOTS, Backend

T = TypeVar("T")
Command = Callable[[Backend], None]


class EngineFailed(FrontierTuneError):
    """The engine broke, and with it every request in flight. Never the agent's fault."""

    blame = Blame.INFRASTRUCTURE


class VLLMSampler:
    """Samples from a base and from the adapters synced into it. Implements ``contracts.Sampler``; thread-safe.

    Args:
        base_dir: directory of a transformers checkpoint (config.json and safetensors).
        sampler: the recipe's sampler section; ``kv_cache_mb`` is the whole KV cache.
        adapter: the recipe's adapter section, or None for a sampler without LoRA (``sync`` is refused).
        seed: seed of requests that bring none of their own.
        log_file: where vLLM's chatter goes; default: ``engine.log`` in a temporary directory.
        routes: give the experts of each position with every completion, as ``sampler.routes`` does.
        slots: adapters that one batch may mix; versions beyond them take turns.

    Requests are sampled under the version that is current when they are handed in, to their end. ``version`` 0 is the base.

    OpenMP reads its variables when torch is imported, so set ``environment.engine_environment`` before that.
    Raises BadInput for a base that can't be served, EngineFailed where vLLM doesn't start.
    """

    def __init__(
        self,
        base_dir: str | Path,
        sampler: recipe.Sampler,
        adapter: recipe.Adapter | None = None,
        *,
        seed: int = 0,
        log_file: str | Path | None = None,
        routes: bool = False,
        slots: int = SLOTS,
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="frontier-tune-sampler-")
        log = Path(log_file) if log_file else Path(self._scratch.name) / "engine.log"
        spool = Path(self._scratch.name) / "adapters"
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._lock = threading.Condition()
        self._finished: dict[str, list[Completion]] = {}
        self._open: dict[str, int] = {}
        self._gone = set[str]()  # clients
        self._futures: set[Future[Any]] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self.steps = 0  # forward passes so far
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(ready, lambda: Backend(Path(base_dir), sampler, adapter, seed, log, spool, routes, slots)),
            name="vllm-engine",
            daemon=True,
        )
        self._thread.start()
        ready.result()
        atexit.register(self.close)  # a daemon thread in native code at interpreter shutdown aborts the process

    # ---- what callers use

    def exchange(
        self, requests: Sequence[Request], client: str = "", version: int | None = None, wait: float | None = None
    ) -> list[Completion]:
        """Hand in ``requests``; block until at least one of all that ``client`` handed in is finished; return those.

        ``version``: the policy to sample under, the current one by default. Returns an empty list at once where nothing is open,
        and where nothing is finished after ``wait`` seconds. A request that can't be run comes back with finish "error".
        """
        requests = list(requests)
        with self._lock:
            self._check()
            if client in self._gone:
                return []
            self._open[client] = self._open.get(client, 0) + len(requests)
        if requests:
            self._put(lambda backend: self._submit(backend, client, requests, version))
        with self._lock:
            self._lock.wait_for(lambda: self._finished.get(client) or self._failure or not self._open.get(client), wait)
            if self._failure:
                self._check()
            if client in self._gone:
                return []
            done = self._finished.pop(client, [])
            self._open[client] = self._open.get(client, 0) - len(done)
            return done

    def forget(self, kept: Collection[str] = ()) -> None:
        """All clients but ``kept`` ask no more. What they have in flight is sampled to its end, and not kept."""
        with self._lock:
            gone = self._open.keys() - set(kept)
            self._gone |= gone
            for client in gone:
                del self._open[client]
                self._finished.pop(client, None)
            self._lock.notify_all()

    def score(self, sequences: Sequence[Sequence[int]], version: int | None = None) -> list[list[float]]:
        """Log-probability (natural, temperature 1) of every token but the first of each sequence. [len(s) - 1] each.

        ``version``: default the current one. Raises BadInput for a version or a sequence that can't be scored.
        """
        future: Future[list[list[float]]] = Future()
        return self._wait(future, lambda backend: backend.score([list(s) for s in sequences], version, future))

    def sync(self, adapter_dir: str | Path, version: int, activate: bool = True) -> None:
        """Load a PEFT adapter as policy ``version``. Requests handed in from now on are sampled under it.

        ``activate`` False loads it only for ``score`` and ``resident`` (a canary); it stays until ``release``.
        Raises BadInput for a version used before or an unusable directory, AdapterMismatch where tensors are missing or
        left over. The directory may change afterwards: the sampler has its own copy.
        """
        self._call(lambda backend: backend.sync(adapter_dir, version, activate))

    def release(self, version: int) -> None:
        """Let go of a version that was loaded with ``activate`` False."""
        self._call(lambda backend: backend.release(version))

    def resident(self, version: int) -> dict[str, str]:
        """Digest (SHA-256) of each canonical tensor of ``version``, from the buffers that vLLM computes with."""
        return self._call(lambda backend: backend.resident(version))

    def version(self) -> int:
        """The version that new requests are sampled under."""
        return self._call(lambda backend: backend.versions.current.number)

    def reload(self) -> None:
        """Read the base's weights again from its directory (idle engine only)."""
        self._call(lambda backend: backend.reload())

    def close(self) -> None:
        """Stop the engine. Callers that still wait get EngineFailed. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._commands.put(None)
        self._thread.join()
        self._scratch.cleanup()

    def __enter__(self) -> VLLMSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- between callers and the engine's thread

    def _check(self) -> None:
        if self._failure:
            raise EngineFailed(f"the sampling engine stopped: {type(self._failure).__name__}: {self._failure}") from self._failure
        if self._closed:
            raise EngineFailed("the sampling engine is closed")

    def _put(self, command: Command) -> None:
        with self._lock:
            self._check()
            self._commands.put(command)

    def _call(self, function: Callable[[Backend], T]) -> T:
        future: Future[T] = Future()
        return self._wait(future, lambda backend: future.set_result(function(backend)))

    def _wait(self, future: Future[T], command: Command) -> T:
        """Run ``command`` on the engine's thread and wait for ``future``. Typed errors of the command are the caller's."""

        def guarded(backend: Backend) -> None:
            try:
                command(backend)
            except FrontierTuneError as e:
                future.set_exception(e)

        with self._lock:
            self._check()
            self._futures.add(future)
            self._commands.put(guarded)
        try:
            return future.result()
        finally:
            with self._lock:
                self._futures.discard(future)

    def _submit(self, backend: Backend, client: str, requests: list[Request], version: int | None = None) -> None:
        for request in requests:
            try:
                backend.sample(request, lambda completion: self._deliver(client, completion), version)
            except BadInput as e:
                self._deliver(client, Completion(request.id, (), (), backend.versions.current.number, "error", str(e)))

    def _deliver(self, client: str, completion: Completion) -> None:
        with self._lock:
            if client not in self._gone:
                self._finished.setdefault(client, []).append(completion)
                self._lock.notify_all()

    def _run(self, ready: Future[None], build: Callable[[], Backend]) -> None:
        """The engine's thread: the only place from which the engine is called."""
        try:
            backend = build()
        except FrontierTuneError as e:
            self._fail(e)
            ready.set_exception(e)
            return
        except BaseException as e:
            self._fail(e)
            failed = EngineFailed(f"vLLM did not start: {type(e).__name__}: {e}")
            failed.__cause__ = e
            ready.set_exception(failed)
            return
        ready.set_result(None)
        try:
            while self._obey(backend):
                backend.step()
                self.steps += 1
            self._fail(RuntimeError("closed"))
        except BaseException as e:  # whatever it is, nobody may be left waiting
            self._fail(e)
        finally:
            backend.close()

    def _obey(self, backend: Backend) -> bool:
        """Run all commands that wait; sleep while there is nothing to do. False: close."""
        while True:
            try:
                command = self._commands.get(block=not backend.busy)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(backend)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = error
            for future in self._futures:
                if not future.done():
                    failed = EngineFailed(f"the sampling engine stopped: {type(error).__name__}: {error}")
                    failed.__cause__ = error
                    future.set_exception(failed)
            self._lock.notify_all()
