"""A pool with the methods of `multiprocessing.Pool`, for libraries that take one: emcee, scipy.optimize and others.

Runs in the client; the calls are tasks of the job.
"""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed, wait
from typing import Any

from exex.client.executor import Executor
from exex.client.mapping import can_be_sliced
from exex.protocol import payload as payloads

_KEPT = 64
"""Callable objects that travel once. If a program makes more of them, they travel with their items."""


class AsyncResult:
    """What the `_async` methods of a pool return."""

    def __init__(self, futures: list[Future[Any]], assemble: Callable[[list[Any]], Any]) -> None:
        self._futures = futures
        self._assemble = assemble

    def get(self, timeout: float | None = None) -> Any:
        """The value, waiting for it for `timeout` seconds at most.

        Raises:
            TimeoutError: it is not there yet.
            Exception: what the call raised.
        """
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        return self._assemble([future.result() for future in self._futures])

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end, for `timeout` seconds at most."""
        wait(self._futures, timeout)

    def ready(self) -> bool:
        """Whether it has come."""
        return all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Whether there was no error.

        Raises:
            ValueError: it is not ready.
        """
        if not self.ready():
            raise ValueError(f"{self!r} is not ready")
        return all(not future.cancelled() and future.exception() is None for future in self._futures)


class Pool:
    """A pool of all slots of the job. `pool.map` is what libraries want as `workers=` or `map=`.

    There is nothing to start, so several pools may be in use at once, and a pool costs nothing.

    Args:
        options: of `exex.Executor`, for all calls: retries, priority, walltime, memory, cores, ...

    Raises:
        NoManagerError: outside an exex job.
    """

    def __init__(self, **options: Any) -> None:
        self._executor = Executor(**options)
        self._kept: set[bytes] = set()  # digests
        self._closed = False

    @property
    def size(self) -> int:
        """Calls of one core that can run at a time: the slots of the job."""
        return self._executor.slots

    def is_master(self) -> bool:
        """True: for programs that were written for a pool on MPI, of which all ranks run the script."""
        return True

    # ---- all at once -----------------------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """`list(map(func, iterable))`, in tasks.

        Args:
            chunksize: calls per task; None to find out how many last some 5 ms.

        Raises:
            Exception: the first error of a call; the other calls are cancelled.
        """
        return list(self._begin(func, iterable if can_be_sliced(iterable) else list(iterable), chunksize))

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None) -> list[Any]:
        """As `map`, for items that are tuples of arguments."""
        return self.map(_Starred(func), iterable, chunksize)

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> Any:
        """The value of one call."""
        return self.apply_async(func, args, kwds).get()

    # ---- one after the other ---------------------------------------------------------------------------------------

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> Iterator[Any]:
        """The values in order, as they come. A generator is read only so far ahead that all slots stay busy."""
        return self._begin(func, iterable, chunksize)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> Iterator[Any]:
        """The values as they come, in any order."""
        for future in as_completed(self._submit_chunks(func, iterable, chunksize)):
            yield from future.result()

    # ---- later -----------------------------------------------------------------------------------------------------

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """One call. The callbacks get the value or the error, in a thread of exex, and must not wait for futures there."""
        self._check()
        future = self._executor.submit(func, *args, **(kwds or {}))
        return _attend(AsyncResult([future], _only), callback, error_callback)

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """`map`, of which all calls are submitted now. Callbacks as `apply_async`."""
        items = list(iterable)
        size = chunksize or max(1, len(items) // (4 * max(1, self.size)))
        return _attend(AsyncResult(self._submit_chunks(func, items, size), _joined), callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """`starmap`, as `map_async`."""
        return self.map_async(_Starred(func), iterable, chunksize, callback, error_callback)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept no more calls."""
        self._closed = True

    def terminate(self) -> None:
        """Accept no more calls, and cancel those that are not done."""
        self.close()
        for future in self._executor._open_futures():
            future.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for all calls.

        Raises:
            ValueError: the pool is neither closed nor terminated.
        """
        if not self._closed:
            raise ValueError("the pool still accepts calls: close() or terminate() it before join()")
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.terminate()

    # ---- functions -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._closed:
            raise ValueError("the pool is closed and accepts no more calls")

    def _begin(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None) -> Iterator[Any]:
        self._check()
        if isinstance(func, (types.FunctionType, types.BuiltinFunctionType, type)):
            return self._executor.map(func, iterable, chunksize=chunksize)
        pickled = payloads.dump_function(func)
        if pickled[0] in self._kept or len(self._kept) < _KEPT:
            self._kept.add(pickled[0])
            return self._executor._new_mapping(func, (iterable,), chunksize, None, pickled).results(None)
        return self._executor.map(_call, itertools.repeat(func), iterable, chunksize=chunksize)

    def _submit_chunks(self, func: Callable[[Any], Any], iterable: Iterable[Any], size: int) -> list[Future[Any]]:
        self._check()
        if size < 1:
            raise ValueError("chunksize must be >= 1")
        items = iter(iterable)
        return [self._executor.submit(_map, func, chunk) for chunk in iter(lambda: list(itertools.islice(items, size)), [])]


class _Starred:
    """A function that takes its arguments as one tuple."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        self.__name__ = getattr(func, "__name__", type(func).__name__)

    def __call__(self, args: Iterable[Any]) -> Any:
        return self.func(*args)


def _call(func: Callable[[Any], Any], item: Any) -> Any:
    return func(item)


def _map(func: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [func(item) for item in items]


def _only(values: list[Any]) -> Any:
    return values[0]


def _joined(values: list[list[Any]]) -> list[Any]:
    return [value for some in values for value in some]


def _attend(
    result: AsyncResult, callback: Callable[[Any], object] | None, error_callback: Callable[[BaseException], object] | None
) -> AsyncResult:
    """Have the callbacks called when all futures of `result` have ended."""
    if callback is None and error_callback is None:
        return result
    left = len(result._futures)
    lock = threading.Lock()

    def ended(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left > 0:
                return
        try:
            value = result.get(0)
        except BaseException as error:
            if error_callback is not None:
                error_callback(error)
        else:
            if callback is not None:
                callback(value)

    for future in result._futures:
        future.add_done_callback(ended)
    if not result._futures:
        ended(None)
    return result
