"""A bar that shows how far tasks are. Runs in the client: its thread draws, the threads that end futures only count."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from exex.client import bars
from exex.client.bars import sentence
from exex.client.futures import AppFuture, DataFuture

_PERIOD_S = 0.2
"""Between two looks."""


def progress(futures: Iterable[Future[Any]], title: str = "") -> Progress:
    """Show a bar of how far these tasks are. It goes on by itself; iterate over what this returns, or `wait`, to go with it.

    Args:
        futures: of exex, or any `concurrent.futures.Future`.
        title: stands before the bar.
    """
    return Progress(futures, title)


class Progress:
    """Futures on their way to their ends. Iterating yields them as they end, each once, whoever iterates.

    Attributes:
        total: futures; `ended`, of these `failed` and `cancelled`: how many have ended so far.
    """

    def __init__(self, futures: Iterable[Future[Any]], title: str = "") -> None:
        self._futures = list(dict.fromkeys(futures))
        self.total = len(self._futures)
        self.failed = self.cancelled = 0
        self._running: set[int] = set()
        self._order: list[Future[Any]] = []  # in which they have ended
        self._changed = threading.Condition()
        self._all_ended = threading.Event()
        if not self._futures:
            self._all_ended.set()
        bar = bars.bar(self.total, title)
        for future in self._futures:
            owner = _task_of(future)
            if owner is not None:
                owner._report_running_in(self._running)
            future.add_done_callback(self._count)
        self._drawer = threading.Thread(target=self._draw, args=(bar,), name="exex-progress", daemon=True)
        self._drawer.start()

    @property
    def ended(self) -> int:
        """Futures that have ended, in whatever way."""
        return len(self._order)

    @property
    def running(self) -> int:
        """Tasks that have been running for a while."""
        return len(self._running)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended, for `timeout` seconds at most; returns whether they have. Ctrl-C cancels them."""
        self._check_thread()
        try:
            if self._all_ended.wait(timeout):
                self._drawer.join()  # what is printed from here on stands below the bar
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self._all_ended.is_set()

    def cancel(self) -> None:
        """Cancel all that have not ended."""
        for future in self._futures:
            future.cancel()

    def __iter__(self) -> Iterator[Future[Any]]:
        self._check_thread()
        at = 0
        try:
            while at < self.total:
                with self._changed:
                    while len(self._order) == at:
                        self._changed.wait()
                at += 1
                yield self._order[at - 1]
            self._drawer.join()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def __len__(self) -> int:
        return self.total

    def __repr__(self) -> str:
        return f"<Progress: {sentence(self)}>"

    def _ipython_display_(self) -> None:
        """The bar is there already."""

    # ---- other threads -----------------------------------------------------------------------------------------

    def _count(self, future: Future[Any]) -> None:
        owner = _task_of(future)
        if owner is not None:
            self._running.discard(owner._tid)
        with self._changed:
            if future.cancelled():
                self.cancelled += 1
            elif owner._has_failed() if owner is not None else future.exception() is not None:
                self.failed += 1
            self._order.append(future)
            self._changed.notify_all()
            if len(self._order) == self.total:
                self._all_ended.set()

    def _draw(self, bar: bars.Bar) -> None:
        try:
            while not self._all_ended.wait(_PERIOD_S):
                bar.draw(self)
            bar.draw(self)
            bar.close()
        except (OSError, ValueError):
            pass  # the terminal, or the stream, is closed

    def _check_thread(self) -> None:
        """Raise where nobody could end the wait."""
        for future in self._futures:
            owner = _task_of(future)
            if owner is not None and not owner.done():
                owner._call.proxy.before_waiting(owner)
                return


def _task_of(future: Future[Any]) -> AppFuture | None:
    owner = future.app_future if isinstance(future, DataFuture) else future
    return owner if isinstance(owner, AppFuture) else None
