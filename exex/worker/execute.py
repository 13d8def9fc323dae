"""Run one attempt and pickle how it ended. Runs in task processes, and in the rank without isolation. Never raises.

Whatever the function does short of ending the process becomes an outcome and a payload; every message says which task
it was, on which rank and node.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any

from exex.errors import (
    AppException,
    BadStdStreamFile,
    ConfigError,
    DeserializationError,
    MissingOutputs,
    SerializationError,
    TaskProcessDied,
)
from exex.files import arrivals
from exex.protocol import context
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Kind, Outcome, TaskId
from exex.protocol.payload import Large, Payload, dump, dump_error, load, load_call
from exex.protocol.task_numbers import shown
from exex.protocol.unpicklable import explain_value, first_unpicklable
from exex.worker import bash
from exex.worker.context import Place, TaskContext, TaskStopped

# Plain ints: looking a member up in an enum costs more than pickling None.
_DONE, _FAILED = int(Outcome.DONE), int(Outcome.FAILED)
_PYTHON, _BASH, _MAP = int(Kind.PYTHON), int(Kind.BASH), int(Kind.MAP)
_NONE = dump(None)
"""Bits of a task number that its client counts."""

_OURS = (__file__, bash.__file__, payloads.__file__)
_libc = ctypes.CDLL(None)
_c_stdout = ctypes.c_void_p.in_dll(_libc, "stdout")


# ---- functions ------------------------------------------------------------------------------------------------


class Unopened:
    """Stands for a function that cannot be unpickled here: calling it raises why.

    Attributes:
        why: "ModuleNotFoundError: No module named 'x'".
    """

    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        raise DeserializationError(
            f"its function cannot be unpickled here ({self.why}); the modules that it needs must be importable on every "
            f"node, by {sys.executable} with sys.path {sys.path}"
        )


def open_function(payload: Payload) -> Callable[..., Any]:
    """Unpickle a function. Never raises: of one that cannot be unpickled, each task fails."""
    try:
        function: Callable[..., Any] = load(payload)
    except TaskStopped:
        raise
    except BaseException as error:  # also the sys.exit() of a script that is imported
        return Unopened(f"{type(error).__name__}: {error}")
    return function


# ---- one attempt ----------------------------------------------------------------------------------------------


def execute(  # noqa: PLR0917
    spec: AppSpec,
    function: Callable[..., Any],
    payload: Payload,
    values: Sequence[Payload] | None,
    task: TaskId,
    attempt: int,
    place: Place,
    adapt: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None,
) -> tuple[int, Payload, float]:
    """Run one attempt.

    Args:
        function: from `open_function`.
        payload: the pickled call: args, kwargs and perhaps options (see `_run_with`).
        values: of the task's needs, in their places.
        adapt: changes the call when it has been opened.

    Returns:
        `Outcome.DONE` and the value, or `Outcome.FAILED` and the error; then the seconds of the function alone. A value may
        hold memory that belongs to the function: send or copy it before anything else runs.
    """
    began = 0.0
    context.number = task
    context.current_task = current = TaskContext(shown(task), attempt, spec.name, place.rank, place.node)
    try:
        call = load_call(payload, values)
        if arrivals.pending:
            arrivals.complete()
        if adapt is not None:
            call = adapt(call)
        began = perf_counter()
        if len(call) == 2 and spec.kind == _PYTHON:
            value = function(*call[0], **call[1])
        else:
            value = _run(spec.kind, function, call, current, place)
        seconds = perf_counter() - began
    except TaskStopped:
        raise  # ends the process
    except BaseException as error:
        seconds = perf_counter() - began if began else 0.0
        arrivals.pending.clear()
        return _FAILED, _failure(error, where(current, place), current), seconds
    finally:
        context.current_task = None
    if value is None:
        return _DONE, _NONE, seconds
    return *_pickled(spec.kind, value, seconds, current, place), seconds


def _pickled(kind: int, value: Any, seconds: float, current: TaskContext, place: Place) -> tuple[int, Payload]:
    """The outcome and payload of an attempt that has returned a value."""
    try:
        return _DONE, _dump_rows(value, seconds, current, place) if kind == _MAP else dump(value)
    except TaskStopped:
        raise
    except BaseException as error:
        return _FAILED, _unpicklable(value, error, where(current, place))


def where(current: TaskContext, place: Place, row: int | None = None) -> str:
    """What messages say of an attempt: "task 7 (f) on rank 3 at nid00012, attempt 1"."""
    at = "" if row is None else f", row {row},"
    return f"{current}{at} on {place}, attempt {current.attempt}"


def _run(kind: int, function: Callable[..., Any], call: tuple[Any, ...], current: TaskContext, place: Place) -> Any:
    """What is not a plain Python call: with options, of bash, or of many rows."""
    args, kwargs = call[0], call[1]
    options = call[2] if len(call) > 2 else {}
    at = where(current, place)
    if kind != _BASH:
        with _surroundings(options, at) as (stdout, stderr), _redirected(1, stdout), _redirected(2, stderr):
            if kind == _MAP:
                return _run_rows(function, args, kwargs, current, place)
            return function(*args, **kwargs)
    with _surroundings(options, at) as (stdout, stderr):
        flush_output()
        exitcode = bash.run(
            function, args, kwargs, context=current, where=at, stdout=stdout, stderr=stderr, prefix=options.get("prefix", "")
        )
        missing = [path for path in options.get("outputs", ()) if not os.path.exists(path)]
        if missing:
            raise MissingOutputs(f"bash_app {current.app} ended well ({at}) without making", missing)
        return exitcode


# ---- many rows ------------------------------------------------------------------------------------------------


def _run_rows(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], current: TaskContext, place: Place
) -> tuple[list[Any], Payload | None]:
    """Call the function on row after row; the values before the first failure, and its error."""
    values: list[Any] = []
    keep = values.append
    try:
        for row in zip(*args, strict=True):
            keep(function(*row, **kwargs))
    except TaskStopped:
        raise
    except BaseException as error:
        return values, _failure(error, where(current, place, len(values)), current)
    return values, None


def _dump_rows(value: tuple[list[Any], Payload | None], seconds: float, current: TaskContext, place: Place) -> Payload:
    """Pickle `(values, error, seconds)`; the first value that cannot be pickled becomes the error."""
    values, error = value
    try:
        return dump((values, _in_one(error), seconds))
    except SerializationError as failure:
        kept = first_unpicklable(values)
        if kept is None:
            raise
        error = _unpicklable(values[kept], failure, where(current, place, kept))
        return dump((values[:kept], _in_one(error), seconds))


def _in_one(error: Payload | None) -> Payload | None:
    """A payload that can be pickled inside another."""
    return Large([bytes(frame) for frame in error.frames]) if type(error) is Large else error


# ---- errors ---------------------------------------------------------------------------------------------------


def _failure(error: BaseException, at: str, current: TaskContext) -> Payload:
    skip = _own_frames(error.__traceback__)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        said = f" ({error.code})" if isinstance(error.code, str) else ""
        exited = TaskProcessDied(f"{at}, called sys.exit with exit code {code}{said}", current.rank, current.node, code, "")
        return dump_error(exited.with_traceback(error.__traceback__), at, skip)
    if isinstance(error, DeserializationError) and skip == _depth(error.__traceback__):
        named = DeserializationError(f"{at}: {error}")
        named.__cause__ = error.__cause__
        return dump_error(named.with_traceback(error.__traceback__), at, skip)
    if isinstance(error, AppException) and error.__cause__ is None and skip == _depth(error.__traceback__):
        return dump_error(error.with_traceback(None), at)  # its text says it all; our own frames would only repeat it
    return dump_error(error, at, skip)


def _unpicklable(value: object, error: BaseException, at: str) -> Payload:
    if not isinstance(error, Exception):
        error = SerializationError(f"{type(error).__name__}: {error}")
    try:
        name = explain_value("the value", value)
    except BaseException:  # of a value whose own methods end the program
        name = f"the value of type {type(value).__name__}"
    return dump_error(SerializationError(f"{at}: {name} cannot be pickled ({error})"), at)


def _own_frames(trace: TracebackType | None) -> int:
    """How many frames at the outer end of a traceback are ours, not the function's."""
    count = 0
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        count += 1
        trace = trace.tb_next
    return count


