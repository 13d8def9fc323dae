"""Numbers for tasks: 0, 1, 2, ... Runs in the client."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator


def numbers(first: int = 0) -> Iterator[int]:
    """Gives any number of threads each number from `first` on once."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        return itertools.count(first)
    return _LockedCount(first)


class _LockedCount:
    """`itertools.count` for free-threaded builds, where that is not safe."""

    def __init__(self, first: int = 0) -> None:
        self._lock = threading.Lock()
        self._count = itertools.count(first)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._count)
