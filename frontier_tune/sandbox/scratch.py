"""Directories of code sandboxes that share the host's file system. Each is locked by the process that made it, as long as that
lives: one that nobody holds was left by a process that was killed, and goes when the next one looks."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from frontier_tune.sandbox.jail import workdir

PREFIX = "frontier-tune-code-"
MEMORY = Path("/dev/shm")


def parent() -> Path:
    """Where they lie: in memory, if this user may write there."""
    return MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def make() -> tuple[str, int]:
    """A new directory, and the descriptor that holds its lock. What was left by others is removed on the way."""
    clear_left()
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=parent())
        held = _hold(path)
        if held is not None:
            return path, held


def remove(path: str, held: int) -> None:
    """Remove a directory of ``make`` with all that is in it."""
    try:
        workdir.clear(path)
        os.rmdir(path)
    finally:
        os.close(held)


def clear_left() -> None:
    """Remove this user's directories that no living process holds."""
    for path in parent().glob(f"{PREFIX}*"):
        try:
            held = _hold(str(path)) if path.stat().st_uid == os.getuid() else None
            if held is not None:
                remove(str(path), held)
        except OSError:  # somebody else is removing it
            continue


def _hold(path: str) -> int | None:
    """A descriptor that holds the lock of ``path``; None where another process does, or has removed it meanwhile.

    The lock is flock's: the kernel lets go of it when its holder ends, however that comes about.
    """
    try:
        found = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(found), os.lstat(path)):
            return found
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(found)
    return None
