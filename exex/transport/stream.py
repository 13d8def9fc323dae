"""Messages over a connected AF_UNIX stream socket: between a worker rank and its task processes, and to a local client.

Format of a message: u32 number of frames, u64 length of each frame, then the frames; little-endian.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

from exex.errors import ProtocolError
from exex.protocol.payload import Buffer
from exex.transport.base import GONE, Announced

_CHUNK = 256 * 1024
_IOV_MOST = 512

MOST_FRAMES = 1 << 20
"""Frames of one message."""

MOST_MESSAGE_BYTES = 1 << 40
"""Bytes of one message."""

_GROWTH = 16 * 1024**2
"""Memory for a frame is made as its bytes arrive, beginning with so much: a header's promise alone allocates nothing more."""

_ONE = struct.Struct("<IQ")
_COUNT = struct.Struct("<I")


def pack(frames: list[Buffer]) -> list[Buffer]:
    """Buffers to write for a message; small ones are joined to save writes."""
    if len(frames) == 1:
        frame = frames[0]
        return [_ONE.pack(1, len(frame)) + frame]
    head = struct.pack(f"<I{len(frames)}Q", len(frames), *(memoryview(frame).nbytes for frame in frames))
    return [head + frames[0], *(memoryview(frame).cast("B") for frame in frames[1:] if memoryview(frame).nbytes)]


