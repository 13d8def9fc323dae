"""Messages over ZeroMQ: between the manager and its clients. The only importer of pyzmq.

The manager's end is a ROUTER, a client's a DEALER. The first frame of a client's connection is its token: it is
compared before anything else of that peer is looked at, and a peer without it is not answered. A message of one empty
frame is the end of either side.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections import deque

import zmq

from exex.errors import StartError
from exex.protocol.payload import Buffer
from exex.transport.base import GONE

_LARGE_BYTES = 64 * 1024  # from here on a copy costs more than zmq's bookkeeping for uncopied frames
_KNOCK = b"exex-knock"
_END = b""

MOST_FRAME_BYTES = 1 << 36
"""A larger frame costs its sender the connection; ZeroMQ looks at the length before it allocates."""


def _frames(parts: list[zmq.Frame]) -> list[Buffer]:
    return [part.buffer if len(part) >= _LARGE_BYTES else part.bytes for part in parts]


class _Socket:
    def __init__(self, kind: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.set_hwm(0)
        self._socket.linger = 1000
        self._socket.maxmsgsize = MOST_FRAME_BYTES
        self._unsent: deque[list[Buffer]] = deque()

    def _put(self, parts: list[Buffer]) -> None:
        self._unsent.append(parts)
        self.progress()

    def progress(self) -> bool:
        """See `Link.progress`."""
        while self._unsent:
            parts = self._unsent[0]
            try:
                self._socket.send_multipart(parts, zmq.NOBLOCK, copy=max(map(len, parts)) < _LARGE_BYTES)
            except zmq.Again:
                return True
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._unreachable(bytes(parts[0]))
            self._unsent.popleft()
        return False

    def _unreachable(self, identity: bytes) -> None:
        """A message is thrown away: its receiver has closed its connection."""

    def fileno(self) -> int:
        """See `Link.fileno`. Edge-triggered: readable means look, and look until nothing is left."""
        return int(self._socket.getsockopt(zmq.FD))

    def polled(self) -> bool:
        """See `Link.polled`."""
        return False

    def transferring(self) -> bool:
        """See `Link.transferring`: libzmq has a thread for that."""
        return False

    def woken(self) -> None:
        """See `Link.woken`: `receive` is enough."""

    def _get(self) -> list[zmq.Frame] | None:
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None

    def close(self) -> None:
        """See `Link.close`."""
        self._socket.close()
        self._context.term()


class ServerLink(_Socket):
    """The manager's end. Peers are numbered from 0 in the order in which they knock with the right token.

    Args:
        endpoint: to bind, such as `ipc:///path`. Its directory must belong to this user alone.
        token: shared secret of the job.

    Raises:
        StartError: others than this user can reach the directory of an `ipc` endpoint.
    """

    def __init__(self, endpoint: str, token: bytes) -> None:
        _check_directory(endpoint)
        super().__init__(zmq.ROUTER)
        self._token = token
        self._numbers: dict[bytes, int] = {}
        self._identities: list[bytes] = []
        self._dropped: set[int] = set()
        self._ended: deque[int] = deque()  # peers that have gone without a word
        self._socket.router_mandatory = True
        self._socket.bind(endpoint)

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self._put([self._identities[peer], *frames])

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        if self._ended:
            return self._ended.popleft(), GONE
        while (parts := self._get()) is not None:
            identity = parts[0].bytes
            number = self._numbers.get(identity)
            if number in self._dropped:
                continue
            if number is not None:
                if len(parts) == 2 and len(parts[1]) == 0:
                    return number, GONE
                return number, _frames(parts[1:])
            if len(parts) == 3 and parts[1].bytes == _KNOCK and hmac.compare_digest(parts[2].bytes, self._token):
                self._numbers[identity] = len(self._identities)
                self._identities.append(identity)
        return None

    def drop(self, peer: int) -> None:
        """See `Server.drop`."""
        if peer not in self._dropped:
            self._dropped.add(peer)
            self._ended.append(peer)
            self._put([self._identities[peer], _END])

    def _unreachable(self, identity: bytes) -> None:
        number = self._numbers[identity]
        if number not in self._dropped:
            self._dropped.add(number)
            self._ended.append(number)


def _check_directory(endpoint: str) -> None:
    """Raises:
    StartError: see `ServerLink`.
    """
    if not endpoint.startswith("ipc://"):
        return
    directory = os.path.dirname(os.path.abspath(endpoint[len("ipc://") :]))
    about = os.stat(directory)
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise StartError(f"{directory}, where clients should connect, is open to others: it must be this user's, with mode 0700")


class ClientLink(_Socket):
    """A client's end; its only peer is 0, the manager."""

    def __init__(self, endpoint: str, token: bytes) -> None:
        super().__init__(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"c" + os.urandom(15))
        self._socket.connect(endpoint)
        self._put([_KNOCK, token])

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self._put(frames)

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        parts = self._get()
        if parts is None:
            return None
        return 0, GONE if len(parts) == 1 and len(parts[0]) == 0 else _frames(parts)

    def close(self) -> None:
        """See `Link.close`: tells the manager's end first."""
        if not self._socket.closed:
            self._put([_END])
        super().close()
