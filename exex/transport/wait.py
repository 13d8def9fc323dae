"""How a loop waits: on descriptors, and by polling with back-off for what has none (MPI)."""

from __future__ import annotations

import ctypes
import select
import time

SPIN_S = 30e-6
LONGEST_S = 0.01
_PR_SET_TIMERSLACK = 29


class Waiter:
    """Sleeps until a descriptor is ready, or until it is time to poll again.

    The pause between polls is a tenth of the silence so far: a message that comes after a silence of t is found at most
    t/10 late, and an idle process wakes a hundred times a second.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._silent_since = time.monotonic()
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # ns; the default of 50 us rounds short sleeps up

    def watch(self, fd: int) -> None:
        """Wake when `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer. Must be called before it is closed."""
        self._epoll.unregister(fd)

    def wait(self, traffic: bool, most_s: float = LONGEST_S) -> list[int]:
        """Descriptors that are readable, possibly none.

        Args:
            traffic: whether the last turn had anything to do.
            most_s: sleep no longer than this.
        """
        now = time.monotonic()
        if traffic:
            self._silent_since = now
            return self._ready()
        silence_s = now - self._silent_since
        if silence_s > SPIN_S:
            pause_s = min(silence_s * 0.1, LONGEST_S, most_s)
            if not select.select([self._epoll], (), (), pause_s)[0]:
                return []
        return self._ready()

    def _ready(self) -> list[int]:
        return [fd for fd, _ in self._epoll.poll(0)]

    def close(self) -> None:
        """Release the descriptor."""
        self._epoll.close()
