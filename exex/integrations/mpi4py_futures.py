"""The names of `mpi4py.futures` over an exex job: programs change one import. Runs in the client; imports no MPI.

What differs: the workers are those of the job, so nothing is spawned, and what only a spawned process could have is refused.
"""

from __future__ import annotations

import itertools
import os
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Future,
    InvalidStateError,
    TimeoutError,
    as_completed,
    wait,
)
from concurrent.futures import Executor as _AnyExecutor
from typing import Any, NoReturn

from exex.client.apps import App
from exex.client.executor import Executor as _Executor
from exex.errors import ConfigError
from exex.integrations.prepared import Prepared, Setting, name_of

Executor = _AnyExecutor

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "MPICommExecutor",
    "MPIPoolExecutor",
    "TimeoutError",
    "as_completed",
    "collect",
    "compose",
    "get_comm_workers",
    "wait",
]

_NO_MEANING = frozenset(("main", "use_pkl5", "backoff"))
_REFUSED = {
    "python_exe": "tasks run in the interpreter of the job: start the job with it",
    "python_args": "tasks run in the interpreter of the job: give it the arguments where the job is started",
    "mpi_info": "nothing is spawned: say how ranks are placed where the job is started",
}


class MPIPoolExecutor(_Executor):
    """`mpi4py.futures.MPIPoolExecutor` on the workers of this job.

    Args:
        max_workers: checked; all slots of the job work, and a smaller number is warned about.
        initializer, initargs: called once in each task process, before its first call; its failure fails the call.
        globals: variables for the functions of the script, set before each call.
        path: directories for `sys.path`.
        wdir: working directory of the calls.
        env: environment variables of the calls.
        options: of `exex.Executor`: retries, priority, walltime, cores, ...; main, use_pkl5 and backoff mean nothing here.

    Raises:
        NoManagerError: outside an exex job.
        ConfigError: python_exe, python_args or mpi_info, which only a process that is spawned could have.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        globals: Mapping[str, Any] | None = None,
        path: Iterable[str] = (),
        wdir: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_workers is not None and int(max_workers) <= 0:
            raise ValueError("max_workers must be greater than 0")
        for name, reason in _REFUSED.items():
            if options.pop(name, None):
                raise ConfigError(f"MPIPoolExecutor cannot have {name}=: {reason}")
        super().__init__(**{name: value for name, value in options.items() if name not in _NO_MEANING})
        if max_workers is not None and int(max_workers) < self.slots:
            text = f"max_workers={max_workers} does not hold MPIPoolExecutor back: it uses all {self.slots} slots of the job"
            warnings.warn(text, stacklevel=2)
        self._setting = Setting(
            path=[os.path.abspath(directory) for directory in path],
            wdir="" if wdir is None else os.path.abspath(wdir),
            env=dict(env or {}),
            globals=dict(globals or {}),
            initializer=initializer,
            initargs=tuple(initargs),
        )
        self._prepared: dict[Any, Prepared] = {}

    @property
    def num_workers(self) -> int:
        """Slots of the job; 0 after `shutdown`."""
        return 0 if self._shut else self.slots

    def bootup(self, wait: bool = True) -> MPIPoolExecutor:
        """Return the executor. The workers are there since the job began.

        Raises:
            RuntimeError: after `shutdown`.
        """
        if self._shut:
            raise RuntimeError("cannot bootup after shutdown")
        return self

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `exex.Executor.submit`."""
        return super().submit(self._prepare(fn), *args, **kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[Any]:
        """As `exex.Executor.map`.

        Args:
            unordered: give the values as they come. All calls are submitted now, `chunksize` (1) in a task.
        """
        if unordered:
            return self._map_unordered(fn, zip(*iterables), timeout, chunksize, buffersize)
        return super().map(self._prepare(fn), *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    def starmap(  # noqa: PLR0917  # in the order of mpi4py
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[Any]:
        """`map`, for one iterable of tuples of arguments."""
        if unordered:
            return self._map_unordered(fn, iterable, timeout, chunksize, buffersize)
        starred = _Starred(self._prepare(fn))
        return super().map(starred, iterable, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    def _map_unordered(
        self, fn: Callable[..., Any], rows: Iterable[Any], timeout: float | None, chunksize: int | None, buffersize: int | None
    ) -> Iterator[Any]:
        if buffersize is not None:
            raise ValueError("buffersize must be None if unordered")
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        items, call = iter(rows), _Rows(self._prepare(fn))
        chunks = iter(lambda: list(itertools.islice(items, chunksize or 1)), [])
        futures: list[Future[Any]] = [super(MPIPoolExecutor, self).submit(call, chunk) for chunk in chunks]
        return _values(as_completed(futures, timeout))

    def _prepare(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, or what sets the process up and calls it."""
        if self._setting.is_empty() or not callable(fn):
            return fn
        if isinstance(fn, App):
            if type(fn) is not App:
                raise TypeError(f"{fn.__name__} runs no function on a worker that could be initialised: use exex.Executor")
            fn = fn.func
        if not isinstance(fn, types.FunctionType):
            return Prepared(self._setting, fn)
        if fn not in self._prepared:
            self._prepared[fn] = Prepared(self._setting, fn)
        return self._prepared[fn]

    def _is_worth_keeping(self, function: Callable[..., Any]) -> bool:
        if isinstance(function, (Prepared, _Rows)):
            return isinstance(function.function, (types.FunctionType, Prepared))
        return super()._is_worth_keeping(function)


class MPICommExecutor:
    """`mpi4py.futures.MPICommExecutor`: a context whose target is an executor, since the script is always the root.

    Args:
        comm, root: mean nothing here: the workers are those of the job.
        options: of `MPIPoolExecutor`.
    """

    def __init__(self, comm: Any = None, root: int = 0, **options: Any) -> None:
        self._options = options
        self._executor: MPIPoolExecutor | None = None

    def __enter__(self) -> MPIPoolExecutor:
        if self._executor is not None:
            raise RuntimeError("this MPICommExecutor is in use")
        self._executor = MPIPoolExecutor(**self._options)
        return self._executor

    def __exit__(self, *error: object) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def get_comm_workers() -> NoReturn:
    """Not here.

    Raises:
        ConfigError: always; says what to use.
    """
    raise ConfigError("get_comm_workers: tasks share no communicator; a function on several ranks is an exex.mpi_app(ranks=N)")


# ---- futures of futures --------------------------------------------------------------------------------------------


def collect(fs: Iterable[Future[Any]]) -> Future[list[Any]]:
    """The future of the list of the values of `fs`. It fails with the first of them; cancelling it cancels them."""
    futures = list(fs)
    collected: Future[list[Any]] = Future()
    left, lock = set(futures), threading.Lock()

    def ended(future: Future[Any]) -> None:
        with lock:
            left.discard(future)
            is_last = not left
        if future.cancelled():
            collected.cancel()
        elif (error := future.exception()) is not None:
            _settle(collected, error=error)
        elif is_last and not collected.done():
            _settle(collected, value=[future.result() for future in futures])

    for future in set(futures):
        future.add_done_callback(ended)
    if not futures:
        collected.set_result([])

    def cancel_rest(_: object) -> None:
        if collected.cancelled():
            collected.set_running_or_notify_cancel()
        for future in list(left):
            future.cancel()

    collected.add_done_callback(cancel_rest)
    return collected


def compose(
    future: Future[Any], resulthook: Callable[[Any], Any] | None = None, excepthook: Callable[[BaseException], Any] | None = None
) -> Future[Any]:
    """The future of what a hook makes of a value or an error; cancelling it cancels `future`.

    Args:
        resulthook: gets the value; what it returns is the value. None: the value itself.
        excepthook: gets the error; what it returns is the value, or, if that is an exception, the error. None: the error itself.
    """
    composed: Future[Any] = Future()

    def ended(future: Future[Any]) -> None:
        if future.cancelled():
            composed.cancel()
            return
        error = future.exception()
        try:
            if error is None:
                value = future.result()
                _settle(composed, value=value if resulthook is None else resulthook(value))
                return
            found = error if excepthook is None else excepthook(error)
        except BaseException as failure:
            _settle(composed, error=failure)
            return
        if isinstance(found, BaseException):
            _settle(composed, error=found)
        else:
            _settle(composed, value=found)

    def cancel(_: object) -> None:
        if composed.cancelled():
            composed.set_running_or_notify_cancel()
            future.cancel()

    composed.add_done_callback(cancel)
    future.add_done_callback(ended)
    return composed


def _settle(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    try:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
    except InvalidStateError:
        pass  # it was cancelled, or another one of the futures behind it has failed


def _values(futures: Iterator[Future[Any]]) -> Iterator[Any]:
    for future in futures:
        yield from future.result()


class _Starred:
    """A function that takes its arguments as one tuple."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = name_of(function)

    def __call__(self, args: Iterable[Any]) -> Any:
        return self.function(*args)


class _Rows(_Starred):
    """A function on many tuples of arguments."""

    def __call__(self, args: Iterable[Iterable[Any]]) -> list[Any]:
        return [self.function(*row) for row in args]
