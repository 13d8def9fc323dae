"""Cells of a notebook: Ctrl-C in one cancels what it has started and what it waits for. Runs in the client.

Nothing here imports IPython: where it does not run, there are no cells.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

from exex.client.executor import Executor
from exex.client.futures import DataFuture
from exex.client.lazy import LazyFuture
from exex.client.mapping import Mapping
from exex.client.session import Session

_WAITS: dict[CodeType, Callable[[dict[str, Any]], Iterable[Any]]] = {
    LazyFuture._wait.__code__: lambda names: (names.get("self"),),
    concurrent.futures.wait.__code__: lambda names: names.get("fs", ()),
    concurrent.futures.as_completed.__code__: lambda names: names.get("fs", ()),
    Session.wait.__code__: lambda names: names["self"].proxy.outbox.open_futures(),
    Executor.shutdown.__code__: lambda names: names["self"]._open_futures(),
}
"""Functions that wait, and for which futures, as their local names say."""

_TICK_S = 0.2


def waited_for(error: BaseException) -> list[LazyFuture]:
    """The futures, not done yet, that a thread was waiting for when an exception tore it out of that."""
    found: dict[LazyFuture, None] = {}
    trace = error.__traceback__
    while trace is not None:
        names = _WAITS.get(trace.tb_frame.f_code)
        for future in () if names is None else names(trace.tb_frame.f_locals):
            owner = future.app_future if isinstance(future, DataFuture) else future
            if isinstance(owner, LazyFuture) and not owner.done():
                found[owner] = None
        trace = trace.tb_next
    return list(found)


class Cells:
    """The cells that run while this process is a client."""

    def __init__(self, shell: Any, session: Session) -> None:
        self._events = shell.events
        self._running: asyncio.Task[Any] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._session = session
        self._events.register("pre_run_cell", self._begin)
        self._events.register("post_run_cell", self._end)
        self._begin(None)

    def leave(self) -> None:
        """Look at no further cell."""
        self._rest()
        for name, function in (("pre_run_cell", self._begin), ("post_run_cell", self._end)):
            try:
                self._events.unregister(name, function)
            except ValueError:
                pass  # the user has reset the events

    def _begin(self, info: object) -> None:
        self._newest = self._session.proxy.outbox.newest()
        self._mappings = set(self._session.mappings)
        try:
            self._running = asyncio.current_task()  # if the cell awaits, this is its own
        except RuntimeError:
            return  # no loop runs in this thread
        self._tick()

    def _tick(self) -> None:
        """Wake the loop now and then: what ipykernel asks of it when SIGINT comes does not."""
        if self._running is not None:
            self._ticking = self._running.get_loop().call_later(_TICK_S, self._tick)

    def _rest(self) -> tuple[asyncio.Task[Any] | None, set[Mapping]]:
        """No cell runs. Returns the task of the one that did, and the maps that were not fed to their end when it began."""
        found = self._running, self._mappings
        self._running, self._mappings = None, set()
        if self._ticking is not None:
            self._ticking.cancel()
        return found

    def _end(self, result: Any) -> None:
        running, mappings = self._rest()
        error = None if result is None else result.error_in_exec
        if error is None or (not isinstance(error, KeyboardInterrupt) and not _was_cancelled(running, error)):
            return
        for mapping in self._session.mappings - mappings:
            mapping.cancel()
        futures = dict.fromkeys(future for future in self._session.proxy.outbox.open_futures() if future._tid > self._newest)
        futures.update(dict.fromkeys(waited_for(error)))  # type: ignore[arg-type]
        count = sum(future.cancel() for future in futures)
        if count:
            print(f"exex: the interrupt has cancelled {count} task{'s' if count > 1 else ''}", file=sys.stderr, flush=True)


def _was_cancelled(running: asyncio.Task[Any] | None, error: BaseException) -> bool:
    """Whether this is how an interrupt ends a cell that awaits: the asyncio task that runs it is cancelled."""
    cancelling = getattr(running, "cancelling", None)  # from Python 3.11 on
    return isinstance(error, asyncio.CancelledError) and cancelling is not None and cancelling() > 0
