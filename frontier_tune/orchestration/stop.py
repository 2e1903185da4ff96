"""Stopping on request: the first Ctrl-C or SIGTERM asks the loop to save and end, the second ends everything at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from frontier_tune.contracts import FrontierTuneError


class Stopped(FrontierTuneError):
    """The run was asked to stop. ``exit_code`` is 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopRequest:
    """Context manager that turns signals into ``requested`` (a signal number, or None). Main thread only."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def install(self) -> None:
        """Take the signals over; again after Ray was started, which takes SIGTERM for itself."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def __enter__(self) -> StopRequest:
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signum
            os.write(2, b"\nstopping: saving what is done (once more ends at once, without saving)\n")
            return
        os.write(2, b"\nending at once; the last checkpoint stands\n")
        kill_descendants()
        os._exit(128 + signum)


def kill_descendants() -> None:
    """SIGKILL every process that this one started, directly or not, group by group: nothing stays behind."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:  # freeze first: a supervisor must not restart what was just killed
        _signal(child, signal.SIGSTOP)
    for child in psutil.Process().children(recursive=True) + children:
        _signal(child, signal.SIGKILL)
    sys.stdout.flush()


def _signal(process: Any, signum: int) -> None:
    try:
        os.kill(process.pid, signum)
    except ProcessLookupError:
        return
