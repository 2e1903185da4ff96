"""A started sandbox as the host sees it: frames over pipes with a deadline, and an end that leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from typing import IO, Any

from frontier_tune.contracts import FrontierTuneError
from frontier_tune.sandbox import confine, scratch
from frontier_tune.sandbox.process import descendants
from frontier_tune.sandbox.runtime import Runtime

START_S = 60.0
GRACE_S = 20.0  # on top of a run's wall clock: filling, collecting and emptying its directory
HEAD_MOST = 1 << 20


class ZygoteDied(FrontierTuneError):
    """The sandbox did not start, ended, or went silent: not the fault of the code in it."""


class ZygoteProcess:
    """One sandbox with its zygote. ``start`` it, ``run`` in it, ``close`` it."""

    def __init__(self, kind: confine.Confinement, seen: Runtime, limits: dict[str, Any], preload: list[str]) -> None:
        self._kind, self._runtime, self._limits, self._preload = kind, seen, limits, preload
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._directory: str | None = None  # of a sandbox without a file system of its own
        self._held = -1  # the descriptor that says that it is in use

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it is ready. Raises ZygoteDied, SandboxUnavailable."""
        setup: dict[str, Any] = {"limits": self._limits, "preload": self._preload, "landlock": None}
        if self._kind == "bubblewrap":
            bwrap = shutil.which("bwrap")
            if bwrap is None:
                raise confine.SandboxUnavailable("bwrap was there and is gone: sudo apt-get install bubblewrap")
            command = confine.bubblewrap_command(bwrap, self._runtime, self._limits["disk_mb"])
            setup |= {"library": confine.OURS, "packages": confine.PACKAGES, "work": confine.WORK}
            setup |= {"own_tmpfs": True, "own_users": True}
            environment: dict[str, str] = {}
        else:
            library, packages, work = self._lay_out()
            command = confine.python_command(self._runtime, library)
            setup |= {"library": library, "packages": packages, "work": work, "own_tmpfs": False, "own_users": False}
            setup["landlock"] = confine.landlock_rules(self._runtime, packages)
            environment = confine.ENVIRONMENT | {"HOME": work, "TMPDIR": work}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        ready, _ = self._exchange(setup, [], START_S)
        if ready["missing"]:
            self.close()
            raise confine.SandboxUnavailable(
                f"sandbox: a granted package can't be imported inside: {'; '.join(ready['missing'])}"
            )

    def run(self, source: str, files: dict[str, bytes], artifacts: list[str]) -> tuple[dict[str, Any], list[bytes]]:
        """(What the zygote tells of the run, [stdout, stderr, contents of the artifacts named there]). Raises ZygoteDied."""
        head = {"source": source, "names": list(files), "artifacts": artifacts}
        return self._exchange(head, list(files.values()), self._limits["wall_s"] + GRACE_S)

    def close(self) -> None:
        """Kill the sandbox with all that is in it. May be called again."""
        if self._process is not None:
            family = descendants(self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for pid in family:  # a run is in a session of its own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process = None
        if self._directory is not None:
            scratch.remove(self._directory, self._held)
            self._directory = None

    def _lay_out(self) -> tuple[str, str, str]:
        """Directories (library, packages, work) of a sandbox that shares the host's file system."""
        self._directory, self._held = scratch.make()
        packages, work = os.path.join(self._directory, "packages"), os.path.join(self._directory, "work")
        os.mkdir(packages)
        os.mkdir(work, 0o700)
        for name, path in self._runtime.packages:
            os.symlink(path, os.path.join(packages, name))
        return os.path.dirname(confine.LIBRARY), packages, work

    def _exchange(self, head: dict[str, Any], contents: list[bytes], seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        end = time.monotonic() + seconds
        data = json.dumps(head | {"sizes": [len(c) for c in contents]}).encode() + b"\n" + b"".join(contents)
        assert self._process and self._process.stdin and self._process.stdout
        commands, answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        left, got, told, wanted = memoryview(data), bytearray(), None, 0
        while told is None or len(got) < wanted:
            remaining = end - time.monotonic()
            if remaining <= 0:
                raise ZygoteDied(f"the sandbox gave no answer within {seconds:.0f} s{self._last_words()}")
            readable, writable, _ = select.select([answers], [commands] if left else [], [], remaining)
            if writable:
                try:
                    left = left[os.write(commands, left[: 1 << 16]) :]
                except BrokenPipeError:
                    raise ZygoteDied(f"the sandbox ended{self._last_words()}") from None
            if readable:
                chunk = os.read(answers, 1 << 18)
                if not chunk:
                    raise ZygoteDied(f"the sandbox ended{self._last_words()}")
                got += chunk
                if told is None and b"\n" in got:
                    line, _, rest = got.partition(b"\n")
                    told, got = json.loads(line), bytearray(rest)
                    wanted = sum(told["sizes"])
                if told is None and len(got) > HEAD_MOST:
                    raise ZygoteDied("the sandbox does not speak its protocol")
        parts, at = [], 0
        for size in told["sizes"]:
            parts.append(bytes(got[at : at + size]))
            at += size
        return told, parts

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        words = self._errors.read()[-600:].decode(errors="replace").strip()
        return f": {words}" if words else ""
