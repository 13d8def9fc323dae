"""Holds a script back that submits faster than its tasks are done. Runs in the client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from exex.client.away import away

_RESUME = 0.75
"""Part of a bound that must be left before threads that were held back go on, so that they do not stop at each task."""

PATIENCE_S = 1.0
"""Time without an answer after which open promises count as a reason to go on."""


class Pressure:
    """Bounds on tasks without an answer, and on the bytes of their payloads.

    Threads of join apps, and the proxy thread itself, are never held back: what they submit is what others wait for.
    Nor is anybody while nothing is answered and promises are open: the script may be the one to keep them.

    Args:
        unfinished: tells how many tasks have no answer, and the bytes of their payloads.

    Attributes:
        limit: a call with this task number, or a higher one, must `hold_back`.
        ended: number of tasks that have ended so far.
    """

    def __init__(self, most_tasks: int, most_bytes: int, unfinished: Callable[[], tuple[int, int]]) -> None:
        self.limit = most_tasks
        self._most_tasks = most_tasks
        self._most_bytes = most_bytes
        self._unfinished = unfinished
        self.ended = 0
        self._closed = False
        self._waiting = 0
        self._room = threading.Condition()
        self._exempt: set[int] = set()
        self._calls: list[Callable[[], object]] = []  # when there is room; each counts as one that waits

    def allow(self, most_tasks: int) -> None:
        """Change the bound on tasks, before the first of them."""
        self.limit = self._most_tasks = most_tasks

    def exempt(self) -> None:
        """Never hold the calling thread back."""
        self._exempt.add(threading.get_ident())

    @contextmanager
    def exempted(self) -> Iterator[None]:
        """Within it the calling thread, which may not block, is not held back: it has looked at `has_room` before."""
        thread = threading.get_ident()
        is_new = thread not in self._exempt
        self._exempt.add(thread)
        try:
            yield
        finally:
            if is_new:
                self._exempt.discard(thread)

    def update(self, ended: int) -> None:
        """Something was sent, or answered. From the proxy thread.

        Args:
            ended: number of tasks that have ended so far.
        """
        self.ended = ended
        if not self._closed:
            self.limit = ended + self._most_tasks
            self.look_at_bytes()
        if self._waiting and self._is_below(_RESUME):
            self._let_through()

    def look_at_bytes(self) -> None:
        """A large payload was added, which may be one too many."""
        if self._unfinished()[1] > self._most_bytes:
            self.limit = 0

    def close(self) -> None:
        """Let everybody through."""
        self._closed = True
        self.limit = 0
        self._let_through()

    def has_room(self) -> bool:
        """Whether the next call would not be held back."""
        return self._closed or self._is_below(1.0)

    def call_when_room(self, function: Callable[[], object]) -> None:
        """Call `function()` once when there is room again, from whatever thread notices it."""
        with self._room:
            self._waiting += 1
            self._calls.append(function)
        if self._closed or self._is_below(_RESUME):
            self._let_through()

    def _let_through(self) -> None:
        with self._room:
            self._room.notify_all()
            calls, self._calls = self._calls, []
            self._waiting -= len(calls)
        for call in calls:
            call()

    def hold_back(self, promises_open: Callable[[], bool]) -> None:
        """Wait for room, if there is none."""
        if self._closed or self._is_below(1.0) or threading.get_ident() in self._exempt:
            return
        with away(), self._room:
            self._waiting += 1
            try:
                while not self._closed and not self._is_below(_RESUME):
                    before = self.ended
                    if not self._room.wait(PATIENCE_S) and before == self.ended and promises_open():
                        return
            finally:
                self._waiting -= 1

    def _is_below(self, part: float) -> bool:
        tasks, size_bytes = self._unfinished()
        return tasks <= self._most_tasks * part and size_bytes <= self._most_bytes * part
