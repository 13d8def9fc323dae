"""What the journal's writer has for the manager's loop: results that were asked for, and that a checkpoint is written.

The loop never waits: it hears through a descriptor. Both threads may put answers here, one takes them.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque

from exex.protocol.payload import Payload

Asker = tuple[int, int]


class Answers:
    """See above. Appending and popping is atomic."""

    def __init__(self) -> None:
        self._fetched: deque[tuple[bytes, Payload]] = deque()
        self._told: deque[tuple[Asker, str]] = deque()
        self._is_there = False
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fetched(self, key: bytes, value: Payload) -> None:
        """A result that was asked for; None if it is not there, or does not count."""
        self._fetched.append((key, value))
        self.wake()

    def told(self, asker: Asker, error: str) -> None:
        """What was asked to be written is; or is not, with this error."""
        self._told.append((asker, error))
        self.wake()

    def wake(self) -> None:
        """Let the loop turn, with or without an answer."""
        os.eventfd_write(self._fd, 1)
        self._is_there = True  # last: who sees it finds the descriptor readable, and empties it

    def take(self) -> tuple[list[tuple[bytes, Payload]], list[tuple[Asker, str]]]:
        """All that have come: of `fetched`, and of `told`."""
        if not self._is_there:
            return [], []
        self._is_there = False  # first: what comes from now on sets it again
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        fetched = [self._fetched.popleft() for _ in range(len(self._fetched))]
        return fetched, [self._told.popleft() for _ in range(len(self._told))]

    def fileno(self) -> int:
        """Readable when there is something to `take`, or the loop was woken."""
        return self._fd
