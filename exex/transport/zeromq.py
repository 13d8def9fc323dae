"""Messages over ZeroMQ: between the manager and its clients. The only importer of pyzmq.

The manager's end is a ROUTER, a client's a DEALER. The first frame of a client's connection is its token: it is
compared before anything else of that peer is looked at, and a peer without it is not answered.
"""

from __future__ import annotations

import hmac
import os
from collections import deque

import zmq

from exex.protocol.payload import Buffer
from exex.transport.base import GONE

_LARGE_BYTES = 64 * 1024  # from here on a copy costs more than zmq's bookkeeping for uncopied frames
_KNOCK = b"exex-knock"


def _frames(parts: list[zmq.Frame]) -> list[Buffer]:
    return [part.buffer if len(part) >= _LARGE_BYTES else part.bytes for part in parts]


class _Socket:
    def __init__(self, kind: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.set_hwm(0)
        self._socket.linger = 1000
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
            self._unsent.popleft()
        return False

    def fileno(self) -> int:
        """See `Link.fileno`. Edge-triggered: readable means look, and look until nothing is left."""
        return int(self._socket.getsockopt(zmq.FD))

    def polled(self) -> bool:
        """See `Link.polled`."""
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
    """

    def __init__(self, endpoint: str, token: bytes) -> None:
        super().__init__(zmq.ROUTER)
        self._token = token
        self._numbers: dict[bytes, int] = {}
        self._identities: list[bytes] = []
        self._forgotten: set[int | None] = set()
        self._socket.router_mandatory = True
        self._socket.bind(endpoint)

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self._put([self._identities[peer], *frames])

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        while (parts := self._get()) is not None:
            identity = parts[0].bytes
            number = self._numbers.get(identity)
            if number in self._forgotten:
                continue
            if number is not None:
                if len(parts) == 2 and parts[1].bytes == b"":
                    return number, GONE
                return number, _frames(parts[1:])
            if len(parts) == 3 and parts[1].bytes == _KNOCK and hmac.compare_digest(parts[2].bytes, self._token):
                self._numbers[identity] = len(self._identities)
                self._identities.append(identity)
        return None

    def forget(self, peer: int) -> None:
        """See `Link.forget`."""
        self._forgotten.add(peer)
        self._unsent = deque(parts for parts in self._unsent if parts[0] != self._identities[peer])


class ClientLink(_Socket):
    """A client's end; its only peer is 0, the manager."""

    def __init__(self, endpoint: str, token: bytes) -> None:
        super().__init__(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"c" + os.urandom(15))
        self._socket.connect(endpoint)
        self._forgotten = False
        self._put([_KNOCK, token])

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self._put(frames)

    def forget(self, peer: int) -> None:
        """See `Link.forget`: there is only one peer, so this is the end of the link."""
        self._unsent.clear()
        self._forgotten = True

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        if self._forgotten:
            return None
        parts = self._get()
        return None if parts is None else (0, _frames(parts))

    def close(self) -> None:
        """See `Link.close`: tells the manager's end first."""
        if not self._socket.closed:
            self._put([b""])
        super().close()