def _depth(trace: TracebackType | None) -> int:
    count = 0
    while trace is not None:
        count += 1
        trace = trace.tb_next
    return count


# ---- what surrounds a call ------------------------------------------------------------------------------------


def flush_output() -> None:
    """Push out what Python and C have buffered for stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # closed, or replaced by the task
    _libc.fflush(_c_stdout)  # not of all streams: another thread may hold the lock of one for ever


@contextmanager
def _surroundings(options: Mapping[str, Any], at: str) -> Iterator[tuple[bash.StreamFile | None, bash.StreamFile | None]]:
    """Directory, environment and open streams of one attempt; undone afterwards.

    Options, all of them optional: `directories`, to be made; `cwd`, a directory that exists; `threads`, how many libraries should
    start; `env`, variables to add; `stdout` and `stderr`, each (path, mode), relative to `cwd`; `outputs`, files that a bash app
    must make, relative to `cwd`.
    """
    with ExitStack() as stack:
        for directory in options.get("directories", ()):
            os.makedirs(directory, exist_ok=True)
        if options.get("cwd") is not None:
            stack.enter_context(_inside(options["cwd"], at))
        if options.get("threads"):
            number = options["threads"]
            stack.enter_context(environment({"EXEX_GRANTED_CORES": str(number), **thread_counts(number)}))
        if options.get("env"):
            stack.enter_context(environment(options["env"]))
        stdout = _open_stream("stdout", options.get("stdout"), stack, at)
        if options.get("stderr") is not None and options["stderr"] == options.get("stdout"):
            stderr = stdout  # opened twice, they would write over each other
        else:
            stderr = _open_stream("stderr", options.get("stderr"), stack, at)
        yield stdout, stderr


@contextmanager
def _inside(directory: str, at: str) -> Iterator[None]:
    back = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        try:
            os.chdir(directory)
        except OSError as error:
            raise ConfigError(f"{at}: cwd={directory!r} cannot be entered ({error.strerror}); it must exist already") from error
        yield
    finally:
        os.fchdir(back)
        os.close(back)


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""How many threads libraries start; most read them when they are loaded."""


