"""Sockets of ZeroMQ with CURVE: one that clients come to, and theirs. The only importer of pyzmq.

A connection whose key is not among those allowed is refused in its handshake: nothing that it sends is read. Both ends prove
their keys, everything is encrypted, and what was recorded on one connection is nothing to another.
"""

from __future__ import annotations

import os
import select
import struct
from collections import deque
from typing import Any

import zmq
from zmq.utils import z85

from exex.errors import StartError
from exex.protocol.payload import Buffer

MOST_FRAME_BYTES = 1 << 36
"""A larger frame costs its sender the connection; ZeroMQ looks at the length before it allocates."""

_LARGE_BYTES = 64 * 1024  # from here on a copy costs more than zmq's bookkeeping for uncopied frames
_HEARTBEAT_MS = 5000
_DEAD_MS = 20000
_HANDSHAKE_MS = 10000
_EVENT = struct.Struct("=HI")
_MOST_REFUSALS = 100

_BROKEN = {
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_CLOSED: "nobody listens there",
    zmq.EVENT_CONNECT_RETRIED: "nobody listens there",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "its key is refused",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "who listens there does not have the key of this job",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "who listens there does not have the key of this job",
}


def new_keys() -> tuple[str, str]:
    """A public key and its secret, as text of 40 characters each."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def is_key(text: str) -> bool:
    """Whether a text is a key."""
    try:
        return len(text) == 40 and len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError, struct.error):
        return False


def _frames(parts: list[Any]) -> list[Buffer]:
    return [part.buffer if len(part) >= _LARGE_BYTES else part.bytes for part in parts]


def _is_small(frames: list[Buffer]) -> bool:
    return all(len(frame) < _LARGE_BYTES if type(frame) is bytes else memoryview(frame).nbytes < _LARGE_BYTES for frame in frames)


def _new_socket(context: Any, kind: int) -> Any:
    socket = context.socket(kind)
    socket.set_hwm(0)  # what may be under way is bounded by the sessions
    socket.maxmsgsize = MOST_FRAME_BYTES
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _DEAD_MS
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.ipv6 = True
    return socket


def _receive(socket: Any) -> list[Any] | None:
    try:
        parts: list[Any] = socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return parts


class _Bell:
    """A descriptor that is readable as long as any of some sockets may have something.

    ZeroMQ's own descriptors tell only of changes, and forget one if it was seen in the middle of a send.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self._rung = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll.register(self._rung, select.EPOLLIN)
        self._is_rung = False

    def add(self, socket: Any) -> None:
        self.epoll.register(socket.getsockopt(zmq.FD), select.EPOLLIN)

    def remove(self, socket: Any) -> None:
        self.epoll.unregister(socket.getsockopt(zmq.FD))

    def after_send(self, socket: Any) -> None:
        if not self._is_rung and socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            os.eventfd_write(self._rung, 1)
            self._is_rung = True

    def quiet(self) -> None:
        """Everything was looked at."""
        if self._is_rung:
            os.eventfd_read(self._rung)
            self._is_rung = False

    def close(self) -> None:
        if not self.epoll.closed:
            self.epoll.close()
            os.close(self._rung)


