"""Waiting inside a task: its slot runs other tasks meanwhile. Runs in the client; outside of tasks nothing of it does anything.

Without it tasks that wait for tasks of their own could hold all slots, and nothing would go on. A task counts as waiting as long
as any of its threads does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exex.protocol import context

PATIENCE_S = 2e-4
"""What is over sooner is not worth a slot: giving it away and getting it back takes about as long."""


@contextmanager
def away() -> Iterator[None]:
    """Within it this thread waits for tasks, and computes nothing. At its end the task has a slot again."""
    way = context.way
    if way is None or context.current_task is None:
        yield
        return
    left = way.leave()
    try:
        yield
    finally:
        way.take(left)


class AwayEvent(threading.Event):
    """An event for which a task waits without its slot."""

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Event`. Within a task it may take longer than the timeout: until there is a slot."""
        end_s = None if timeout is None else time.monotonic() + timeout
        if super().wait(PATIENCE_S if timeout is None else min(timeout, PATIENCE_S)):
            return True
        left_s = None if end_s is None else end_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            return False
        with away():
            return super().wait(left_s)


class Waiters(list[Any]):
    """Those who wait for a future by `concurrent.futures.wait` or `as_completed`, and do so without their slots."""

    def append(self, waiter: Any) -> None:
        """One that has just been made. It waits for its event."""
        if type(waiter.event) is threading.Event:
            waiter.event = AwayEvent()
        super().append(waiter)


def waiters() -> list[Any]:
    """An empty list for those who wait for a future."""
    return [] if context.way is None else Waiters()
