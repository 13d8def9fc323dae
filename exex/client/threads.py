"""Threads of the client for code that may block. They are daemons: none of them can keep the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Threads:
    """A pool of threads that starts small.

    Args:
        name: of the threads.
        most: how many there may be.
        begin: what each thread does first.
    """

    def __init__(self, name: str, most: int, begin: Callable[[], object]) -> None:
        self._name = name
        self._most = most
        self._begin = begin
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._free = 0

    def run(self, function: Callable[[], object]) -> None:
        """Run `function` in one of the threads. It must not raise."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
            elif self._count < self._most:
                self._count += 1
                threading.Thread(target=self._loop, name=f"{self._name}-{self._count}", daemon=True).start()
            else:
                self._free -= 1  # one that is owed: the next thread that is done takes it
        self._work.put(function)

    def _loop(self) -> None:
        self._begin()
        while True:
            self._work.get()()
            with self._lock:
                self._free += 1