class Reader:
    """Cuts the bytes of a stream into messages. Large frames are received straight into their own memory.

    All frames of a message but the first are writable, so that arrays over them are, however the bytes were cut.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._chunk = bytearray(_CHUNK)
        self._pending = bytearray()  # received, not yet parsed
        self._needed = 0  # bytes that `_pending` must have before it is worth a look
        self._frames: list[Buffer] = []  # of the message that is being put together
        self._lengths: list[int] = []  # of its frames that are still missing, the next one last
        self._large: bytearray | None = None  # a frame that is being received straight into place; may have to grow
        self._filled = 0
        self.messages: deque[list[Buffer]] = deque()

    def fill(self) -> bool:
        """Receive once. Blocks only if the socket does.

        Returns:
            False at the end of the stream.

        Raises:
            BlockingIOError: nothing there.
            ProtocolError: the peer does not speak this format.
        """
        if self._large is not None:
            if self._filled == len(self._large):
                self._large += bytes(min(self._lengths[-1] - self._filled, self._filled))
            got = self._socket.recv_into(memoryview(self._large)[self._filled :])
            self._filled += got
            if got and self._filled == self._lengths[-1]:
                self._frames.append(self._large)
                self._large = None
                self._finish_frames(b"")
            return got > 0
        got = self._socket.recv_into(self._chunk)
        if not got:
            return False
        data = bytes(memoryview(self._chunk)[:got])
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return True
            data = bytes(self._pending)
        self._parse(data)
        return True

    def _parse(self, data: bytes) -> None:
        """Cut complete messages off the front of `data`; keep the rest."""
        at, size, messages = 0, len(data), self.messages
        self._needed = 0
        if self._lengths:
            at = self._take(data, 0)
        while not self._lengths and size - at >= 12:
            count, length = _ONE.unpack_from(data, at)
            if count == 1 and size - at - 12 >= length:
                at += 12
                messages.append([data[at : at + length]])
                at += length
                continue
            if not 0 < count <= MOST_FRAMES:
                raise ProtocolError(f"a message of {count} frames")
            header = 4 + 8 * count
            if size - at < header:
                self._needed = header
                break
            lengths = list(struct.unpack_from(f"<{count}Q", data, at + 4))[::-1]
            if sum(lengths) > MOST_MESSAGE_BYTES:
                raise ProtocolError(f"a message of {sum(lengths)} bytes")
            self._lengths = lengths
            at = self._take(data, at + header)
        self._pending = bytearray(data[at:])

    def _take(self, data: bytes, at: int) -> int:
        """Take frames of the current message from `data`; a frame that is not all there gets its own memory."""
        while self._lengths:
            length = self._lengths[-1]
            if len(data) - at >= length:
                frame = data[at : at + length]
                self._frames.append(bytearray(frame) if self._frames else frame)
                at += length
                self._lengths.pop()
                continue
            self._filled = len(data) - at
            self._large = bytearray(min(length, max(_GROWTH, self._filled)))
            self._large[: self._filled] = data[at:]
            return len(data)
        self._finish_message()
        return at

    def _finish_frames(self, data: bytes) -> None:
        self._lengths.pop()
        if self._lengths:
            self._take(data, 0)
        else:
            self._finish_message()

    def _finish_message(self) -> None:
        self.messages.append(self._frames)
        self._frames = []


class StreamLink(Announced):
    """The non-blocking end of one stream; its only peer is number 0. The kernel tells when there is room.

    Attributes:
        gone: GONE was received. The descriptor stays readable from then on: whoever watches it should stop.
        error: what the peer did wrong, if that was its end.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = Reader(sock)
        self._unsent: deque[memoryview] = deque()
        self._broken = False
        self._ended = False  # nothing more is read
        self.gone = False
        self.error = ""

    def fileno(self) -> int:
        """The socket; -1 once closed."""
        return self._socket.fileno()

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        buffers = pack(frames)
        if not self._unsent and len(buffers) == 1:
            try:
                sent = self._socket.send(buffers[0])
            except BlockingIOError:
                sent = 0
            if sent < len(buffers[0]):
                self._unsent.append(memoryview(buffers[0])[sent:])
            return
        self._unsent.extend(memoryview(buffer) for buffer in buffers)
        self.progress()
        if self._broken:
            raise ConnectionError("the peer has closed the stream")

    def progress(self) -> bool:
        """See `Link.progress`."""
        unsent = self._unsent
        while unsent:
            try:
                sent = self._socket.sendmsg([unsent[i] for i in range(min(len(unsent), _IOV_MOST))])
            except BlockingIOError:
                return True
            except ConnectionError:
                unsent.clear()  # nobody will read it; GONE arrives
                self._broken = True
                return False
            while sent:
                if sent < len(unsent[0]):
                    unsent[0] = unsent[0][sent:]
                    break
                sent -= len(unsent.popleft())
        return False

    def drop(self, peer: int) -> None:
        """See `Server.drop`. What a peer does not take at once it never gets."""
        self._reader.messages.clear()
        self.progress()
        self._hang_up()

    def _hang_up(self) -> None:
        self._unsent.clear()
        self._ended = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was quicker

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        messages = self._reader.messages
        while not messages:
            if self.gone:
                return None
            if self._ended:
                self.gone = True
                return 0, GONE
            try:
                self._ended = not self._reader.fill()
            except BlockingIOError:
                return None
            except ConnectionError:
                self._ended = True
            except ProtocolError as error:
                self.error = str(error)
                self._hang_up()
        return 0, messages.popleft()

    def close(self) -> None:
        """See `Link.close`."""
        self._socket.close()


class BlockingStream:
    """The blocking end of one stream: what a task process has."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._reader = Reader(sock)

    def send(self, frames: list[Buffer]) -> None:
        """Send a message; returns when the kernel has it all."""
        buffers: list[Buffer] = pack(frames)
        if len(buffers) == 1:
            self._socket.sendall(buffers[0])
            return
        for buffer in buffers:
            self._socket.sendall(buffer)

    def receive(self) -> list[Buffer]:
        """The next message; `GONE` at the end of the stream."""
        messages = self._reader.messages
        while not messages:
            try:
                if not self._reader.fill():
                    return GONE
            except ConnectionError:
                return GONE
        return messages.popleft()

    def waiting(self) -> bool:
        """Whether a message is already here."""
        return bool(self._reader.messages)
