"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import platform

# mallopt(3): free memory above this stays with the process; larger pieces than this come from the system one by one.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**31 - 1  # mallopt takes an int
_LARGE = 2**20  # bytes


def _mallopt(*settings: tuple[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(key, value) for key, value in settings)


def hand_back() -> bool:
    """Hand freed pieces of a mebibyte and more back to the system at once; whether that was possible.

    Where layers of a base, or their activations that are computed again, come and go between those that stay, glibc's heap would
    fill the holes that they leave with small pieces, so that the next layer has to be laid at its end: the process grew to ten
    times what it held (four times with activations).
    """
    return _mallopt((_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE))


def keep_freed() -> bool:
    """Keep freed memory for the next step instead of handing it back to the system; whether that was possible.

    A step allocates the same large activations again and again. By default glibc gets each of them fresh from the kernel, which
    zeroes every page anew: about a tenth of a small model's step. The process holds its peak in return.
    """
    # The order matters: setting either switches glibc's own adaptation off, and older ones refuse more than 32 MiB here.
    if not any(_mallopt((_M_MMAP_THRESHOLD, limit)) for limit in (_LIMIT, 32 * 2**20)):
        return False
    return _mallopt((_M_TRIM_THRESHOLD, _LIMIT))
