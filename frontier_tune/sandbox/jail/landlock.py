"""Landlock: a process gives up all files but those under stated paths. By landlock(7); system calls through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

# Below 3 (Linux 6.2) a file can be truncated without a right to write.
NEEDED = 3
CREATE, ADD_RULE, RESTRICT = 444, 445, 446  # the same numbers on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
LIST = READ_DIR
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """ABI version of this kernel's Landlock; 0 where there is none or it is off."""
    if platform.system() != "Linux":
        return 0
    return max(0, int(_libc.syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def everything(abi: int) -> int:
    """All rights on files that this version knows."""
    return (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1


def restrict(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str] = (), scoped: bool = False) -> None:
    """From now on this process and its children may read below ``readable``, do anything below ``writable``, list ``listable``.

    Paths that don't exist are left out. ``scoped``: neither signals nor abstract sockets cross the border, from Linux 6.12 on.
    Needs no privilege. Raises OSError.
    """
    abi = version()
    if abi < NEEDED:
        raise OSError(f"Landlock {NEEDED} is needed, this kernel has {abi}")
    network = 0b11 if abi >= 4 else 0  # bind and connect TCP: no rule allows any
    scope = SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if scoped and abi >= 6 else 0
    attributes = struct.pack("QQQ", everything(abi), network, scope)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _call(CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    try:
        for paths, rights in ((readable, READ), (writable, everything(abi)), (listable, LIST)):
            for path in paths:
                _allow(ruleset, path, rights)
        PR_SET_NO_NEW_PRIVS = 38
        if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
        _call(RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    O_PATH = os.O_PATH
    try:
        fd = os.open(path, O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        _call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock system call {number}: {os.strerror(error)}")
    return result
