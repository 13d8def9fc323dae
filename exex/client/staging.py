"""Files of calls that are elsewhere: which stage tasks there are, and where what they fetch lies. Runs in the client.

A file is fetched once per job to each place, by a task that every call which takes it needs. It lies in a directory that all
nodes see; for a node's own disk, the tasks that take it copy it from there, the first of each node for the others.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any

from exex.client import session
from exex.client.apps import PythonApp
from exex.client.futures import AppFuture, DataFuture
from exex.client.session import Session
from exex.errors import ConfigError
from exex.files import transfer
from exex.files.arrivals import Arriving
from exex.files.file import NODE, RUN, File, shown
from exex.files.staging import find, load
from exex.protocol import payload as payloads

_BELOW = "files"
"""Directory of the run's directory."""


class Stager:
    """Stage tasks of one session."""

    def __init__(self, current: Session) -> None:
        self._files_dir = os.path.join(current.proxy.welcome.run_dir, _BELOW)
        self._to = current.settings.fetch_to
        self._configured = [load(name) for name in current.settings.staging]
        self._exempted = current.proxy.pressure.exempted  # who holds the lock does not wait; the call itself will, if need be
        self._lock = threading.RLock()  # a Staging may pickle whatever it likes
        self._fetched: dict[tuple[str, str | None, str], AppFuture] = {}
        self._owners: dict[str, tuple[str, str | None]] = {}  # what lies under a path
        self._apps: dict[tuple[Callable[..., Any], str], PythonApp] = {}

    # ---- in ----

    def as_argument(self, file: File) -> tuple[Any, ...] | None:
        """How a file pickles as an argument; None: as itself.

        Raises:
            ConfigError: nothing serves it, or what it says of its place cannot be.
        """
        to = file.to
        if file.scheme == "file":
            if to is None and file.sha256 is None:
                return None
            path = os.path.abspath(file.path)
            if to == NODE:
                return Arriving(file, path).__reduce__()
            if to is None:
                there = file.at(path)
                return payloads.place_after(self._stage_in(transfer.verify, there), there)
        to = to or self._to
        local = file.at(self._path(file, to))
        future = self._stage_in(transfer.fetch, local)
        if to != NODE:
            return payloads.place_after(future, local)
        assert local.local_path is not None
        return payloads.place_after(future, Arriving(file, local.local_path))

    def _path(self, file: File, to: str) -> str:
        """Where a file lies that was fetched, for all nodes to see."""
        if to in (RUN, NODE):
            return os.path.join(self._files_dir, _short(file), file.local_name())
        return os.path.join(os.path.abspath(to), file.local_name())

    def _stage_in(self, function: Callable[..., Any], local: File) -> AppFuture:
        """The task that brings a file to its place: a new one, if there is none that has not failed."""
        path = local.local_path
        assert path is not None
        key, content = (local.url, local.sha256, path), (local.url, local.sha256)
        with self._lock:
            owner = self._owners.setdefault(path, content)
            if owner != content and function is not transfer.verify:
                raise ConfigError(
                    f"{shown(owner[0])} and {shown(local.url)} would both be fetched to {path}, or one file with two sums; "
                    "name another directory for one of them, File(..., to=DIRECTORY)"
                )
            future = self._fetched.get(key)
            if future is None or future._has_failed() or future.cancelled():
                staging = find(local, self._configured)
                with self._exempted():
                    future = self._fetched[key] = self._app(function, "_stage_in", local)(staging, local)
        return future

    # ---- out ----

    def outgoing(self, file: File) -> File:
        """An output as its task sees it: with a path of its own, if it is to be sent from there.

        Raises:
            ConfigError: nothing serves it, or it asks for a place that outputs cannot have.
        """
        if file.to == NODE:
            text = "it is written where all nodes see it, to be sent from there"
            raise ConfigError(f"{shown(file.url)} is an output, and so cannot have to={NODE!r}: {text}")
        if file.scheme == "file":
            return file
        find(file, self._configured)
        if file.local_path is not None:
            return file
        if file.to in (None, RUN):
            return file.at(os.path.join(self._files_dir, f"{_short(file)}-out", file.local_name()))
        return file.at(self._path(file, str(file.to)))

    def sent(self, future: AppFuture, file: File) -> AppFuture:
        """The task that sends an output, as soon as `future` is done. The manager has been told of that."""
        app = self._app(transfer.send, "_stage_out", file)
        with self._exempted():
            result: AppFuture = app(find(file, self._configured), DataFuture(future, file))
        return result

    def _app(self, function: Callable[..., Any], kind: str, file: File) -> PythonApp:
        name = f"{kind}:{file.scheme}"
        app = self._apps.get((function, name))
        if app is None:
            app = self._apps[function, name] = PythonApp(function)
            app.__name__ = name
        return app


def _short(file: File) -> str:
    """Name of a directory for one file alone."""
    text = f"{file.url}\0{file.sha256 or ''}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


_stager: tuple[Session, Stager] | None = None
_making = threading.RLock()  # what it names is imported, and may use files


def stager() -> Stager:
    """That of the session.

    Raises:
        ConfigError: what `--staging` names cannot be used.
    """
    global _stager  # noqa: PLW0603
    current = session.current("a File")
    with _making:
        if _stager is None or _stager[0] is not current:
            _stager = (current, Stager(current))
        return _stager[1]


def as_argument(file: File) -> tuple[Any, ...] | None:
    """See `Stager.as_argument`."""
    return stager().as_argument(file)


def outgoing(file: File) -> File:
    """See `Stager.outgoing`."""
    return stager().outgoing(file)


def sent(future: AppFuture, file: File) -> AppFuture:
    """See `Stager.sent`."""
    return stager().sent(future, file)
