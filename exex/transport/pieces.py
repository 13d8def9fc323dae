"""Large messages in pieces: none keeps a connection busy for so long that its ends hear nothing of each other. Pure.

After a break the message goes on where it was. A piece is a list of frames, of which the first piece has one more in front: how
long each frame of the message is.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

from exex.errors import ProtocolError
from exex.protocol.payload import Buffer

PIECE_BYTES = 256 * 1024
"""A second and a half of a connection that is as slow as any on which one would work."""

MOST_BYTES = 1 << 36
"""Of a message."""

MOST_FRAMES = 1 << 16

_LARGE_BYTES = 1 << 20  # of a frame that gets memory of its own, which is there when something is written to it


class Piece(list[Buffer]):
    """Of a message; a message that travels whole is any other list."""


def split(frames: list[Buffer]) -> Iterator[list[Buffer]]:
    """A message as it travels: itself, or its pieces in order. Nothing is copied."""
    views = [memoryview(frame).cast("B") for frame in frames]
    sizes = [len(view) for view in views]
    if sum(sizes) <= PIECE_BYTES:
        yield frames
        return
    piece, room = Piece([struct.pack(f"<{len(sizes)}Q", *sizes)]), PIECE_BYTES
    for view in views:
        while len(view) > room:
            piece.append(view[:room])
            yield piece
            view, piece, room = view[room:], Piece(), PIECE_BYTES  # noqa: PLW2901
        piece.append(view)
        room -= len(view)
    yield piece


class Assembly:
    """The message that is arriving in pieces, if there is one."""

    def __init__(self) -> None:
        self._frames: list[Buffer] | None = None
        self._rooms: list[memoryview] = []  # what is not filled, of each frame that is not complete

    def add(self, piece: list[Buffer]) -> list[Buffer] | None:
        """The message, if this was the last piece of it.

        Raises:
            ProtocolError: it is no piece of this message.
        """
        chunks = iter(piece)
        if self._frames is None:
            self._begin(next(chunks, b""))
        for chunk in chunks:
            self._fill(memoryview(chunk).cast("B"))
        while self._rooms and not len(self._rooms[0]):
            self._rooms.pop(0)
        if self._rooms:
            return None
        frames, self._frames = self._frames, None
        return frames

    def _begin(self, layout: Buffer) -> None:
        if len(layout) % 8 or not 0 < len(layout) // 8 <= MOST_FRAMES:
            raise ProtocolError("a message in pieces does not say how long its frames are")
        sizes = struct.unpack(f"<{len(layout) // 8}Q", layout)
        if sum(sizes) > MOST_BYTES:
            raise ProtocolError(f"a message of {sum(sizes)} bytes")
        try:
            self._frames = [memoryview(mmap.mmap(-1, size)) if size >= _LARGE_BYTES else bytearray(size) for size in sizes]
        except (OSError, MemoryError):
            raise ProtocolError(f"there is no memory for a message of {sum(sizes)} bytes") from None
        self._rooms = [memoryview(frame) for frame in self._frames]

    def _fill(self, chunk: memoryview) -> None:
        while self._rooms and len(self._rooms[0]) == 0 < len(chunk):
            self._rooms.pop(0)
        if len(chunk) and (not self._rooms or len(self._rooms[0]) < len(chunk)):
            raise ProtocolError("a piece of a message is too long")
        if len(chunk):
            self._rooms[0][: len(chunk)] = chunk
            self._rooms[0] = self._rooms[0][len(chunk) :]
