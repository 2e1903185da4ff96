"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import platform

# mallopt(3): free memory above this stays with the process; larger pieces than this come from the system one by one.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**31 - 1  # mallopt takes an int


def keep_freed() -> bool:
    """Keep freed memory for the next step instead of handing it back to the system; whether that was possible.

    A step allocates the same large activations again and again. By default glibc gets each of them fresh from the kernel, which
    zeroes every page anew: about a tenth of a small model's step. The process holds its peak in return.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # The order matters: setting either switches glibc's own adaptation off, and older ones refuse more than 32 MiB here.
    if not any(libc.mallopt(_M_MMAP_THRESHOLD, limit) for limit in (_LIMIT, 32 * 2**20)):
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _LIMIT))
