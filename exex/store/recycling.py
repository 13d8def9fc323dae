"""Memory of files that nobody needs any more: it is written to again, or given back a piece at a time.

To write to memory that is there takes half the time of getting it from the kernel, and giving back 1 GiB at once would hold up a
loop for a quarter of a second. So a large file that is freed becomes a *spare* of its store for some seconds: whoever writes a
payload of about that size takes it. A file that somebody still has mapped is left to the kernel, which knows when it is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque

LEAST_BYTES = 1024**2
"""Smaller files are just unlinked."""

SPARES = "spares"
"""Directory of the store in which they are. A spare's name begins with its size."""

KEEP_S = 5.0
"""How long one is kept."""

SHARE = 4
"""The part of a rank's share of memory that spares may have."""

PIECE_BYTES = 16 * 1024**2
"""Given back in one turn: some milliseconds."""


class Spares:
    """What one rank has freed in the memory of its node.

    Args:
        directory: of the store.
        limit_bytes: that spares may take.

    Attributes:
        used_bytes: that they take, as far as nobody has taken them.
    """

    def __init__(self, directory: str, limit_bytes: int) -> None:
        self._directory = os.path.join(directory, SPARES)
        self._limit_bytes = limit_bytes
        self._count = 0
        self._since: deque[tuple[float, str, int]] = deque()  # when, path, size
        self._leaving: deque[tuple[str, int]] = deque()  # path, and what is left of it
        self.used_bytes = 0

    def retire(self, path: str, size: int, now_s: float) -> bool:
        """Take a file that nobody needs out of the store. False if it is to be unlinked."""
        if size < LEAST_BYTES:
            return False
        self._count += 1
        with contextlib.suppress(OSError):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            hidden = os.path.join(self._directory, f".{os.getpid()}.{self._count}")
            os.rename(path, hidden)  # from now on nobody can open it
            if _is_used(hidden):
                os.unlink(hidden)
            elif self.used_bytes + size > self._limit_bytes:
                self._leaving.append((hidden, size))
            else:
                spare = os.path.join(self._directory, f"{size}.{os.getpid()}.{self._count}")
                os.rename(hidden, spare)
                self._since.append((now_s, spare, size))
                self.used_bytes += size
            return True
        return False

    def tick(self, now_s: float) -> None:
        """Give up those that nobody has taken in time; by an infinite time, all."""
        while self._since and now_s - self._since[0][0] > KEEP_S:
            _, spare, size = self._since.popleft()
            self.used_bytes -= size
            with contextlib.suppress(OSError):  # else it was taken
                hidden = os.path.join(self._directory, f".{os.path.basename(spare)}")
                os.rename(spare, hidden)
                self._leaving.append((hidden, size))

    def is_busy(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self._leaving)

    def work(self) -> None:
        """Give a piece back to the kernel."""
        path, size = self._leaving.popleft()
        size -= PIECE_BYTES
        with contextlib.suppress(OSError):
            if size > 0:
                os.truncate(path, size)
                self._leaving.appendleft((path, size))
            else:
                os.unlink(path)


def _is_used(path: str) -> bool:
    """Whether any process has this file open or mapped: the kernel grants a lease for writing only where none has."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def take(directory: str, size: int, target: str) -> bool:
    """Make a spare of the store the file `target`, if there is one of about this size. Its content is arbitrary."""
    if size < LEAST_BYTES:
        return False
    found = _spares(directory)
    fitting = [spare for spare in found if size // 2 <= spare[0] <= 2 * size]
    for _, name in sorted(fitting, key=lambda spare: (spare[0] < size, abs(spare[0] - size))):
        try:
            os.rename(os.path.join(directory, SPARES, name), target)
        except OSError:
            continue  # somebody was faster
        return True
    return False


def remove_all(directory: str) -> bool:
    """Give back all spares of a store: their memory is needed. True if there were any."""
    removed = False
    for _, name in _spares(directory):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, SPARES, name))
            removed = True
    return removed


def _spares(directory: str) -> list[tuple[int, str]]:
    """Sizes and names."""
    try:
        names = os.listdir(os.path.join(directory, SPARES))
    except OSError:
        return []
    return [(int(name.partition(".")[0]), name) for name in names if not name.startswith(".")]
