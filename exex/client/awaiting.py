"""Waiting for tasks in an event loop of asyncio. Runs in the client, in the threads of such loops; loaded when somebody awaits.

Futures end in the proxy thread, many at a time. One wake-up of the loop is enough for all that have ended since it last looked.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from exex.client.away import away

_thread = threading.local()


class _Hub:
    """The way of what has ended from other threads into one loop.

    Attributes:
        loop: in whose thread everything is called.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._is_coming = False

    def call(self, function: Callable[[], object], _: object = None) -> None:
        """Call `function()` soon. From any thread; nothing happens if the loop has ended."""
        self._calls.append(function)
        if not self._is_coming:
            self._is_coming = True
            try:
                self.loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                pass  # the loop is closed, and nobody waits in it

    def _run(self) -> None:
        self._is_coming = False  # first: what is appended from here on calls again, or is found below
        while self._calls:
            self._calls.popleft()()


def hub() -> _Hub:
    """That of the running loop.

    Raises:
        RuntimeError: no loop runs in this thread.
    """
    loop = asyncio.get_running_loop()
    found: _Hub | None = getattr(_thread, "hub", None)
    if found is None or found.loop is not loop:
        found = _thread.hub = _Hub(loop)
    return found


def outcome(future: Future[Any]) -> Generator[Any, None, Any]:
    """What `__await__` of a future returns: its value, or its error is raised. If the wait is cancelled, so is the task.

    Raises:
        asyncio.CancelledError: the task was cancelled.
    """
    if not future.done():
        waiter = hub().loop.create_future()
        future.add_done_callback(partial(hub().call, partial(end, waiter)))
        try:
            with away():
                yield from waiter
        except asyncio.CancelledError:
            future.cancel()
            raise
    if future.cancelled():
        raise asyncio.CancelledError(f"{future!r} was cancelled")
    return future.result()


async def until_ended(future: Future[Any], timeout_s: float | None = None) -> None:
    """Wait for the end of a task, in whatever way it ends. It goes on if the wait is cancelled.

    Raises:
        TimeoutError: it has not come within `timeout_s`.
    """
    if not future.done():
        arrivals = Arrivals([future])
        await arrivals.next(timeout_s)


def end(waiter: asyncio.Future[None]) -> None:
    """Let whoever waits go on."""
    if not waiter.done():
        waiter.set_result(None)


class Arrivals:
    """Futures in the order in which they end, for one coroutine.

    Args:
        futures: none twice.
    """

    def __init__(self, futures: Iterable[Future[Any]]) -> None:
        self._ended: deque[Future[Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        call = hub().call
        for future in futures:
            if future.done():
                self._ended.append(future)
            else:
                future.add_done_callback(partial(call, partial(self._arrive, future)))

    def _arrive(self, future: Future[Any]) -> None:
        self._ended.append(future)
        if self._waiter is not None:
            end(self._waiter)

    async def next(self, timeout_s: float | None = None) -> Future[Any]:
        """The next one that has ended.

        Raises:
            TimeoutError: none has within `timeout_s`.
        """
        if not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            with away():
                if timeout_s is None:
                    await self._waiter
                elif not (await asyncio.wait([self._waiter], timeout=max(0.0, timeout_s)))[0]:
                    raise asyncio.TimeoutError
        return self._ended.popleft()
