"""What the tests of the sandbox's walls share: the form of an attempt, and how its end is judged."""

from __future__ import annotations

import secrets
from pathlib import Path

from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sdk import CodeLimits

LIMITS = CodeLimits(wall_s=120.0, cpu_s=20.0, memory_mb=512, disk_mb=8, file_mb=4, entries=200, output_kb=32)


TOKEN = secrets.token_hex(16)


ROOT = Path(__file__).resolve().parents[2]


# Calls a function and tells whether it was let through: the form of most attempts below.
TRY = """
import ctypes, os, sys
def attempt(name, function):
    try:
        print(name, "GOT", repr(function())[:300])
    except BaseException as e:
        print(name, "stopped", type(e).__name__, e)
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


def attempts(sandbox: CodeSandbox, code: str) -> list[str]:
    """Run ``code`` after TRY; the lines of its attempts. It must have come to its end."""
    outcome = sandbox.run_python(TRY + code + "\nprint('END')")
    lines = outcome.stdout.splitlines()
    assert lines and lines[-1] == "END", outcome
    return lines[:-1]


def none_got_through(lines: list[str]) -> None:
    assert lines and all(" stopped " in line for line in lines), lines


def alive_and_clean(sandbox: CodeSandbox) -> None:
    """The sandbox serves on, and nothing of the last run is there."""
    assert sandbox.run_python("import os; print(os.listdir())").stdout == "[]\n"
