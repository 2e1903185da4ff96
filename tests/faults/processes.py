"""A run as a process from outside: its output, who belongs to it, who is killed, and what is left of it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.faults.conftest import ROOT

ROLES = {"sampler": "ray::Sampler", "episodes": "ray::Episode", "learner": "ray::Learner", "environment": "sandbox.worker"}


class Run:
    """``python -m tests.faults.driver`` in a session of its own, or another ``command`` that is started in ``root``."""

    def __init__(
        self,
        root: Path,
        home: Path,
        slow: dict[str, float] | None = None,
        command: Sequence[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.out, self.killed = root / "out.txt", False
        self._file = self.out.open("a")
        self._from = self.out.stat().st_size
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "tests.faults.driver", str(root), str(home), json.dumps(slow or {})],
            cwd=root if command else ROOT,
            env=env or os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self.family: dict[int, psutil.Process] = {}

    @property
    def said(self) -> str:
        return self.out.read_text()[self._from :]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def until(self, done: Callable[[], bool], seconds: float = 600.0) -> None:
        """Wait, noting who belongs to the run. Raises AssertionError where it ends first, or never gets there."""
        end = time.monotonic() + seconds
        while not done():
            assert self.running, self.said
            assert time.monotonic() < end, self.said
            self.look()
            time.sleep(0.1)

    def watch(self, seconds: float) -> None:
        """Let it run for so long."""
        end = time.monotonic() + seconds
        while self.running and (left := end - time.monotonic()) > 0:
            self.look()
            time.sleep(min(left, 0.3))

    def said_that(self, *words: str) -> None:
        for word in words:
            self.until(lambda w=word: w in self.said)  # type: ignore[misc]

    def says_more(self, word: str) -> None:
        """Wait until it says ``word`` once more than it has so far."""
        before = self.said.count(word)
        self.until(lambda: self.said.count(word) > before)

    def look(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.family.setdefault(child.pid, child)
        return list(self.family.values())

    def strike(self, role: str, signum: int = signal.SIGKILL) -> bool:
        """Send ``signum`` to a process of ``role``; False where there is none now."""
        for child in reversed(self.look()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE and ROLES[role] in " ".join(child.cmdline()):
                    child.send_signal(signum)
                    return True
        return False

    def kill(self) -> None:
        """SIGKILL to the run's own process alone."""
        self.process.kill()
        self.killed = True
        self.wait()

    @property
    def scratch(self) -> list[str]:
        """What is left of the directory of the run's Ray. That of a killed run goes when another one starts."""
        return [str(p) for p in Path("/tmp").glob(f"ft-ray-{self.process.pid}-*")]

    def phase(self, home: Path) -> str:
        """What the run says that it is doing."""
        try:
            return str(json.loads((home / "status.json").read_text())["phase"])
        except (OSError, ValueError, KeyError):
            return "starting"

    def wait(self, seconds: float = 300.0) -> int:
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            self.look()
            time.sleep(0.1)
        code = self.process.wait(1)
        self._file.close()
        return code

    def orphans(self, seconds: float = 60.0) -> list[str]:
        """Command lines of those who belonged to the run and still live."""
        end = time.monotonic() + seconds
        while (left := [p for p in self.family.values() if _lives(p)]) and time.monotonic() < end:
            time.sleep(0.1)
        return [" ".join(p.cmdline()) for p in left]


def _end_with_parent() -> None:
    """In the child: tests that are cut off leave no run behind (PR_SET_PDEATHSIG, see prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def in_memory() -> set[str]:
    """Files in /dev/shm. Directories there are code sandboxes', which have a test of their own."""
    return {p.name for p in Path("/dev/shm").iterdir() if p.is_file()} if Path("/dev/shm").is_dir() else set()


def left_in_memory(before: set[str]) -> list[str]:
    """Files that were not there ``before`` and that no living process has open or mapped: nobody will remove them."""
    new = in_memory() - before
    held = ""
    for process in psutil.process_iter() if new else ():
        with contextlib.suppress(OSError):
            held += Path(f"/proc/{process.pid}/maps").read_text()
            held += " ".join(os.readlink(f) for f in Path(f"/proc/{process.pid}/fd").iterdir())
    return sorted(f"/dev/shm/{name}" for name in new & in_memory() if f"/dev/shm/{name}" not in held)
