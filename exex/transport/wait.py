"""How a loop waits: on descriptors, and by polling with back-off for what has none (MPI)."""

from __future__ import annotations

import ctypes
import os
import select
import time

from exex.transport.base import Link

POLL_S = 3e-5
"""Silence after which a loop that must poll begins to sleep between polls."""

SPIN_S = 3e-4
"""Silence after which an eager loop begins to sleep. Until then it looks again and again, and lets others run in between: a core
that has gone to sleep takes longer to wake than a short task takes. See docs/performance.md."""

LONGEST_S = 0.01
"""Longest sleep between polls."""

UNPOLLED_S = 0.001
"""Shortest sleep where every peer rings."""

IDLE_S = 0.05
"""Longest sleep at all."""

TRANSFER_S = 0.01
"""While large messages are under way, a loop looks again and again until it has found nothing for so long. Both sides must look
for a piece to move, and a message of 1 MB has many pieces."""

TRANSFER_POLL_S = 0.001
"""Longest sleep between looks while large messages are under way."""

_PR_SET_TIMERSLACK = 29


class Waiter:
    """Sleeps until a descriptor is ready, or until it is time to poll again.

    The pause between polls is a tenth of the silence so far: a message that comes after a silence of t is found at most
    t/10 late, and an idle process wakes a hundred times a second, or twenty times where everybody rings (see doorbell).
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._silent_since = time.monotonic()
        self._links: dict[int, Link] = {}
        self._watched: list[Link] = []
        self._writing: set[int] = set()
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # ns; the default of 50 us rounds short sleeps up

    def watch(self, fd: int) -> None:
        """Wake when `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def watch_writable(self, fd: int) -> None:
        """Wake when `fd` is writable."""
        self._epoll.register(fd, select.EPOLLOUT)

    def watch_output(self, fd: int, wanted: bool) -> None:
        """Wake also when there is room to write to `fd`, which is watched; or no longer."""
        if wanted != (fd in self._writing):
            (self._writing.add if wanted else self._writing.discard)(fd)
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    def watch_link(self, link: Link) -> None:
        """Wake when something may have arrived at `link`; poll while it must be polled."""
        if link.fileno() >= 0:
            self._links[link.fileno()] = link
            self.watch(link.fileno())
        self._watched.append(link)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer. Must be called before it is closed."""
        self._links.pop(fd, None)
        self._writing.discard(fd)
        self._epoll.unregister(fd)

    def wait(self, traffic: bool, at_once: bool, eager: bool = False, most_s: float = IDLE_S) -> list[int]:
        """Descriptors that are ready, possibly none; links among them have been told.

        Args:
            traffic: whether the last turn had anything to do.
            at_once: do not sleep: there is more to do.
            eager: somebody waits for what comes next, and there is a core to spare: do not sleep yet after traffic.
            most_s: sleep no longer than this.
        """
        now = time.monotonic()
        if traffic:
            self._silent_since = now
        silence_s = now - self._silent_since
        if any(link.transferring() for link in self._watched):
            pause_s = min(silence_s * 0.1, TRANSFER_POLL_S, most_s)
            if silence_s < TRANSFER_S:
                os.sched_yield()
                at_once = True
        elif any(link.polled() for link in self._watched):
            pause_s = min(silence_s * 0.1, LONGEST_S, most_s)
            if silence_s < (SPIN_S if eager else POLL_S):
                os.sched_yield()
                at_once = True
        else:
            pause_s = min(max(silence_s * 0.1, UNPOLLED_S), IDLE_S, most_s)
            if eager and not at_once and silence_s < SPIN_S and self._spin(self._silent_since + SPIN_S):
                return self._ready()
        if not at_once and not select.select([self._epoll], (), (), pause_s)[0]:
            return []
        return self._ready()

    def _spin(self, until: float) -> bool:
        """Look until something is readable or the time is up."""
        poll = self._epoll.poll
        while time.monotonic() < until:
            if poll(0):
                return True
            os.sched_yield()
        return False

    def _ready(self) -> list[int]:
        ready = [fd for fd, _ in self._epoll.poll(0)]
        for fd in ready:
            link = self._links.get(fd)
            if link is not None:
                link.woken()
        return ready

    def close(self) -> None:
        """Release the descriptor."""
        self._epoll.close()
