"""exex for programs that live in an event loop of asyncio: nothing here blocks the loop. Runs in the client.

A future of exex can be awaited as it is (`await future`). This module has what goes with that: submitting with
back-pressure, `map`, `gather`, `as_completed`, and an executor that is an asynchronous context.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any

from exex.client import executor as blocking
from exex.client import session
from exex.client.apps import App
from exex.client.awaiting import Arrivals, end, hub, until_ended
from exex.client.futures import AppFuture
from exex.client.pressure import PATIENCE_S
from exex.client.session import Session

__all__ = ["Executor", "as_completed", "gather", "map", "submit"]


async def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AppFuture:
    """Make a task as soon as there is room for one, and return its future: await that for the value.

    Args:
        fn: an app, called with its special arguments if there are some, or a function.

    Raises:
        NoManagerError: outside an exex job.
        SerializationError: the function or an argument cannot be pickled.
    """
    current = session.current("exex.aio.submit")
    await _room(current)
    with current.proxy.pressure.exempted():
        if isinstance(fn, App):
            return fn(*args, **kwargs)
        return blocking.default().submit(fn, *args, **kwargs)


def map(
    fn: Callable[..., Any],
    *iterables: Iterable[Any] | AsyncIterable[Any],
    timeout: float | None = None,
    chunksize: int | None = None,
    buffersize: int | None = None,
) -> AsyncIterator[Any]:
    """`Executor.map` of an executor with the settings of the configuration."""
    return Executor().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)


async def gather(*futures: Future[Any], return_exceptions: bool = False) -> list[Any]:
    """The values of all futures, in their order. If the wait is cancelled, so are they.

    Costs less than `asyncio.gather`, which makes an asyncio task of each future.

    Args:
        return_exceptions: put errors in the places of values; otherwise the first one is raised at once, and what else there is
            goes on.
    """
    different = dict.fromkeys(futures)
    arrivals = Arrivals(different)
    for _ in different:
        try:
            future = await arrivals.next()
        except asyncio.CancelledError:
            for future in different:
                future.cancel()
            raise
        error = None if return_exceptions else _error(future)
        if error is not None:
            raise error
    return [future.result() if (error := _error(future)) is None else error for future in futures]


async def as_completed(futures: Iterable[Future[Any]], *, timeout: float | None = None) -> AsyncIterator[Any]:
    """The futures in the order in which they end, each once; those that have ended come first.

    Args:
        futures: of exex, or any `concurrent.futures.Future`.
        timeout: seconds from the first step on within which all must have ended.

    Raises:
        TimeoutError: they have not. They go on.
    """
    end_s = None if timeout is None else time.monotonic() + timeout
    different = dict.fromkeys(futures)
    arrivals = Arrivals(different)
    for _ in range(len(different)):
        future = await arrivals.next(None if end_s is None else end_s - time.monotonic())
        del different[future]
        yield future


class Executor:
    """Runs calls as tasks of the job, in an event loop. `async with` waits for them at its end, or cancels them on an error.

    Args and errors: as `exex.Executor`.
    """

    def __init__(self, **options: Any) -> None:
        self._executor = blocking.Executor(**options)
        self._session = session.current("exex.aio.Executor")

    async def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AppFuture:
        """`exex.Executor.submit` as soon as there is room for one more task; await the future for the value."""
        await _room(self._session)
        with self._session.proxy.pressure.exempted():
            return self._executor.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> AsyncIterator[Any]:
        """The values of `map(fn, *iterables)`, in order, for `async for`. Begins at once, as `exex.Executor.map` does.

        Args:
            iterables: or one asynchronous iterable: then each item is a task, which is made when the item is there.
            timeout: seconds from now within which a value must be there when it is asked for.
            chunksize, buffersize: as `exex.Executor.map`.

        Raises:
            TimeoutError: while iterating, as do the errors of the calls.
            RuntimeError: after `shutdown`.
        """
        end_s = None if timeout is None else time.monotonic() + timeout
        if any(isinstance(iterable, AsyncIterable) for iterable in iterables):
            if len(iterables) > 1 or chunksize is not None:
                raise TypeError("map takes one asynchronous iterable, alone and without chunksize: each of its items is a task")
            return _map_source(self, fn, iterables[0], end_s, buffersize or 2 * self._executor.slots)
        mapping = self._executor._new_mapping(fn, iterables, chunksize, buffersize)  # type: ignore[arg-type]
        with self._session.proxy.pressure.exempted():  # what is ahead is bounded by the window
            mapping.begin()
        return mapping.iterate_in_loop(end_s)

    async def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `exex.Executor.shutdown`; the loop goes on meanwhile."""
        self._executor.shutdown(False, cancel_futures=cancel_futures)
        if wait:
            await asyncio.to_thread(self._executor._run_out)
            arrivals = Arrivals(open_futures := self._executor._open_futures())
            for _ in open_futures:
                await arrivals.next()

    async def __aenter__(self) -> Executor:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            for future in self._executor._open_futures():
                future.cancel()
        await self.shutdown(cancel_futures=error is not None)


async def _room(current: Session) -> None:
    """Wait until a submitting thread would not be held back."""
    proxy = current.proxy
    pressure = proxy.pressure
    while not pressure.has_room():
        ended = pressure.ended
        waiter = hub().loop.create_future()
        pressure.call_when_room(partial(hub().call, partial(end, waiter)))
        done, _ = await asyncio.wait([waiter], timeout=PATIENCE_S)
        if not done and ended == pressure.ended and any(future._promised for future in list(proxy.unfinished.values())):
            return  # the program may be the one to keep these promises


def _error(future: Future[Any]) -> BaseException | None:
    """The error of a future that has ended."""
    return asyncio.CancelledError(f"{future!r} was cancelled") if future.cancelled() else future.exception()


async def _map_source(
    executor: Executor, fn: Callable[..., Any], source: Any, end_s: float | None, ahead: int
) -> AsyncIterator[Any]:
    """The values for the items of an asynchronous iterable, of which `ahead` may be on their way."""
    futures: asyncio.Queue[AppFuture | None] = asyncio.Queue()
    free = asyncio.Semaphore(ahead)

    async def read() -> None:
        try:
            async for item in source:
                await free.acquire()
                futures.put_nowait(await executor.submit(fn, item))
        finally:
            futures.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while True:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            future = await asyncio.wait_for(futures.get(), left_s)
            if future is None:
                await reader  # raises its error, if it has one
                return
            try:
                await until_ended(future, None if end_s is None else end_s - time.monotonic())
                value = await future
            finally:
                future.cancel()  # unless it has ended
            free.release()
            yield value
    finally:
        reader.cancel()
        while not futures.empty():
            future = futures.get_nowait()
            if future is not None:
                future.cancel()
