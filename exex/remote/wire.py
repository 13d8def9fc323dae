"""What the launch helper and a task's end say to each other: frames, after each has proved that it knows the key.

The connection file has the key, and only its owner can read it. A proof is keyed BLAKE2b over two numbers that are never used
again, one from each side, so that what was overheard is of no use later. The request is signed, too; what follows is not.

    helper -> task's end   HELLO     magic, its number
    task's end -> helper   PROOF     its number, proof
    helper -> task's end   PROOF     proof
    task's end -> helper   REQUEST   signature, directory, words, variables
    helper -> task's end   REFUSED | STARTED
    both                   DATA, CLOSED, CREDIT of streams
    task's end -> helper   SIGNAL
    helper -> task's end   ENDED

A frame: u8 kind, u32 length, and as many bytes.
"""

from __future__ import annotations

import os
import socket
import struct
from hashlib import blake2b

MAGIC = b"exex launch 1\n"
NUMBER_BYTES = 32
PROOF_BYTES = 32
KEY_BYTES = 32

WINDOW_BYTES = 256 * 1024
"""What may be on its way of one stream: more is sent when the other side has written some of it."""

PIECE_BYTES = 64 * 1024
"""Most bytes of DATA in one frame."""

MOST_REQUEST_BYTES = 8 * 1024 * 1024
"""Linux gives no process more than 6 MiB of words and variables."""

HELLO, PROOF, REQUEST, REFUSED, STARTED, DATA, CLOSED, CREDIT, SIGNAL, ENDED = range(1, 11)

STDIN, STDOUT, STDERR = 0, 1, 2

NOT_STARTED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit statuses of a task's end that has no launcher's to hand on, as those of env(1) and timeout(1)."""

_HEADER = struct.Struct("<BI")
_CREDIT = struct.Struct("<BI")
_STATUS = struct.Struct("<i")
_READ_BYTES = 256 * 1024
_MOST_BYTES = {
    HELLO: len(MAGIC) + NUMBER_BYTES,
    PROOF: NUMBER_BYTES + PROOF_BYTES,
    REQUEST: PROOF_BYTES + MOST_REQUEST_BYTES,
    REFUSED: 4096,
    STARTED: 0,
    DATA: 1 + PIECE_BYTES,
    CLOSED: 1,
    CREDIT: _CREDIT.size,
    SIGNAL: 1,
    ENDED: _STATUS.size,
}
_ALIVE = (
    (socket.SO_KEEPALIVE, 1, socket.SOL_SOCKET),
    (socket.TCP_KEEPIDLE, 30, socket.IPPROTO_TCP),
    (socket.TCP_KEEPINTVL, 10, socket.IPPROTO_TCP),
    (socket.TCP_KEEPCNT, 9, socket.IPPROTO_TCP),
    (socket.TCP_USER_TIMEOUT, 120_000, socket.IPPROTO_TCP),
    (socket.TCP_NODELAY, 1, socket.IPPROTO_TCP),
)


class Broken(Exception):
    """The other side keeps to no protocol of ours, or is not who it should be."""


class Wire:
    """One end of a connection. Nothing here blocks.

    Attributes:
        ended: the other side has closed it, or it is broken.
        accepts: kinds of frames that may come now.
    """

    def __init__(self, sock: socket.socket, accepts: tuple[int, ...]) -> None:
        sock.setblocking(False)
        if sock.family == socket.AF_INET:
            for option, value, level in _ALIVE:
                sock.setsockopt(level, option, value)
        self.socket = sock
        self.accepts = accepts
        self.ended = False
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        """Of the socket."""
        return self.socket.fileno()

    @property
    def waiting_bytes(self) -> int:
        """What was sent, but is not on its way yet."""
        return len(self._out)

    def send(self, kind: int, *parts: bytes) -> None:
        """Send a frame as soon as `flush` can."""
        self._out += _HEADER.pack(kind, sum(map(len, parts)))
        for part in parts:
            self._out += part

    def flush(self) -> None:
        """Hand to the kernel what it takes."""
        try:
            while self._out and not self.ended:
                del self._out[: self.socket.send(self._out)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.ended = True

    def read(self) -> None:
        """Take what has arrived, one piece."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
        self._in += data

    def pass_over(self) -> None:
        """Take what has arrived, one piece, and forget it."""
        self._in.clear()
        self.read()
        self._in.clear()

    def frame(self) -> tuple[int, bytes] | None:
        """The next frame of those that have been read; None if it has not wholly arrived.

        Raises:
            Broken: a kind that may not come now, or a length that its kind cannot have.
        """
        if len(self._in) < _HEADER.size:
            return None
        kind, length = _HEADER.unpack_from(self._in)
        if kind not in self.accepts or length > _MOST_BYTES[kind]:
            raise Broken(f"a frame of kind {kind} with {length} bytes")
        if len(self._in) < _HEADER.size + length:
            return None
        data = bytes(self._in[_HEADER.size : _HEADER.size + length])
        del self._in[: _HEADER.size + length]
        return kind, data

    def close(self) -> None:
        """Close the socket."""
        self.ended = True
        self.socket.close()


# ---- proofs ---------------------------------------------------------------------------------------------------


def new_number() -> bytes:
    """A number that nobody has used and nobody can foresee."""
    return os.urandom(NUMBER_BYTES)


def proof(key: bytes, who: bytes, helpers: bytes, tasks: bytes, text: bytes = b"") -> bytes:
    """What only `who` with the key can know about these two numbers (and a text).

    Args:
        who: "helper", "task", "request": a proof of one is none of another.
    """
    return blake2b(helpers + tasks + text, key=key, digest_size=PROOF_BYTES, person=who).digest()


# ---- contents of frames ---------------------------------------------------------------------------------------


def pack_request(directory: bytes, words: list[bytes], variables: dict[bytes, bytes]) -> bytes:
    """A request's text. Nothing in it can hold a NUL, since it comes from a process."""
    return b"\0".join([directory, b"%d" % len(words), *words, *(name + b"=" + value for name, value in variables.items())])


def unpack_request(data: bytes) -> tuple[bytes, list[bytes], dict[bytes, bytes]]:
    """See `pack_request`.

    Raises:
        Broken: it is none.
    """
    parts = data.split(b"\0")
    if len(parts) < 3 or not parts[0].startswith(b"/") or not parts[1].isdigit() or len(parts[1]) > 7:
        raise Broken("a request that cannot be read")
    count = int(parts[1])
    words, variables = parts[2 : 2 + count], parts[2 + count :]
    if not count or len(words) < count or not words[0] or not all(variable.find(b"=") > 0 for variable in variables):
        raise Broken("a request that cannot be read")
    pairs = (variable.partition(b"=") for variable in variables)
    return parts[0], words, {name: value for name, _, value in pairs}


def pack_credit(stream: int, count: int) -> bytes:
    """So many bytes more of this stream may come."""
    return _CREDIT.pack(stream, count)


def unpack_credit(data: bytes) -> tuple[int, int]:
    """See `pack_credit`.

    Raises:
        Broken: it is none.
    """
    if len(data) != _CREDIT.size:
        raise Broken("a credit that cannot be read")
    stream, count = _CREDIT.unpack(data)
    return stream, count


def pack_status(code: int) -> bytes:
    """An exit code, or minus the number of a signal."""
    return _STATUS.pack(code)


def unpack_status(data: bytes) -> int:
    """See `pack_status`.

    Raises:
        Broken: it is none.
    """
    if len(data) != _STATUS.size:
        raise Broken("a status that cannot be read")
    code: int = _STATUS.unpack(data)[0]
    return code
