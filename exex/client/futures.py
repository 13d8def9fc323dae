"""The futures that users see. Runs in the client; the mechanics are in `lazy`, the talk with the manager in `proxy`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import Any

from exex.client.away import waiters
from exex.client.files import File
from exex.client.lazy import LazyFuture
from exex.client.outcomes import NeedFailed
from exex.errors import DependencyError
from exex.protocol import payload as payloads


class AppFuture(LazyFuture):
    """The future of one task: a `concurrent.futures.Future` in every respect.

    `future[key]` and `future.attribute` (no leading underscore, no name that a future itself has) are futures of a
    new task, which takes the item or the attribute of the value. As an argument of an app, at any depth, a future
    makes the call wait for it and stands for its value.
    """

    __slots__ = ()

    __iter__ = None  # without it `for x in future` would submit tasks for ever
    __contains__ = None

    @property
    def tid(self) -> int:
        """Number of the task, from 0."""
        return self._tid

    @property
    def app_name(self) -> str:
        """Name of the app's function."""
        return self._call.name

    @property
    def outputs(self) -> list[DataFuture]:
        """A DataFuture for each File in `outputs`."""
        return [] if self._rare is None else self._rare.outputs

    @property
    def stdout(self) -> Any:
        """`stdout` as it was given; for AUTO_LOGNAME the path, for a File its DataFuture."""
        return None if self._rare is None else self._rare.streams[0]

    @property
    def stderr(self) -> Any:
        """As `stdout`."""
        return None if self._rare is None else self._rare.streams[1]

    def task_status(self) -> str:
        """pending, launched, running, exec_done, failed, dep_fail or cancelled."""
        state = self._state
        if state == FINISHED:
            if not self._has_failed():
                return "exec_done"
            is_need = type(self._raw) is NeedFailed or isinstance(self._exception, DependencyError)
            return "dep_fail" if is_need else "failed"
        if state == PENDING:
            return "launched" if type(self._raw) is int and not self._open_needs() else "pending"
        return "running" if state == RUNNING else "cancelled"

    def _open_needs(self) -> bool:
        unfinished = self._call.proxy.unfinished
        return any(need in unfinished for need in self._needs or ())

    def __getitem__(self, key: Any) -> AppFuture:
        return self._lift(operator.getitem, key)

    def __getattr__(self, name: str) -> AppFuture:
        if name.startswith("_") or hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._lift(getattr, name)

    def _lift(self, function: Callable[..., Any], key: Any) -> AppFuture:
        from exex.client import apps

        return apps.lift(function, self, key)

    def __await__(self) -> Generator[Any, None, Any]:
        from exex.client.awaiting import outcome

        return outcome(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._tid} {self._call.name} at {self.task_status()}>"

    def __reduce__(self) -> Any:
        return payloads.place_for(self)


class DataFuture(Future[File]):
    """The future of a file that a task makes: its value is the File, its error the task's.

    Attributes:
        app_future: of the task.
        file_obj: the File.
    """

    def __init__(self, app_future: AppFuture, file_obj: File) -> None:
        super().__init__()
        self._waiters = waiters()
        self.app_future = app_future
        self.file_obj = file_obj
        app_future.add_done_callback(self._follow)

    def _follow(self, app_future: AppFuture) -> None:
        """Bring the state of our own up to date, for `concurrent.futures.wait` and callbacks."""
        if app_future.cancelled():
            super().cancel()
            super().set_running_or_notify_cancel()
        elif app_future._has_failed():
            super().set_exception(app_future._failure())
        else:
            super().set_result(self.file_obj)

    @property
    def tid(self) -> int:
        """Number of the task."""
        return self.app_future.tid

    @property
    def filepath(self) -> str:
        """Path of the file."""
        return self.file_obj.filepath

    @property
    def filename(self) -> str:
        """Last part of the path."""
        return self.file_obj.filename

    def result(self, timeout: float | None = None) -> File:
        """The File, as soon as the task is done; otherwise as `AppFuture.result`."""
        error = self.app_future.exception(timeout)
        if error is None:
            return self.file_obj
        try:
            raise error
        finally:
            del self, error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the task, or None."""
        return self.app_future.exception(timeout)

    def cancel(self) -> bool:
        """Cancel the task."""
        return self.app_future.cancel()

    def done(self) -> bool:
        """Whether the task has ended."""
        return self.app_future.done()

    def running(self) -> bool:
        """Whether the task has been seen running."""
        return self.app_future.running()

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self.app_future.cancelled()

    def __await__(self) -> Generator[Any, None, File]:
        from exex.client.awaiting import outcome

        return outcome(self)

    def __repr__(self) -> str:
        return f"<DataFuture {self.file_obj.url!r} of {self.app_future!r}>"

    def __reduce__(self) -> Any:
        return payloads.place_after(self, self.file_obj)
