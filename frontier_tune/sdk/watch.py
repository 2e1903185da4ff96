"""Watch an environment's own code for what leaves the episode, by the interpreter's audit events (PEP 578). For audits alone."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> how many of its arguments are paths. sqlite3 opens files past Python's ``open``.
_PATHS = {"open": 1, "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1, "os.link": 2,
          "os.symlink": 2, "sqlite3.connect": 1}  # fmt: skip
_ALWAYS = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "socket.connect", "socket.sendto",
           "socket.sendmsg"}  # fmt: skip
# The platform's own code that tools call for what they may do: the sandbox for model-written code.
_EXEMPT = (os.sep + os.path.join("frontier_tune", "sandbox") + os.sep,)

_found: list[str] | None = None
_installed = False


@contextmanager
def watching() -> Iterator[list[str]]:
    """Events of the body's duration that leave the episode: writes outside the temporary directory, processes, peers.

    Reading files is no such event. What compiled code does by itself is not seen; a database that it opens is.
    """
    global _found, _installed
    if not _installed:  # a hook can't be taken out again; without a list it does nothing
        sys.addaudithook(_hook)
        _installed = True
    found: list[str] = []
    _found = found
    try:
        yield found
    finally:
        _found = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _found
    if _found is None or not (event in _ALWAYS or event in _PATHS):
        return
    found, _found = _found, None  # what is done here is not watched
    try:
        told = _told(event, arguments)
        if told and not _exempt():
            found.append(told)
    finally:
        _found = found


def _told(event: str, arguments: tuple[Any, ...]) -> str:
    """The event in words, or nothing where it stays within the episode."""
    if event in _ALWAYS:
        peer = arguments[1] if event.startswith("socket.") and len(arguments) > 1 else arguments[0] if arguments else ""
        return f"{event} {peer!r:.100}"
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
        return ""
    outside = [path for path in map(_path, arguments[: _PATHS[event]]) if path and not _own(path)]
    return f"{event} {outside[0]}" if outside else ""


def _path(value: Any) -> str:
    if isinstance(value, int) or value is None:  # a descriptor: it was opened before
        return ""
    path = os.fsdecode(value)
    if (
        path in ("", ":memory:")
        or path.startswith("file:")
        and ("mode=ro" in path or "immutable=1" in path or ":memory:" in path)
    ):
        return ""
    return os.path.realpath(path.removeprefix("file:").partition("?")[0])


def _own(path: str) -> bool:
    temporary = os.path.realpath(tempfile.gettempdir()) + os.sep
    return path.startswith((temporary, "/dev/")) or "__pycache__" in path


def _exempt() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in _EXEMPT):
            return "worker.py" not in frame.f_code.co_filename
        frame = frame.f_back
    return False
