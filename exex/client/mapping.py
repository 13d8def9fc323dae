"""One call of `map`: items become chunks, chunks become tasks, and their values become items again. Runs in the client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from itertools import islice
from typing import TYPE_CHECKING, Any

from exex.client.futures import AppFuture
from exex.client.outcomes import Call
from exex.client.retries import TaskRecord
from exex.protocol import payload as payloads
from exex.protocol.payload import Large, Stored

if TYPE_CHECKING:
    from exex.client.session import Session

_PAUSE_S = 0.001
_CHUNK_S = 0.005
_LEAST_S = 0.0003
_MOST_ITEMS = 1000
_MOST_AT_FIRST = 16  # the function may have been quick with other items
_GROWTH = 4
_MOST_BYTES = 256 * 1024 * 1024
_SLICED = (range, list, tuple)

Columns = tuple[Any, ...]
"""A chunk: from each iterable as many items; a slice of it where it can be sliced."""


def can_be_sliced(iterable: object) -> bool:
    """Whether slices of `iterable` can be sent instead of its items one by one."""
    cls = type(iterable)
    if cls in _SLICED:
        return True
    return cls.__name__ == "ndarray" and cls.__module__ == "numpy" and bool(iterable.shape)  # type: ignore[attr-defined]


class _Slices:
    """Cuts chunks from sequences."""

    def __init__(self, sequences: tuple[Any, ...]) -> None:
        self._sequences = sequences
        self._at = 0

    def left(self) -> int | None:
        """Items that are left; None if that is not known."""
        return max(0, min(map(len, self._sequences)) - self._at)

    def take(self, count: int) -> tuple[Columns, int]:
        """The next chunk, and its length; 0 at the end."""
        count = min(count, self.left() or 0)
        begin, self._at = self._at, self._at + count
        return tuple(sequence[begin : self._at] for sequence in self._sequences), count


class _Rows:
    """Cuts chunks from any iterables."""

    def __init__(self, iterables: tuple[Iterable[Any], ...]) -> None:
        self._rows = zip(*iterables)

    def left(self) -> int | None:
        """As `_Slices.left`."""
        return None

    def take(self, count: int) -> tuple[Columns, int]:
        """As `_Slices.take`."""
        rows = list(islice(self._rows, count))
        return tuple(zip(*rows)), len(rows)


class _Chunk:
    """A chunk on its way.

    Attributes:
        columns: kept only while it might have to be sent again.
        record: of the failures of its first item.
        is_open: it has no outcome, as far as the mapping has noticed.
        is_measured: its running time has been looked at.
    """

    __slots__ = ("columns", "future", "is_measured", "is_open", "length", "record", "size_bytes")

    def __init__(self, columns: Columns | None, length: int, record: TaskRecord | None) -> None:
        self.columns = columns
        self.length = length
        self.record = record
        self.is_open = True
        self.is_measured = False
        self.size_bytes = 0
        self.future: AppFuture


class Mapping:
    """Feeds chunks to the manager and takes their results in order.

    Whoever iterates feeds. If the iterables have lengths, a thread feeds as well when the slots would run dry: then the
    work goes on though nobody iterates, as with executors that submit everything at once.

    Args:
        call: of the function on chunks; None if each item is a task of its own.
        send: submits a chunk, or (call is None) the arguments of one item.
        chunksize: items per chunk; None to find a good number.
        buffersize: items that may be on their way, or wait to be taken.
        owner: the executor.
    """

    def __init__(  # noqa: PLR0917
        self,
        session: Session,
        iterables: tuple[Iterable[Any], ...],
        call: Call | None,
        send: Callable[[Columns], AppFuture],
        chunksize: int | None,
        buffersize: int | None,
        owner: object,
    ) -> None:
        sliced = all(map(can_be_sliced, iterables)) and bool(iterables)
        self.owner = owner
        self._session = session
        self._call = call
        self._send = send
        self._source: _Slices | _Rows = _Slices(iterables) if sliced else _Rows(iterables)
        self._runs_ahead = sliced and buffersize is None
        self._keeps_columns = call is not None and (call.retries > 0 or call.handler is not None)
        self._window = 2 * max(1, session.proxy.welcome.slots)
        self._fixed_size = chunksize
        self._size = chunksize or 1
        self._item_s = -1.0 if call is None else session.item_s.get(call.number, -1.0)
        if chunksize is None and self._item_s >= 0:
            self._size = min(self._best_size(), _MOST_AT_FIRST)
        self._most_items = buffersize
        self._chunks: deque[_Chunk] = deque()
        self._last_ended: _Chunk | None = None
        self._open = 0  # chunks without an outcome
        self._buffered = 0  # items in _chunks
        self._bytes = 0  # of the chunks in _chunks
        self._exhausted = False  # nothing more will be taken from the source
        self._error: BaseException | None = None  # that the source, or pickling what it gave, has raised
        self._started = False
        self._feeding = threading.Lock()
        self._counting = threading.Lock()

    # ---- feeding ---------------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Send chunks while there is room for more. If another thread is at it, leave it to that one."""
        if self._exhausted or not self._feeding.acquire(blocking=False):
            return
        try:
            if self._last_ended is not None:
                self._measure(self._last_ended)
            while not self._exhausted and self._has_room():
                self._send_next()
        finally:
            self._feeding.release()

    def _has_room(self) -> bool:
        if self._most_items is not None and self._buffered >= self._most_items:
            return False
        if self._runs_ahead:
            return self._open < self._window
        return len(self._chunks) < self._window and (self._bytes < _MOST_BYTES or not self._chunks)

    def _send_next(self) -> _Chunk | None:
        size, left = self._size, self._source.left()
        if self._fixed_size is None and left is not None:
            size = max(self._least_size(), min(size, left // self._window))  # the last are small, so that all slots end together
        if self._most_items is not None:
            size = min(size, self._most_items - self._buffered)
        try:
            columns, length = self._source.take(size)
            if length:
                chunk = self._submit(columns, length, None)
                self._chunks.append(chunk)
                if self._exhausted:  # the iterator was closed meanwhile
                    chunk.future.cancel()
                return chunk
        except Exception as error:  # of the script's own iterator, or of pickling: it has its turn after the results
            self._error = error
        self._stop_feeding()
        return None

    def _submit(self, columns: Columns, length: int, record: TaskRecord | None) -> _Chunk:
        chunk = _Chunk(columns if self._keeps_columns else None, length, record)
        chunk.future = self._send(columns if self._call is not None else tuple(column[0] for column in columns))
        raw = chunk.future._raw
        chunk.size_bytes = raw if type(raw) is int else len(raw) if isinstance(raw, (bytes, Large, Stored)) else 0
        with self._counting:
            self._open += 1
            self._buffered += length
            self._bytes += chunk.size_bytes
        chunk.future.add_done_callback(lambda _: self._notice_end(chunk, self._runs_ahead))
        return chunk

    def _notice_end(self, chunk: _Chunk, feed: bool) -> None:
        with self._counting:
            if chunk.is_open:
                chunk.is_open = False
                self._open -= 1
            self._last_ended = chunk
            starving = self._open <= self._window // 4
        if feed and starving and not self._exhausted:
            self._session.run_feeder(self.feed)

    def _measure(self, chunk: _Chunk) -> None:
        """Learn from a chunk that has ended how many items a chunk should have."""
        if self._fixed_size is not None or self._call is None or chunk.is_measured or chunk.future.cancelled():
            return
        chunk.is_measured = True
        if chunk.future._has_failed() or chunk.future.exception() is not None:
            return
        values, _, seconds = chunk.future.result()
        if values:
            item_s = seconds / len(values)
            self._item_s = item_s if self._item_s < 0 else (self._item_s + item_s) / 2
            self._session.item_s[self._call.number] = self._item_s
            self._size = min(self._best_size(), self._size * _GROWTH)

    def _least_size(self) -> int:
        """Of which smaller chunks would gain nothing."""
        return 1 if self._item_s < 0 else max(1, min(self._size, int(_LEAST_S / max(self._item_s, _LEAST_S / _MOST_ITEMS))))

    def _best_size(self) -> int:
        return max(1, int(_CHUNK_S / max(self._item_s, _CHUNK_S / _MOST_ITEMS)))

    def _stop_feeding(self) -> None:
        self._exhausted = True
        self._session.mappings.discard(self)

    # ---- results ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Send the first chunks.

        Raises:
            Exception: already the first item cannot be sent.
        """
        self._session.mappings.add(self)
        self.feed()
        if self._error is not None and not self._chunks:
            raise self._error

    def results(self, timeout: float | None) -> Iterator[Any]:
        """Begin, and return the iterator over the values. Errors as `begin`."""
        end_s = None if timeout is None else time.monotonic() + timeout
        self.begin()
        return self._iterate(end_s)

    async def iterate_in_loop(self, end_s: float | None) -> AsyncIterator[Any]:
        """The values, after `begin`, in an event loop, which is never blocked."""
        import asyncio

        from exex.client.awaiting import until_ended

        exempted = self._session.proxy.pressure.exempted  # what is ahead is bounded by the window
        self._started = True
        try:
            while self._chunks or not self._exhausted:
                with exempted():
                    self.feed()
                if not self._chunks:
                    if not self._exhausted:
                        await asyncio.sleep(_PAUSE_S)  # another thread is at it
                    continue
                chunk = self._chunks[0]
                await until_ended(chunk.future, None if end_s is None else end_s - time.monotonic())
                with exempted():
                    values, error = self._take(chunk)
                for value in values:
                    yield value
                if error is not None:
                    raise error
            if self._error is not None:
                raise self._error
        finally:
            self._abandon()

    def _iterate(self, end_s: float | None) -> Iterator[Any]:
        self._started = True
        try:
            while True:
                self.feed()
                if not self._chunks:
                    if self._exhausted:
                        break
                    with self._feeding:  # another thread is at it
                        continue
                chunk = self._chunks[0]
                chunk.future._wait(None if end_s is None else end_s - time.monotonic())
                values, error = self._take(chunk)
                values.reverse()
                while values:  # without keeping what the caller may want to be rid of
                    yield values.pop()
                if error is not None:
                    raise error
            if self._error is not None:
                raise self._error
        finally:
            self._abandon()

    def _abandon(self) -> None:
        self._stop_feeding()
        for chunk in list(self._chunks):
            chunk.future.cancel()

    def _take(self, chunk: _Chunk) -> tuple[list[Any], BaseException | None]:
        """The values of the first chunk, and the error of the item after them; sends the rest again if it may be."""
        value = chunk.future.result(0)
        self._notice_end(chunk, False)
        self._chunks.popleft()
        with self._counting:
            self._buffered -= chunk.length
            self._bytes -= chunk.size_bytes
        if self._call is None:
            return [value], None
        values, payload, _ = value
        if payload is None:
            self.feed()
            return list(values), None
        error: BaseException = payloads.load(payload)
        record = chunk.record if chunk.record is not None and not values else TaskRecord(chunk.future)
        final = record.judge(error, self._call)
        if final is None and chunk.columns is not None:
            rest = tuple(column[len(values) :] for column in chunk.columns)
            self._chunks.appendleft(self._submit(rest, chunk.length - len(values), record))
        return list(values), final

    # ---- the end ---------------------------------------------------------------------------------------------------

    def run_out(self) -> None:
        """Send everything that is left, unless somebody who iterates decides about that."""
        if self._started and not self._runs_ahead:
            return
        sent = deque(self._chunks)
        while not self._exhausted:
            while sent and self._open >= self._window:
                chunk = sent.popleft()
                chunk.future._wait()
                self._notice_end(chunk, False)
            with self._feeding:
                newest = None if self._exhausted else self._send_next()
            if newest is not None:
                sent.append(newest)

    def cancel(self) -> None:
        """Send nothing more; whoever iterates gets a CancelledError after the results that there are."""
        if not self._exhausted:
            self._error = CancelledError("the executor was shut down with cancel_futures=True")
            self._stop_feeding()
