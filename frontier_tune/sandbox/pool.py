"""``EnvironmentPool``: many running episodes in a few killable worker processes, driven from one thread without blocking."""

from __future__ import annotations

import errno
import select
import selectors
import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from frontier_tune.contracts import BadInput, Blame, Failure, FrontierTuneError, Task
from frontier_tune.sandbox.process import Operation, WorkerProcess

Result = dict[str, Any] | Failure
STARTS = 3  # workers in a row that may be killed from outside before one is up
_EXHAUSTED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # of the machine: processes, memory, descriptors
TRIES = 3  # times that an operation which needs no reset is done where its worker is ended by something else


class WorkerStartError(FrontierTuneError):
    """A worker process did not come up, for a reason that is not the user's input. ``blame``: whose fault it was."""

    blame = Blame.ENVIRONMENT


class EnvironmentPool:
    """Environments in worker processes. A slot is one episode; it stays with one worker from ``reset`` to ``close``.

    Operations and their payloads -> results (JSON):

    - ``reset`` {"task": Task JSON, "seed", "max_turns"} (each optional) -> {"messages", "info"}
    - ``step`` {"action"} -> {"messages", "reward", "terminated", "truncated", "info"}
    - ``truncate`` {} -> {"reward", "info"}: end and grade an episode from outside
    - ``tasks`` {"split", "n", "seed"} -> {"tasks"}; ``golden`` {"task"} -> {"calls"}; ``canaries`` {"task"} ->
      {"scripts"}; these need no reset; "not-implemented" is the kind of failure where the environment has none
    - ``examine`` {"what", ...} -> what an audit asks, see sdk/examine.py; no reset either
    - ``close`` {}: forget the slot; nothing is reported for it any more

    An operation that keeps its worker silent for longer than ``step_timeout_s`` fails with kind ``step-timeout`` (blame
    environment); the worker is killed with all its processes and replaced, and its other slots fail with ``worker-killed`` (blame
    infrastructure): at once where an operation was under way, else at their next one. What needs no reset is done by the next
    worker instead, unless it is to blame. Not thread-safe.

    Args:
        path, root, options: the environment, as ``sdk.load_environment`` takes it.
        workers: processes. step_timeout_s, start_timeout_s: seconds. memory_mb: address space of each worker.
        log: file that workers' standard error and the environments' prints are appended to; the parent's by default.
        allow_real_writes: tools with the effect ``real`` that may run; every other one fails the episode that calls it.

    Raises BadInput where the environment can't be loaded, or its code is another when a worker is replaced; WorkerStartError
    where a worker can't start: one that is killed from outside meanwhile is replaced, twice in a row.
    """

    def __init__(
        self,
        path: str,
        root: str | Path = ".",
        options: dict[str, Any] | None = None,
        workers: int = 1,
        step_timeout_s: float = 20.0,
        *,
        start_timeout_s: float = 120.0,
        memory_mb: int | None = None,
        log: str | Path | None = None,
        allow_real_writes: Sequence[str] = (),
    ) -> None:
        self._setup: dict[str, Any] = {"path": path, "root": str(Path(root).resolve()), "options": options or {}}
        self._setup |= {"memory_mb": memory_mb, "allow_real_writes": list(allow_real_writes)}
        self._step_timeout, self._start_timeout = step_timeout_s, start_timeout_s
        self._log: IO[bytes] | None = open(log, "ab") if log else None  # noqa: SIM115  # closed in close()
        self._selector = selectors.DefaultSelector()
        self._operations = self._next_slot = 0
        self._worker_of: dict[int, WorkerProcess] = {}
        self._lost: dict[int, Failure] = {}
        self._results: deque[tuple[int, Result]] = deque()
        self.restarts = self._start_deaths = 0
        self._description: dict[str, Any] = {}
        self._workers: list[WorkerProcess] = []
        try:
            self._workers += [self._start() for _ in range(workers)]
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def description(self) -> dict[str, Any]:
        """``name``, ``version``, ``schemas`` (tools, OpenAI's format), ``effects`` (by tool), ``options`` (names), ``limits``,
        ``code`` (digests of its modules)."""
        return self._description

    @property
    def pids(self) -> list[int]:
        return [w.process.pid for w in self._workers]

    def new_slot(self) -> int:
        """A slot number that nobody else of this pool uses."""
        self._next_slot += 1
        return 1_000_000 + self._next_slot

    def submit(self, slot: int, op: str, payload: dict[str, Any] | None = None) -> None:
        """Hand an operation in. Its result comes from ``poll``; each but ``close`` gives exactly one."""
        if op == "close":
            self._close_slot(slot)
            return
        if slot in self._lost:
            failure = self._lost.pop(slot)
            if op != "reset":
                self._results.append((slot, failure))
                return
        worker = self._worker_of.get(slot)
        if worker is None:
            if op in ("step", "truncate"):
                raise ValueError(f"slot {slot}: '{op}' before 'reset'")
            worker = min(self._workers, key=lambda w: w.load)
            if op == "reset":
                self._worker_of[slot] = worker
                worker.slots.add(slot)
        self._send(worker, slot, op, payload or {})

    def poll(self, timeout: float = 0.0) -> list[tuple[int, Result]]:
        """Results that are there, waiting up to ``timeout`` seconds for the first. Never blocks without operations under way."""
        end = time.monotonic() + timeout
        while True:
            busy = any(w.running or w.waiting or w.ready is None for w in self._workers)
            remaining = 0.0 if self._results or not busy else max(0.0, end - time.monotonic())
            self._pump(min(remaining, self._until_deadline()))
            if self._results or not busy or time.monotonic() >= end:
                break
        found = list(self._results)
        self._results.clear()
        return found

    def call(self, op: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """One operation, waited for; other slots' results are kept for ``poll``. Raises BadInput with the failure's detail."""
        slot, kept = self.new_slot(), list(self._results)
        self._results.clear()
        self.submit(slot, op, payload)
        own: list[Result] = []
        while not own:
            for found, result in self.poll(1.0):  # all of them: others may have come with ours
                if found == slot:
                    own.append(result)
                else:
                    kept.append((found, result))
        self._results.extend(kept)
        result = own[0]
        if isinstance(result, Failure):
            raise BadInput(f"environment {self._setup['path']}: {result.kind}: {result.detail}")
        return result

    def tasks(self, split: str, n: int, seed: int) -> list[Task]:
        """``n`` checked tasks of a split. Raises BadInput (too few, duplicates, another split's, the generator's exception)."""
        return [Task(**t) for t in self.call("tasks", {"split": split, "n": n, "seed": seed})["tasks"]]

    def golden(self, task: Task) -> list[str]:
        """The golden program's calls for ``task``. Raises BadInput where the environment has none."""
        return list(self.call("golden", {"task": task.to_json()})["calls"])

    def close(self) -> None:
        """End every worker and what it started: idle ones get a second to close their environments. May be called again."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            if worker.ready is not None and not worker.running:
                select.select([worker.answers], [], [], 1.0)
            self._selector.unregister(worker.answers)
            worker.kill()
        self._workers.clear()
        self._worker_of.clear()
        if self._log:
            self._log.close()

    def _start(self) -> WorkerProcess:
        try:
            worker = WorkerProcess(self._setup, self._log)
        except OSError as e:
            if e.errno not in _EXHAUSTED:
                raise
            error = WorkerStartError(f"environment {self._setup['path']}: no process can be started now: {e}")
            error.blame = Blame.INFRASTRUCTURE
            raise error from e
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        worker.write()
        return worker

    def _wait_until_ready(self) -> None:
        while any(w.ready is None for w in self._workers):
            self._pump(self._until_deadline())

    def _send(self, worker: WorkerProcess, slot: int, op: str, payload: dict[str, Any]) -> None:
        self._operations += 1
        worker.waiting.append(Operation(self._operations, slot, op, payload))
        worker.write()

    def _close_slot(self, slot: int) -> None:
        self._lost.pop(slot, None)
        self._results = deque(r for r in self._results if r[0] != slot)
        worker = self._worker_of.pop(slot, None)
        if worker is not None:
            worker.slots.discard(slot)
            for operation in (*worker.running, *worker.waiting):
                operation.dropped |= operation.slot == slot
            self._send(worker, slot, "close", {})

    def _until_deadline(self) -> float:
        since = [(w.silent_since(), self._step_timeout if w.ready is not None else self._start_timeout) for w in self._workers]
        return max(0.0, min((s + limit for s, limit in since if s is not None), default=float("inf")) - time.monotonic())

    def _pump(self, timeout: float) -> None:
        """Move bytes, take answers in, replace workers that are dead or late."""
        if any(w.has_to_write for w in self._workers):
            timeout = min(timeout, 0.001)  # a full pipe: come back soon
        for key, _ in self._selector.select(min(timeout, 3600.0)):
            worker: WorkerProcess = key.data
            answers, closed = worker.read()
            for answer in answers:
                self._take(worker, answer)
            if closed and worker in self._workers:
                status = worker.exit_status()
                blame = Blame.INFRASTRUCTURE if status == -signal.SIGKILL else Blame.ENVIRONMENT  # from outside, or out of memory
                self._replace(worker, Failure("worker-died", blame, f"the worker process ended (status {status})"))
        now = time.monotonic()
        for worker in list(self._workers):
            worker.write()
            since = worker.silent_since()
            limit = self._step_timeout if worker.ready is not None else self._start_timeout
            if since is not None and now - since > limit:
                self._replace(worker, Failure("step-timeout", Blame.ENVIRONMENT, f"took longer than {limit:g} s"))

    def _take(self, worker: WorkerProcess, answer: dict[str, Any]) -> None:
        if "refused" in answer:
            raise (BadInput if answer["bad_input"] else WorkerStartError)(answer["refused"])
        if "ready" in answer:
            before, now = self._description.get("code", {}), answer["ready"]["code"]
            if others := [file for file in now if before.get(file, now[file]) != now[file]]:
                raise BadInput(
                    f"environment {self._setup['path']}: {others[0]} was changed while episodes are played, so that a new worker "
                    "would grade by other rules than those before; put back what was there"
                )
            answer["ready"]["code"] = before | now
            worker.ready = self._description = answer["ready"]
            self._start_deaths = 0
            return
        operation = worker.running.popleft()
        if operation.id != answer["id"]:
            raise RuntimeError(f"worker {worker.process.pid} answered {answer['id']} where {operation.id} was due")
        if not operation.dropped and operation.op != "close":
            self._results.append((operation.slot, _result(answer)))

    def _replace(self, worker: WorkerProcess, cause: Failure) -> None:
        """Kill ``worker``, fail its slots (``cause``: the fault of the operation at the head) and start another in its place."""
        self._selector.unregister(worker.answers)
        worker.kill()
        if worker.ready is None:
            self._start_deaths += 1
            if cause.blame is not Blame.INFRASTRUCTURE or self._start_deaths >= STARTS:
                self._workers.remove(worker)
                error = WorkerStartError(f"environment {self._setup['path']}: a worker did not start: {cause.detail}")
                error.blame = cause.blame
                raise error
            after = self._start_instead(worker)  # none of its operations has begun: they are the next one's
            after.slots, after.waiting = worker.slots, worker.waiting
            self._worker_of |= dict.fromkeys(worker.slots, after)
            return
        head = worker.running[0] if worker.running else None
        other = Failure("worker-killed", Blame.INFRASTRUCTURE, f"its worker process was ended by another episode's {cause.kind}")
        failed: set[int] = set()
        again: list[Operation] = []
        for operation in (*worker.running, *worker.waiting):
            if operation.dropped or operation.op == "close" or operation.slot in failed:
                continue
            blameless = operation is not head or cause.blame is Blame.INFRASTRUCTURE
            if operation.stateless and blameless and operation.tries < TRIES:
                operation.tries += 1
                again.append(operation)
                continue
            failed.add(operation.slot)
            failure = other
            if operation is head:
                shown = str(operation.payload.get("action", operation.payload))[:200]
                detail = f"{operation.op} {shown!r}: {cause.detail} (worker {worker.process.pid})"
                failure = Failure(cause.kind, cause.blame, detail)
            self._results.append((operation.slot, failure))
        for slot in worker.slots:
            del self._worker_of[slot]
            if slot not in failed:
                self._lost[slot] = other
        self._start_instead(worker).waiting.extend(again)

    def _start_instead(self, worker: WorkerProcess) -> WorkerProcess:
        self.restarts += 1
        place = self._workers.index(worker)
        del self._workers[place]  # first: where no other can be started there is none to be closed
        after = self._start()
        self._workers.insert(place, after)
        return after


def _result(answer: dict[str, Any]) -> Result:
    """The answer's result; what failed is a Failure, whether the worker or the environment says so."""
    if "error" in answer:
        return Failure(answer["error"]["kind"], Blame.ENVIRONMENT, answer["error"]["detail"])
    failure = (answer["result"].get("info") or {}).get("failure")
    if failure:
        return Failure(failure["kind"], Blame(failure["blame"]), failure["detail"])
    return dict(answer["result"])
