"""Streams across a connection: `Outflow` from a descriptor to the wire, `Inflow` from the wire to a descriptor.

Each stream has a credit of its own. So a reader who does not read stops the program that writes, at WINDOW_BYTES, but neither the
other streams nor a signal; and no buffer grows beyond that.
"""

from __future__ import annotations

import os
import select
import stat

from exex.remote import wire
from exex.remote.wire import PIECE_BYTES, WINDOW_BYTES, Broken, Wire

_PIPE_BYTES = 4096
"""What a pipe that polls as writable takes without blocking, on Linux."""


class Outflow:
    """Sends what comes out of a descriptor.

    Attributes:
        is_open: more may come.
        passes_over: read, but send nothing: nobody is there any more.
    """

    def __init__(self, fd: int, stream: int, to: Wire) -> None:
        self.fd = fd
        self.is_open = True
        self.passes_over = False
        self._stream = bytes([stream])
        self._wire = to
        self._credit = WINDOW_BYTES

    def wants(self) -> bool:
        """Whether to poll for reading."""
        return self.is_open and (self.passes_over or self._credit > 0)

    def move(self) -> None:
        """Read once, and send it."""
        try:
            data = os.read(self.fd, PIECE_BYTES if self.passes_over else min(PIECE_BYTES, self._credit))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # a terminal that is gone
            data = b""
        if not self.passes_over:
            self._wire.send(wire.DATA, self._stream, data)
            self._credit -= len(data)
        if not data:
            self.close()

    def add_credit(self, count: int) -> None:
        """The other side has written so many bytes.

        Raises:
            Broken: more than were sent.
        """
        self._credit += count
        if self._credit > WINDOW_BYTES:
            raise Broken("a credit for what was never sent")

    def close(self) -> None:
        """Read no more; who writes there gets SIGPIPE."""
        if self.is_open:
            self.is_open = False
            os.close(self.fd)


class Inflow:
    """Writes into a descriptor what comes.

    Attributes:
        is_open: it can be written, and more may come or is here still.
    """

    def __init__(self, fd: int, stream: int, back: Wire) -> None:
        self.fd = fd
        self.is_open = True
        self._stream = stream
        self._wire = back
        self._buffer = bytearray()
        self._at_end = False
        self._written = 0
        # it may be somebody else's, too, so it is not made non-blocking
        self._most = PIECE_BYTES if stat.S_ISREG(os.fstat(fd).st_mode) else _PIPE_BYTES

    def take(self, data: bytes) -> None:
        """What has arrived; b"" for the end.

        Raises:
            Broken: more than the credit.
        """
        if self._at_end or len(self._buffer) + self._written + len(data) > WINDOW_BYTES:
            raise Broken("more than was asked for")
        if not data:
            self._at_end = True
            if not self._buffer:
                self.close()
        elif self.is_open:
            self._buffer += data

    def wants(self) -> bool:
        """Whether to poll for writing."""
        return self.is_open and bool(self._buffer)

    def move(self) -> None:
        """Write what can be written without waiting, and let more come."""
        done = 0
        view = memoryview(self._buffer)
        try:
            while done < len(view):
                done += os.write(self.fd, view[done : done + self._most])
                if not _is_writable(self.fd):
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # nobody reads it any more
            self._wire.send(wire.CLOSED, bytes([self._stream]))
            done = len(view)
            self.close()
        view.release()
        del self._buffer[:done]
        self._written += done
        if self._written >= WINDOW_BYTES // 4 and self.is_open:
            self._wire.send(wire.CREDIT, wire.pack_credit(self._stream, self._written))
            self._written = 0
        if self._at_end and not self._buffer:
            self.close()

    def close(self) -> None:
        """Write no more; who reads there gets the end."""
        if self.is_open:
            self.is_open = False
            os.close(self.fd)


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