def thread_counts(number: int) -> dict[str, str]:
    """Variables by which libraries start so many threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(number))


@contextmanager
def environment(added: Mapping[str, str], dropped: Iterable[str] = ()) -> Iterator[None]:
    """Meanwhile these variables are set, and others are not."""
    before = {name: os.environ.get(name) for name in (*added, *dropped)}
    os.environ.update(added)
    for name in dropped:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _open_stream(name: str, spec: tuple[str, str] | None, stack: ExitStack, at: str) -> bash.StreamFile | None:
    if spec is None:
        return None
    path, mode = spec
    try:
        directory = os.path.dirname(path)
        if directory:
            os.makedirs(directory, exist_ok=True)
        file = stack.enter_context(open(path, mode))  # noqa: SIM115
        if not file.writable():
            raise ValueError("this mode does not write")
        return bash.StreamFile(path, file.fileno())
    except (OSError, ValueError, TypeError) as error:
        raise BadStdStreamFile(f"{at}: {name}={path!r} cannot be opened with mode {mode!r}: {error}") from error


@contextmanager
def _redirected(fd: int, file: bash.StreamFile | None) -> Iterator[None]:
    """Let descriptor `fd`, and so Python's stream over it, write to a file."""
    if file is None:
        yield
        return
    flush_output()
    saved = os.dup(fd)
    os.dup2(file.fd, fd)
    try:
        yield
    finally:
        flush_output()
        os.dup2(saved, fd)
        os.close(saved)
