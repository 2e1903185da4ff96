"""The process that environments live in: ``python -m frontier_tune.sandbox.worker``, started by EnvironmentPool.

JSON lines come on standard input and go to standard output; the author's code gets neither. First line in:
``{"path", "root", "options", "memory_mb", "allow_real_writes"}``; first line out: ``{"ready": {...}}`` or ``{"refused":
message}``. Then one line in ``{"id", "slot", "op", "payload"}`` gives one line out ``{"id", "result"}`` or
``{"id", "error": {"kind", "detail"}}``, in order.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, Message, Task
from frontier_tune.sandbox.process import descendants

if TYPE_CHECKING:
    from frontier_tune.sandbox.code import CodeSandbox
    from frontier_tune.sdk import WorkflowEnv


def main() -> None:
    """Serve until standard input closes, then take the whole process group along."""
    commands, answers = _take_over_stdio()
    _die_with_parent()
    _adopt_orphans()
    lines = _lines(commands)
    try:
        setup = json.loads(next(lines))
        _limit_memory(setup.get("memory_mb"))
        host = Host(setup)
        description = host.describe()
    except Exception as e:
        known = isinstance(e, BadInput)
        _write(answers, {"refused": str(e) if known else traceback.format_exc(limit=-3), "bad_input": known})
        return
    _write(answers, {"ready": description})
    for line in lines:
        command = json.loads(line)
        try:
            answer = {"id": command["id"], "result": host.run(command["slot"], command["op"], command["payload"])}
        except (Exception, SystemExit) as e:
            kind = "not-implemented" if isinstance(e, NotImplementedError) else f"{command['op']}-raised"
            answer = {"id": command["id"], "error": {"kind": kind, "detail": _explain(e)}}
        _write(answers, answer)
    host.close()
    for pid in descendants(os.getpid()):  # what the author's code left running must not outlive us
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Host:
    """The environments of one worker: one per slot; closed slots' environments are used again."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._code: CodeSandbox | None = None
        self._idle: list[WorkflowEnv] = [self._new()]
        self._slots: dict[int, WorkflowEnv] = {}

    def _new(self) -> WorkflowEnv:
        """A new environment; one whose tools run code gets the sandbox, which all of them share. Raises SandboxUnavailable."""
        from frontier_tune.sdk import RunsCode, load_environment

        env = load_environment(self._setup["path"], self._setup["root"], **self._setup["options"])
        if isinstance(env, RunsCode):
            from frontier_tune.sandbox.code import CodeSandbox

            self._code = self._code or CodeSandbox(env.code_limits, env.code_packages)
            env.attach_code(self._code)
        env.effects.prepare(self._setup.get("allow_real_writes", ()))
        return env

    def describe(self) -> dict[str, Any]:
        from frontier_tune.sdk.registry import loaded_code

        env = self._idle[0]
        options = list(inspect.signature(type(env)).parameters)
        description: dict[str, Any] = {"name": env.name, "version": env.version, "schemas": env.schemas, "options": options}
        description["effects"] = env.effects.of_tools
        description["code"] = loaded_code(self._setup["path"], self._setup["root"])
        return description | {"limits": asdict(env.limits), "confinement": self._code.confinement if self._code else None}

    def run(self, slot: int, op: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One operation; the result is JSON."""
        if op == "step":
            messages, reward, terminated, truncated, info = self._slots[slot].step(payload["action"])
            ends = {"reward": reward, "terminated": terminated, "truncated": truncated}
            return {"messages": _json(messages), **ends, "info": info}
        if op == "reset":
            if slot not in self._slots:
                self._slots[slot] = self._idle.pop() if self._idle else self._new()
            options = {k: payload[k] for k in ("task", "max_turns") if payload.get(k) is not None}
            messages, info = self._slots[slot].reset(seed=payload.get("seed"), options=options)
            return {"messages": _json(messages), "info": info}
        if op == "truncate":
            reward, info = self._slots[slot].truncate()
            return {"reward": reward, "info": info}
        if op == "close":
            if slot in self._slots:
                self._idle.append(self._slots.pop(slot))
            return {}
        if op == "examine":
            from frontier_tune.sdk.examine import examine

            return examine(self._new, **payload)
        with self._any() as env:
            if op == "tasks":
                from frontier_tune.sdk.tasks import draw_tasks

                return {"tasks": [t.to_json() for t in draw_tasks(env, payload["split"], payload["n"], payload["seed"])]}
            if op == "golden":
                return {"calls": env.golden(Task(**payload["task"]))}
            if op == "canaries":
                return {"scripts": env.canary_scripts(Task(**payload["task"]))}
        raise BadInput(f"unknown operation '{op}'; known: reset, step, truncate, close, tasks, golden, canaries, examine")

    def close(self) -> None:
        for env in (*self._idle, *self._slots.values()):
            env.close()
        if self._code:
            self._code.close()

    @contextlib.contextmanager
    def _any(self) -> Iterator[WorkflowEnv]:
        env = self._idle.pop() if self._idle else self._new()
        try:
            yield env
        finally:
            self._idle.append(env)


def _json(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _explain(e: BaseException) -> str:
    if isinstance(e, BadInput):
        return str(e)
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {e} ({frame.filename}:{frame.lineno} in {frame.name})"


def _take_over_stdio() -> tuple[int, int]:
    """Keep the protocol's two ends for ourselves: what the author's code prints goes to stderr, what it reads is empty."""
    commands, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return commands, answers


def _lines(fd: int) -> Iterator[bytes]:
    rest = b""
    while chunk := os.read(fd, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _write(fd: int, answer: dict[str, Any]) -> None:
    try:
        data = json.dumps(answer, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as e:
        error = {"kind": "not-json", "detail": f"the environment's answer is no JSON: {e}"}
        data = json.dumps({"id": answer.get("id"), "error": error}).encode() + b"\n"
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _die_with_parent() -> None:
    """A killed parent closes no pipe of a worker that hangs: a thread looks whether the parent is still there."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _adopt_orphans() -> None:
    """Be the parent of processes whose own parent ended: a daemon that the author's code started is still found from here."""
    import ctypes

    PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _limit_memory(megabytes: int | None) -> None:
    if megabytes:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


if __name__ == "__main__":
    main()
