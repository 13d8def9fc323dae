"""Marks in what a task process prints, with `--output files`: whose the following bytes are. In task processes.

A mark is written before the first bytes that a task prints, so a task that prints nothing costs nothing. So it is before a task
starts a program, which may print, and before what C code has left in its buffer is written. What comes without a mark belongs to
the call that has run longest, as far as the rank knows.
"""

from __future__ import annotations

import ctypes
import io
import os
import struct
import sys
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

    def announce(self, task: Any) -> None:
        """What follows, from whomever, belongs to this task."""
        self.flush()
        data = self._mark(task)
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
    if not _writers:
        _watch_programs()
        buffer = ctypes.create_string_buffer(_C_BUFFER_BYTES)  # C may have been left without
        _libc.setvbuf(_c_stdout, buffer, _IO_FULL, ctypes.c_size_t(_C_BUFFER_BYTES))
        _kept.append(buffer)
    _writers.append(writer)
    return io.TextIOWrapper(writer, errors="backslashreplace", line_buffering=True, write_through=True)


def are_on() -> bool:
    """Whether this process writes marks."""
    return bool(_writers)


def announce(task: Any) -> None:
    """What is printed next is this task's."""
    for writer in _writers:
        writer.announce(task)


def has_c_pending() -> bool:
    """Whether C code has printed something that is not written yet."""
    return bool(_fpending is not None and _fpending(_c_stdout))


_IO_FULL = 0
_kept: list[Any] = []  # memory that C uses as long as the process lasts
_C_BUFFER_BYTES = 65536
_STARTS = frozenset(("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec"))
_libc = ctypes.CDLL(None)
_c_stdout = ctypes.c_void_p.in_dll(_libc, "stdout")
_fpending = getattr(_libc, "__fpending", None)  # of glibc and musl
if _fpending is not None:
    _fpending.restype = ctypes.c_size_t


def _watch_programs() -> None:
    """Announce every program that a task starts from Python."""

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS and os.getpid() == own and context.current_task is not None:
            announce(context.current_task)

    own = os.getpid()
    sys.addaudithook(on_event)
