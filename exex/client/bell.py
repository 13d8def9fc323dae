"""A bell that wakes a thread out of `poll`. Runs in the client."""

from __future__ import annotations

import os
import weakref


class Bell:
    """A descriptor that is readable from `ring` to `clear`. Any thread may ring it, also when nobody listens any more."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)  # not before: a late ring must not write into another file

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def ring(self) -> None:
        """Wake whoever polls, or will poll."""
        os.eventfd_write(self._fd, 1)

    release = ring  # as the lock of a sleeping thread: see `LazyFuture._add_sleeper`

    def clear(self) -> None:
        """Stop waking."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass  # it was not rung
