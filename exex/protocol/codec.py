"""Messages to frames and back: MessagePack arrays by msgspec, large payloads as frames of their own.

Frame 0 is the message; the frames of each `Large` payload in it follow in order and are never copied here. In frame 0
a `Large` stands as an extension of type 1 that holds the number of its first frame and how many it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, Union, cast

import msgspec

from exex.errors import ProtocolError
from exex.protocol.messages import (
    Answer,
    Applied,
    Assign,
    Attach,
    Bye,
    Cancel,
    Checkpoint,
    Checkpointed,
    Done,
    Drop,
    Finish,
    Fulfil,
    Hello,
    JobEnds,
    Promise,
    Stop,
    Submit,
    Verdict,
    Welcome,
)
from exex.protocol.payload import Buffer, Large

Frames = Sequence[Buffer]
M = TypeVar("M")

_LARGE = 1


class Encoder:
    """Turns messages into frames. Not thread-safe: each loop owns one."""

    def __init__(self) -> None:
        self._frames: list[Buffer] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_large)

    def encode(self, message: object) -> list[Buffer]:
        """Frames of `message`: one, or more if it holds `Large` payloads."""
        head = self._encoder.encode(message)
        if not self._frames:
            return [head]
        frames = [head, *self._frames]
        self._frames = []
        return frames

    def _encode_large(self, value: object) -> msgspec.msgpack.Ext:
        if type(value) is not Large:
            raise TypeError(f"a message cannot hold a {type(value).__name__}")
        first = len(self._frames) + 1
        self._frames.extend(value.frames)
        return msgspec.msgpack.Ext(_LARGE, first.to_bytes(4, "little") + len(value.frames).to_bytes(4, "little"))


class Decoder(Generic[M]):
    """Turns frames into messages of the given kinds, checking types and bounds."""

    def __init__(self, kinds: Any) -> None:
        self._frames: Frames = ()
        self._decoder = msgspec.msgpack.Decoder(kinds, ext_hook=self._decode_large)

    def decode(self, frames: Frames) -> M:
        """The message in `frames`.

        Raises:
            ProtocolError: the bytes are no message of the kinds that are allowed here.
        """
        self._frames = frames
        try:
            return cast(M, self._decoder.decode(frames[0]))
        except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
            raise ProtocolError(f"not a message that may arrive here: {error}") from error
        finally:
            self._frames = ()

    def _decode_large(self, code: int, data: memoryview) -> Large:
        if code != _LARGE or len(data) != 8:
            raise ProtocolError(f"unknown extension {code} of {len(data)} bytes")
        first = int.from_bytes(data[:4], "little")
        end = first + int.from_bytes(data[4:], "little")
        if not 0 < first < end <= len(self._frames):
            raise ProtocolError(f"a payload in frames {first} to {end} of {len(self._frames)}")
        return Large(self._frames[first:end])


def from_client() -> Decoder[Any]:
    """Decoder of what a client may send to the manager."""
    return Decoder(Union[Attach, Submit, Promise, Fulfil, Cancel, Verdict, Applied, Finish, Checkpoint])


def from_worker() -> Decoder[Any]:
    """Decoder of what a worker may send to the manager."""
    return Decoder(Union[Hello, Done, Bye])


def to_client() -> Decoder[Any]:
    """Decoder of what the manager may send to a client."""
    return Decoder(Union[Welcome, Answer, JobEnds, Checkpointed])


def to_worker() -> Decoder[Any]:
    """Decoder of what the manager may send to a worker."""
    return Decoder(Union[Assign, Drop, Stop])
