"""How the C library keeps memory in processes that move large values."""

from __future__ import annotations

import ctypes

KEPT_BLOCK_BYTES = 8 * 1024**2
"""Blocks up to this size come from the heap (glibc, mallopt(3)): a fresh mapping for each buffer of a message of 1 MB
costs many times its copy."""

KEPT_HEAP_BYTES = 64 * 1024**2
"""Free memory at the heap's end that a process keeps."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_heap() -> None:
    """Set both for this process and all that it forks; not for programs that it starts."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)
