"""How a process that trains on a CPU gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_TOP_PAD_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors leave, for the next ones.

    It would give every block over 32 MB back to the system and ask for it anew, page by page, each page cleared.
    Returns False where the C library is another, and nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)])