class Listener:
    """What clients come to.

    Args:
        hosts: addresses of this node to listen at; `*` for all.
        port: of all of them; 0 for any.
        secret: of the server's key.
        allowed: public keys of clients.

    Attributes:
        port: where it listens.
        refused: what was refused, in words; whoever reads it clears it.

    Raises:
        StartError: it cannot listen there.
    """

    def __init__(self, hosts: tuple[str, ...], port: int, secret: str, allowed: frozenset[str]) -> None:
        self._context = zmq.Context()
        self._allowed = {z85.decode(key.encode()) for key in allowed}
        self.refused: deque[str] = deque(maxlen=_MOST_REFUSALS)
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._socket = _new_socket(self._context, zmq.ROUTER)
        self._socket.router_mandatory = True
        self._socket.linger = 1000
        self._socket.curve_server = True
        self._socket.curve_secretkey = secret.encode()
        self._socket.zap_domain = b"exex"
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        self._bell = _Bell()
        for socket in (self._zap, self._socket, self._monitor):
            self._bell.add(socket)
        self.port = port
        try:
            for host in hosts:
                self._bind(f"[{host}]" if ":" in host else host)
        except zmq.ZMQError as error:
            self.close()
            raise StartError(f"cannot listen at {host}:{port}: {error.strerror}") from None

    def _bind(self, host: str) -> None:
        self._socket.bind(f"tcp://{host}:{self.port}")
        if not self.port:
            self.port = int(self._socket.last_endpoint.decode().rpartition(":")[2])

    def fileno(self) -> int:
        """Readable when something may have arrived."""
        return self._bell.epoll.fileno()

    def send(self, connection: bytes, frames: list[Buffer]) -> bool:
        """Send a message. False if that connection is no more."""
        try:
            self._socket.send_multipart([connection, *frames], zmq.NOBLOCK, copy=_is_small(frames))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def sent(self) -> None:
        """To be called after some `send`."""
        self._bell.after_send(self._socket)

    def receive(self) -> tuple[bytes, list[Buffer]] | None:
        """The next message and its connection."""
        parts = _receive(self._socket)
        if parts is None:
            self._bell.quiet()
            self._judge()
            parts = _receive(self._socket)
            if parts is None:
                return None
        return parts[0].bytes, _frames(parts[1:])

    def _judge(self) -> None:
        """Say of each new connection whether its key is allowed: RFC 27 of ZeroMQ."""
        while (request := _receive(self._zap)) is not None:
            parts = [part.bytes for part in request]
            at = parts.index(b"") + 1  # what stands before says to whom the answer goes
            version, number, _, address, _, mechanism, *keys = parts[at:]
            good = mechanism == b"CURVE" and bool(keys) and keys[0] in self._allowed
            if not good:
                self.refused.append(f"a client from {address.decode().removeprefix('::ffff:')}: its key is not one of this job")
            status, text = (b"200", b"OK") if good else (b"400", b"unknown key")
            self._zap.send_multipart([*parts[:at], version, number, status, text, b"", b""])
        while _receive(self._monitor) is not None:
            self.refused.append("a connection that proves nothing: it has no key, another one, or repeats what others have said")

    def close(self) -> None:
        """Release everything. Waits a second at the most for what is under way."""
        if self._socket.closed:
            return
        self._bell.close()
        self._socket.disable_monitor()
        for socket in (self._monitor, self._zap, self._socket):
            socket.close()
        self._context.term()


class Caller:
    """One connection of a client, which is not made again when it breaks.

    Args:
        endpoint: `host:port`.
        server: the server's public key; `public` and `secret`: the client's own.

    Attributes:
        broken: why it cannot be used; "" as far as is known it can.
    """

    def __init__(self, context: Context, endpoint: str, server: str, public: str, secret: str) -> None:
        self._bell = context.bell
        self._socket = _new_socket(context.zmq, zmq.DEALER)
        self._socket.linger = 1000
        self._socket.reconnect_ivl = -1
        self._socket.curve_serverkey = server.encode()
        self._socket.curve_publickey = public.encode()
        self._socket.curve_secretkey = secret.encode()
        events = 0
        for event in _BROKEN:
            events |= event
        self._monitor = self._socket.get_monitor_socket(events)
        self._bell.add(self._socket)
        self._bell.add(self._monitor)
        self.broken = ""
        try:
            self._socket.connect(f"tcp://{endpoint}")
        except zmq.ZMQError as error:
            self.broken = error.strerror

    def send(self, frames: list[Buffer]) -> None:
        """Send a message, if that can be."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=_is_small(frames))
        except zmq.Again:
            self.broken = self.broken or "the connection broke"

    def sent(self) -> None:
        """To be called after some `send`."""
        self._bell.after_send(self._socket)

    def receive(self) -> list[Buffer] | None:
        """The next message."""
        parts = _receive(self._socket)
        if parts is not None:
            return _frames(parts)
        self._bell.quiet()
        while (event := _receive(self._monitor)) is not None:
            if len(event[0].bytes) == _EVENT.size:
                self.broken = self.broken or _BROKEN.get(_EVENT.unpack(event[0].bytes)[0], "")
        parts = _receive(self._socket)
        return None if parts is None else _frames(parts)

    def close(self, wait: bool) -> None:
        """Close it; with `wait`, what is under way still leaves."""
        for socket in (self._socket, self._monitor):
            self._bell.remove(socket)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=1000 if wait else 0)


class Context:
    """What the connections of a client have in common, one after the other: a thread of ZeroMQ's, and one descriptor."""

    def __init__(self) -> None:
        self.zmq = zmq.Context()
        self.bell = _Bell()

    def fileno(self) -> int:
        """Readable when something may have arrived; -1 once closed."""
        return -1 if self.bell.epoll.closed else self.bell.epoll.fileno()

    def wait(self, most_s: float) -> None:
        """Return when something may have arrived, or after so long."""
        self.bell.epoll.poll(most_s)

    def close(self) -> None:
        """Release everything. Its connections must be closed."""
        self.bell.close()
        self.zmq.term()
