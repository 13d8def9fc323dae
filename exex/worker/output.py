"""A worker rank's own stdout or stderr, where it passes on what tasks print. Never waits for whoever reads it.

A launcher that reads slowly holds up the tasks that print, each at its own pipe, and nothing else: the rank goes on.
O_NONBLOCK belongs to an open file, which the launcher may share with others, so it is not set on the descriptor that the
rank was given: pipes and terminals are opened anew, and sockets have MSG_DONTWAIT. Files never make a writer wait.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections import deque

MOST_KEPT = 4 * 1024**2
"""Bytes that are kept, while nobody reads, of task processes that have ended; what comes beyond that is lost."""

_ENDED = -1


class Outlet:
    """Passes chunks on in the order in which they come.

    Attributes:
        full: nobody reads at the moment; `fileno` turns writable when `resume` has something to do.
        dropped_bytes: lost, because too many task processes ended while nobody read.
    """

    def __init__(self, fd: int) -> None:
        self.full = False
        self.dropped_bytes = 0
        self._rest: deque[tuple[int, memoryview]] = deque()  # the pipe that it came from, and what is to be written
        self._socket: socket.socket | None = None
        self._fd = fd
        self._most = 1 << 30
        self._opened = False
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(fd))
            elif not stat.S_ISREG(mode):
                self._open_anew(fd)
        except OSError:
            self._fd = -1  # closed: nobody wants it

    def _open_anew(self, fd: int) -> None:
        try:
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            self._opened = True
        except OSError:  # somebody else's terminal; so much can be written without waiting if there is room at all
            self._most = select.PIPE_BUF

    def fileno(self) -> int:
        """The descriptor that is written to."""
        return self._fd if self._socket is None else self._socket.fileno()

    def pass_on(self, pipe: int, data: bytes) -> bool:
        """Write what came from a pipe; False if some of it must wait, and the pipe must not be read until `resume`."""
        view = memoryview(data)
        if not self._rest:
            view = view[self._write(view) :]
            if not view:
                return True
        self.full = True
        self._rest.append((pipe, view))
        return False

    def ended(self, pipe: int) -> None:
        """A pipe is about to be closed: it is not to be read again."""
        self._rest = deque((_ENDED if owner == pipe else owner, view) for owner, view in self._rest)
        kept = sum(len(view) for owner, view in self._rest if owner == _ENDED)
        while kept > MOST_KEPT:
            at = next(i for i, (owner, _) in enumerate(self._rest) if owner == _ENDED)
            kept -= len(self._rest[at][1])
            self.dropped_bytes += len(self._rest[at][1])
            del self._rest[at]

    def resume(self) -> list[int]:
        """Write what has waited, as far as it goes; the pipes that can be read again."""
        free: list[int] = []
        while self._rest:
            pipe, view = self._rest[0]
            view = view[self._write(view) :]
            if view:
                self._rest[0] = (pipe, view)
                return free
            self._rest.popleft()
            if pipe != _ENDED and all(pipe != other for other, _ in self._rest):
                free.append(pipe)
        self.full = False
        return free

    def drain(self, most_s: float) -> None:
        """At the end: write what has waited, for so long at the most."""
        until_s = time.monotonic() + most_s
        poll = select.poll()
        if self._rest:
            poll.register(self.fileno(), select.POLLOUT)
        while self._rest and (left_s := until_s - time.monotonic()) > 0:
            poll.poll(left_s * 1e3)
            self.resume()
        self.dropped_bytes += sum(len(view) for _, view in self._rest)
        self._rest.clear()

    def close(self) -> None:
        """Release what was opened."""
        if self._socket is not None:
            self._socket.close()
        elif self._opened:
            os.close(self._fd)

    def _write(self, view: memoryview) -> int:
        """Write what goes without waiting; how much that was."""
        written = 0
        try:
            while written < len(view):
                if self._most == select.PIPE_BUF and not _has_room(self._fd):
                    break
                part = view[written : written + self._most]
                if self._socket is not None:
                    written += self._socket.send(part, socket.MSG_DONTWAIT)
                else:
                    written += os.write(self._fd, part)
        except BlockingIOError:
            pass
        except OSError:
            return len(view)  # nobody reads it any more, or the disk is full
        return written


def _has_room(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
