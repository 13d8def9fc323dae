"""Marks in what a task process prints, with `--output files`: whose the following bytes are. In task processes.

A mark is written before the first bytes that a task prints, so a task that prints nothing costs nothing. What bypasses Python's
streams, as C code does, has no mark of its own; the rank then goes by what it knows to run.
"""

from __future__ import annotations

import io
import os
import struct
from typing import Any, TextIO

from exex.protocol import context

_BEGIN = b"\x00\x1eexex\x1f"
_NUMBERS = struct.Struct("<qH")
MARK_BYTES = len(_BEGIN) + _NUMBERS.size
NOBODY = -1
_MOST_PENDING = 8192

Owner = tuple[int, int]
"""Task, as its client counts, and attempt."""


def mark(owner: Owner) -> bytes:
    """What stands before the bytes of this owner."""
    return _BEGIN + _NUMBERS.pack(*owner)


def split(data: bytes) -> tuple[list[tuple[Owner | None, bytes]], bytes]:
    """Bytes by owner (None: of whoever was named last), and what may be the beginning of a mark."""
    parts: list[tuple[Owner | None, bytes]] = []
    owner: Owner | None = None
    at = 0
    while (found := data.find(_BEGIN, at)) >= 0 and len(data) - found >= MARK_BYTES:
        if found > at:
            parts.append((owner, data[at:found]))
        task, attempt = _NUMBERS.unpack_from(data, found + len(_BEGIN))
        owner, at = (task, attempt), found + MARK_BYTES
        parts.append((owner, b""))
    end = found if found >= 0 else len(data) - _partial(data)
    if end > at:
        parts.append((owner, data[at:end]))
    return parts, data[max(end, at) :]


def _partial(data: bytes) -> int:
    """How many bytes at the end may begin a mark."""
    for length in range(min(len(_BEGIN) - 1, len(data)), 0, -1):
        if data.endswith(_BEGIN[:length]):
            return length
    return 0


class MarkedWriter(io.BufferedIOBase):
    """What stands behind sys.stdout or sys.stderr."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pipe = _identity(fd)
        self._pending = bytearray()
        self._task: Any = None  # whose that is
        self._named: Any = self  # whom the last mark has named

    def writable(self) -> bool:  # noqa: D102
        return True

    def fileno(self) -> int:  # noqa: D102
        return self._fd

    def write(self, data: Any) -> int:  # noqa: D102
        current = context.current_task
        if current is not self._task:
            self.flush()
            self._task = current
        self._pending += data
        if len(self._pending) > _MOST_PENDING:
            self.flush()
        return len(data)

    def flush(self) -> None:  # noqa: D102
        if self._pending:
            data = self._mark(self._task) + bytes(self._pending)
            self._pending.clear()
            _write_all(self._fd, data)

    def announce(self) -> None:
        """What follows, from whomever, belongs to the task that runs now."""
        self.flush()
        data = self._mark(context.current_task)
        if data:
            _write_all(self._fd, data)

    def _mark(self, task: Any) -> bytes:
        """The mark that is needed; none where the descriptor leads elsewhere at the moment."""
        if task is self._named or _identity(self._fd) != self._pipe:
            return b""
        self._named = task
        return mark((NOBODY, 0) if task is None else (task.task, task.attempt))


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


_writers: list[MarkedWriter] = []


def marked(fd: int) -> TextIO:
    """A text stream over a descriptor that writes marks."""
    writer: Any = MarkedWriter(fd)
    _writers.append(writer)
    return io.TextIOWrapper(writer, errors="backslashreplace", line_buffering=True, write_through=True)


def are_on() -> bool:
    """Whether this process writes marks."""
    return bool(_writers)


def announce() -> None:
    """The task that runs now starts a program that may print. Costs nothing without `--output files`."""
    for writer in _writers:
        writer.announce()
