"""A bar that shows how far tasks are. Runs in the client: its thread draws, the threads that end futures only count."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from exex.client import interactive
from exex.client.display import duration
from exex.client.futures import AppFuture, DataFuture

_PERIOD_S = 0.2
_LOG_PERIOD_S = 10.0
"""The same where nobody looks, such as in the log of a job."""


def progress(futures: Iterable[Future[Any]], title: str = "") -> Progress:
    """Show a bar of how far these tasks are. It goes on by itself; iterate over what this returns, or `wait`, to go with it.

    Args:
        futures: of exex, or any `concurrent.futures.Future`.
        title: stands before the bar.
    """
    return Progress(futures, title)


class Count(Protocol):
    """What a bar shows."""

    total: int
    failed: int
    cancelled: int

    @property
    def ended(self) -> int:
        """Tasks that have ended, in whatever way."""

    @property
    def running(self) -> int:
        """Tasks that have been running for a while."""


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
        bar = _bar(self.total, title)
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

    def _draw(self, bar: _Bar) -> None:
        while not self._all_ended.wait(_PERIOD_S):
            bar.draw(self)
        bar.draw(self)
        bar.close()

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


def sentence(count: Count) -> str:
    """`412 of 1000 done, 3 failed, 8 running`."""
    done = count.ended - count.failed - count.cancelled
    return ", ".join([f"{done} of {count.total} done", *_more(count)])


def _more(count: Count) -> list[str]:
    pairs = ((count.failed, "failed"), (count.cancelled, "cancelled"), (count.running, "running"))
    return [f"{number} {what}" for number, what in pairs if number]


# ---- what is drawn -------------------------------------------------------------------------------------------------


class _Bar(Protocol):
    def draw(self, count: Count) -> None:
        """Show this. In one thread."""

    def close(self) -> None:
        """Leave what was drawn at last."""


def _bar(total: int, title: str) -> _Bar:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(title)
    return _Tqdm(tqdm, total, title)


class _Tqdm:
    """tqdm's bar: widgets in a notebook, a line in a terminal."""

    def __init__(self, tqdm: Any, total: int, title: str) -> None:
        self._is_seen = _is_seen()
        period_s = _PERIOD_S if self._is_seen else _LOG_PERIOD_S
        self._bar = tqdm(total=total, desc=title or None, unit="task", dynamic_ncols=True, mininterval=period_s)

    def draw(self, count: Count) -> None:
        bar = self._bar
        bar.set_postfix_str(", ".join(_more(count)), refresh=False)
        if count.failed:
            bar.colour = "red"
        bar.update(count.ended - bar.n)
        if self._is_seen:
            bar.refresh()  # also if none has ended: the time goes on, and tasks begin to run

    def close(self) -> None:
        self._bar.close()


class _Line:
    """A line that is written over and over; where nobody looks, a new one now and then."""

    def __init__(self, title: str) -> None:
        self._title = f"{title}: " if title else ""
        self._began_s = time.monotonic()
        self._file = sys.stderr
        self._is_seen = _is_seen()
        self._drawn = ""
        self._next_s = self._began_s + (0.0 if self._is_seen else _LOG_PERIOD_S)

    def draw(self, count: Count) -> None:
        self._text = self._title + sentence(count)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + (0.0 if self._is_seen else _LOG_PERIOD_S)
            self._write(self._text)

    def close(self) -> None:
        self._write(f"{self._text}, after {duration(time.monotonic() - self._began_s)}")
        if self._is_seen:
            print(file=self._file, flush=True)

    def _write(self, text: str) -> None:
        if not self._is_seen:
            print(text, file=self._file, flush=True)
        elif text != self._drawn:
            print("\r" + text.ljust(len(self._drawn)), end="", file=self._file, flush=True)
            self._drawn = text


def _is_seen() -> bool:
    """Whether somebody looks: at a terminal, or at a notebook."""
    return interactive.shell() is not None or sys.stderr.isatty()
