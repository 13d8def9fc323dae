"""The futures that users see. Runs in the client; the mechanics are in `lazy`, the talk with the manager in `proxy`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import Any

from exex.client.away import waiters
from exex.client.lazy import LazyFuture
from exex.client.outcomes import NeedFailed
from exex.errors import DependencyError
from exex.files.file import File
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
        from exex.client import display

        return display.future_text(self)

    def _repr_html_(self) -> str:
        from exex.client import display

        return display.future_html(self)

    def __reduce__(self) -> Any:
        return payloads.place_for(self)


class DataFuture(Future[File]):
    """The future of a file that a task makes: its value is the File, its error the task's.

    Args:
        sent: of the task that sends the file to where its URL says, if there is one: then the file is there when that is done.

    Attributes:
        app_future: of the task.
        file_obj: the File.
        last: the future with which this one is done.
    """

    def __init__(self, app_future: AppFuture, file_obj: File, sent: AppFuture | None = None) -> None:
        super().__init__()
        self._waiters = waiters()
        self.app_future = app_future
        self.file_obj = file_obj
        self.last = app_future if sent is None else sent
        self.last.add_done_callback(self._follow)

    def _follow(self, _: AppFuture) -> None:
        """Bring the state of our own up to date, for `concurrent.futures.wait` and callbacks."""
        decisive = self._decisive()
        if decisive.cancelled():
            super().cancel()
            super().set_running_or_notify_cancel()
        elif decisive._has_failed():
            super().set_exception(decisive._failure())
        else:
            super().set_result(self._complete())

    def _decisive(self) -> AppFuture:
        """The future that says how this one has ended: that of the task, unless only the sending has failed."""
        task = self.app_future
        return task if task._has_failed() or task.cancelled() else self.last

    def _complete(self) -> File:
        """The File, with what is known of its content."""
        if self.last is not self.app_future:
            self.file_obj.sha256, self.file_obj.size_bytes = self.last.result(0)
        return self.file_obj

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
        error = self.exception(timeout)
        if error is None:
            return self._complete()
        try:
            raise error
        finally:
            del self, error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the task, or of sending its file; or None."""
        if not self.last._wait(timeout):
            raise TimeoutError()
        if self._decisive() is not self.last:
            self.last._call.proxy.seen(self.last)  # it has failed because the task has
        return self._decisive().exception(0)

    def cancel(self) -> bool:
        """Cancel the task, or the sending of its file if that is all that is left."""
        return self.app_future.cancel() or self.last.cancel()

    def done(self) -> bool:
        """Whether the task has ended, and its file is where it should be."""
        return self.last.done()

    def running(self) -> bool:
        """Whether the task has been seen running, and has not ended with all that belongs to it."""
        return not self.last.done() and (self.app_future.running() or self.last.running() or self.app_future.done())

    def cancelled(self) -> bool:
        """Whether the task was cancelled, or the sending of its file."""
        return self.app_future.cancelled() or self.last.cancelled()

    def __await__(self) -> Generator[Any, None, File]:
        from exex.client.awaiting import outcome

        return outcome(self)

    def __repr__(self) -> str:
        from exex.client import display

        return display.file_text(self)

    def _repr_html_(self) -> str:
        from exex.client import display

        return display.file_html(self)

    def __reduce__(self) -> Any:
        file = self.file_obj
        if file.sha256 is not None or file.to is not None:
            file = file.at(file.filepath)  # it is there when this one is done: nothing is fetched or looked at before
        return payloads.place_after(self, file)
