"""Messages to frames and back: MessagePack arrays by msgspec, large payloads as frames of their own.

Frame 0 is the message; the frames of each `Large` payload in it follow in order and are never copied here. In frame 0
a `Large` stands as an extension of type 1 that holds the number of its first frame and how many it has, a `Stored` as one of
type 2: the sizes of its frames, u64 each, after their u32 count, then its name; little-endian.

Nothing is opened, and nothing is allocated that the bytes do not pay for: msgspec compares each length in frame 0 with what
is left of it, and every further frame belongs to exactly one payload.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

import msgspec

from exex.errors import ProtocolError
from exex.protocol import messages
from exex.protocol.checks import CHECKS, MOST_FRAMES, MOST_STORE_NAME, MOST_STORED_BYTES, is_store_name
from exex.protocol.payload import Buffer, Large, Stored

Frames = Sequence[Buffer]
M = TypeVar("M")

_LARGE, _STORED = 1, 2


class Encoder:
    """Turns messages into frames. Not thread-safe: each loop owns one."""

    def __init__(self) -> None:
        self._frames: list[Buffer] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_payload)

    def encode(self, message: object) -> list[Buffer]:
        """Frames of `message`: one, or more if it holds `Large` payloads."""
        try:
            head = self._encoder.encode(message)
        except BaseException:
            self._frames = []
            raise
        if not self._frames:
            return [head]
        frames = [head, *self._frames]
        self._frames = []
        return frames

    def _encode_payload(self, value: object) -> msgspec.msgpack.Ext:
        if isinstance(value, Stored):
            sizes = value.sizes
            return msgspec.msgpack.Ext(_STORED, struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + value.name.encode())
        if type(value) is not Large:
            raise TypeError(f"a message cannot hold a {type(value).__name__}")
        first = len(self._frames) + 1
        self._frames.extend(value.frames)
        return msgspec.msgpack.Ext(_LARGE, first.to_bytes(4, "little") + len(value.frames).to_bytes(4, "little"))


class Decoder(Generic[M]):
    """Turns frames into messages of the given kinds, checking types and bounds.

    Attributes:
        stored: the stored payloads of the message that was decoded last, so that nobody looks for them where there are none.
    """

    def __init__(self, kinds: Any) -> None:
        self.stored: list[Stored] = []
        self._frames: Frames = ()
        self._next = 1  # frame that no payload has yet
        self._decoder = msgspec.msgpack.Decoder(kinds, ext_hook=self._decode_payload)

    def decode(self, frames: Frames) -> M:
        """The message in `frames`.

        Raises:
            ProtocolError: the bytes are no message of the kinds that are allowed here.
        """
        self._frames = frames
        self._next = 1
        if self.stored:
            self.stored = []
        try:
            message = self._decoder.decode(frames[0])
            if self._next != len(frames):
                raise ProtocolError(f"{len(frames)} frames, of which {self._next} are used")
        except (msgspec.MsgspecError, IndexError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a message that may arrive here: {error}") from error
        finally:
            self._frames = ()
        check = CHECKS.get(type(message))
        if check is not None:
            check(message)
        return cast(M, message)

    def _decode_payload(self, code: int, data: memoryview) -> Large | Stored:
        if code == _STORED:
            stored = _unpack_stored(data)
            self.stored.append(stored)
            return stored
        if code != _LARGE or len(data) != 8:
            raise ProtocolError(f"unknown extension {code} of {len(data)} bytes")
        first = int.from_bytes(data[:4], "little")
        end = first + int.from_bytes(data[4:], "little")
        if not self._next == first < end <= len(self._frames):
            raise ProtocolError(f"a payload in frames {first} to {end} of {len(self._frames)}, where {self._next} comes next")
        self._next = end
        return Large(self._frames[first:end])


def _unpack_stored(data: memoryview) -> Stored:
    (count,) = struct.unpack_from("<I", data) if len(data) >= 4 else (0,)
    end = 4 + 8 * count
    if not 0 < count <= MOST_FRAMES or not end < len(data) <= end + MOST_STORE_NAME:
        raise ProtocolError(f"a stored payload of {count} frames in {len(data)} bytes")
    sizes = struct.unpack_from(f"<{count}Q", data, 4)
    name = str(data[end:], "ascii")
    if max(sizes) > MOST_STORED_BYTES or not is_store_name(name):
        raise ProtocolError(f"a stored payload {name!r} of {max(sizes)} bytes")
    return Stored(name, sizes)


def from_client() -> Decoder[Any]:
    """Decoder of what a client may send to the manager."""
    return Decoder(messages.FromClient)


def from_worker() -> Decoder[Any]:
    """Decoder of what a worker may send to the manager."""
    return Decoder(messages.FromWorker)


def to_client() -> Decoder[Any]:
    """Decoder of what the manager may send to a client."""
    return Decoder(messages.ToClient)


def to_worker() -> Decoder[Any]:
    """Decoder of what the manager may send to a worker."""
    return Decoder(messages.ToWorker)
