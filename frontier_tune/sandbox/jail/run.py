"""One run of model-written code: a fork of the zygote that locks itself in and executes; the zygote watches and buries it."""

from __future__ import annotations

import builtins
import contextlib
import linecache
import os
import resource
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import landlock, limits, seccomp, workdir

OUT_OF_MEMORY = 77  # exit status of an interpreter that met a MemoryError and had nothing to handle it
NOT_LOCKED = 78  # ... that could not set its own locks: no code was run
SCRIPT = "code.py"
LOOK_EVERY_S = 0.05
MOST_DESCRIPTORS = 4096  # far above what a zygote ever has open


@dataclass
class Ended:
    """How a run ended. ``killed_by``: which limit, or ``signal``; ``machine`` where neither a limit nor itself killed it."""

    exit: int
    killed_by: str | None
    stdout: bytes
    stderr: bytes
    seconds: float
    files: dict[str, bytes] = field(default_factory=dict)


def run(setup: dict[str, Any], source: str, files: dict[str, bytes], artifacts: list[str]) -> Ended:
    """Run ``source`` in a directory that holds ``files``; bring back ``artifacts``. The directory is empty again afterwards."""
    directory = setup["work"]  # all that a run can write to
    if os.listdir(directory):
        raise RuntimeError("the run directory is not empty")
    try:
        workdir.fill(directory, files)
        ended = _watch(setup, source, directory)
        if ended.killed_by is None:
            found = workdir.collect(directory, artifacts, int(setup["limits"]["disk_mb"]) << 20)
            ended.files = found or {}
            ended.killed_by = "disk" if found is None else None
        return ended
    finally:
        workdir.clear(directory)


def _watch(setup: dict[str, Any], source: str, directory: str) -> Ended:
    bounds = setup["limits"]
    pipes = [os.pipe(), os.pipe()]
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_the_run(setup, source, directory, [w for _, w in pipes])
    for _, w in pipes:
        os.close(w)
    pidfd = os.pidfd_open(pid)
    output: dict[int, bytearray] = {r: bytearray() for r, _ in pipes}
    room = int(bounds["output_kb"]) * 1024
    poll = select.poll()
    for fd in (*output, pidfd):
        poll.register(fd, select.POLLIN)
    if setup["parent"] is not None:
        poll.register(setup["parent"], 0)  # only that it hung up
    killed_by, waiting, looked = None, {*output, pidfd}, start
    try:
        while waiting:
            for fd, event in poll.poll(LOOK_EVERY_S * 1000):
                if fd == setup["parent"]:
                    if event & (select.POLLHUP | select.POLLERR):
                        killed_by = "parent"
                elif fd == pidfd:
                    waiting.discard(fd)
                    poll.unregister(fd)
                else:
                    chunk = os.read(fd, min(1 << 16, room + 1))
                    output[fd] += chunk[:room]
                    if len(chunk) > room:
                        killed_by = "output"
                    room -= min(room, len(chunk))
                    if not chunk:
                        waiting.discard(fd)
                        poll.unregister(fd)
            now = time.monotonic()
            if now - start > bounds["wall_s"]:
                killed_by = killed_by or "wall"
            if now - looked > LOOK_EVERY_S and pidfd in waiting:
                looked = now
                if _too_much_on_disk(setup, directory, pid):
                    killed_by = killed_by or "disk"
            if killed_by:
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        for fd in (*output, pidfd):
            os.close(fd)
    exit_code = os.waitstatus_to_exitcode(status)
    killed_by = killed_by or _why(exit_code, usage, bounds)
    if killed_by is None and _too_much_on_disk(setup, directory, None):
        killed_by = "disk"
    stdout, stderr = (bytes(output[r]) for r, _ in pipes)
    return Ended(exit_code, killed_by, stdout, stderr, time.monotonic() - start)


def _why(exit_code: int, usage: resource.struct_rusage, bounds: dict[str, float]) -> str | None:
    if exit_code == OUT_OF_MEMORY:
        return "memory"
    if exit_code == NOT_LOCKED:
        return "machine"
    if exit_code >= 0:
        return None
    # The filter lets no run kill itself by SIGKILL: it is the CPU limit's, or the machine's (out of memory, an operator).
    # The kernel counts towards that limit in ticks, and what it reports is a little less or more.
    spent = usage.ru_utime + usage.ru_stime >= 0.7 * max(1, round(bounds["cpu_s"]))
    if -exit_code == signal.SIGXCPU or (-exit_code == signal.SIGKILL and spent):
        return "cpu"
    return "machine" if -exit_code == signal.SIGKILL else "signal"


def _too_much_on_disk(setup: dict[str, Any], directory: str, pid: int | None) -> bool:
    most = int(setup["limits"]["entries"])
    if setup["own_tmpfs"]:  # its size is the limit of bytes, kept by the kernel; deleted files that are open count, too
        status = os.statvfs(directory)
        return status.f_files - status.f_ffree > most + 8
    size, count = limits.used(directory, pid, most)
    return count > most or size > int(setup["limits"]["disk_mb"]) << 20


def _be_the_run(setup: dict[str, Any], source: str, directory: str, outputs: list[int]) -> NoReturn:
    """In the fork: lock up, execute, end. Nothing of the zygote's is reachable from here."""
    status = NOT_LOCKED
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((null, 0), (outputs[0], 1), (outputs[1], 2)):
            os.dup2(fd, target)
        os.closerange(3, MOST_DESCRIPTORS)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
        os.chdir(directory)
        limits.apply(setup["limits"], count_processes=setup["own_users"])
        limits.drop_capabilities()
        if setup["landlock"] is not None:
            landlock.restrict(setup["landlock"]["roots"], [directory, os.devnull], scoped=True)
        seccomp.install(os.getpid())
        status = _execute(source)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _execute(source: str) -> int:
    """Run ``source`` as ``python code.py`` would; the exit status that it would have."""
    linecache.cache[SCRIPT] = (len(source), None, source.splitlines(keepends=True), SCRIPT)
    sys.argv = [SCRIPT]
    module = type(sys)("__main__")
    module.__dict__["__builtins__"] = builtins  # a script has the module there, not its dictionary
    sys.modules["__main__"] = module
    try:
        exec(compile(source, SCRIPT, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return (e.code or 0) & 0xFF
        print(e.code, file=sys.stderr)
        return 1
    except MemoryError:
        print("MemoryError", file=sys.stderr)
        return OUT_OF_MEMORY
    except BaseException as e:
        shown = e.__traceback__.tb_next if e.__traceback__ else None  # without our own frame
        traceback.print_exception(type(e), e, shown)
        return 1
    return 0
