"""What a run may use: rlimits of its process, and what they can't bound, measured while it runs."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Mapping


def apply(limits: Mapping[str, float], count_processes: bool) -> None:
    """Set the rlimits of this process. ``limits``: fields of CodeLimits. ``count_processes``: this sandbox has its own count."""
    megabyte = 1 << 20
    cpu = max(1, round(limits["cpu_s"]))
    _limit(resource.RLIMIT_CPU, cpu, cpu + 1)  # SIGXCPU, and a second later SIGKILL for those who ignore it
    _limit(resource.RLIMIT_AS, int(limits["memory_mb"]) * megabyte)
    _limit(resource.RLIMIT_FSIZE, int(limits["file_mb"]) * megabyte)
    _limit(resource.RLIMIT_NOFILE, int(limits["open_files"]))
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        _limit(none, 0)
    if count_processes:  # without a user namespace the user's processes all over the machine would count
        _limit(resource.RLIMIT_NPROC, int(limits["threads"]))


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    _, ceiling = resource.getrlimit(which)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))


def drop_capabilities() -> None:
    """Give up every privilege of root, for good. Does nothing where there is none. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, CAPSET, VERSION_3 = 24, 47, 4, 126, 0x20080522
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the last one was passed, or there is no privilege to drop any
    if libc.syscall(CAPSET, struct.pack("Ii", VERSION_3, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def used(directory: str, pid: int | None, entries: int) -> tuple[int, int]:
    """(bytes on disk, files and directories) below ``directory``, and of deleted files that ``pid`` still holds open.

    Stops counting past ``entries``. A tree that can't be walked counts as too large.
    """
    size = count = 0
    queue = [directory]
    while queue and count <= entries:
        here = queue.pop()
        try:
            with os.scandir(here) as found:
                for entry in found:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        queue.append(entry.path)
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue  # it was removed meanwhile
        except OSError:
            return size, entries + 1
    if pid is not None:
        size += _deleted(pid)
    return size, count


def _deleted(pid: int) -> int:
    size = 0
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            status = os.stat(f"/proc/{pid}/fd/{fd}")
            if status.st_nlink == 0:
                size += status.st_blocks * 512
    except OSError:
        return size  # it ended
    return size
