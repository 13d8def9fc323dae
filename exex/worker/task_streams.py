"""A task process, as its rank has it: the streams between both, and what is said there. See `processes`. Runs in worker ranks."""

from __future__ import annotations

import os
import socket
from collections import deque

import msgspec
from msgspec import Struct

from exex.protocol.payload import Buffer, Large, Payload
from exex.transport.base import GONE
from exex.transport.stream import StreamLink


class Waits(Struct, frozen=True, tag=True):
    """Task process -> rank: its task waits for others."""

    task: int


class GoOn(Struct, frozen=True, tag=True):
    """Rank -> task process: its task has slots again."""

    home: list[int]  # CPU numbers to which the process is bound from now on; empty: to those as before
    cores: list[int]  # and the task meanwhile


decode_waits = msgspec.msgpack.Decoder(Waits).decode
decode_go_on = msgspec.msgpack.Decoder(GoOn).decode
TASK_BYTES = 8
"""In front of what a task says as a client: its number, little-endian."""

GO_ON = b"\0"
"""Task process -> rank: the task would go on. No message begins like this."""

encode = msgspec.msgpack.Encoder().encode
_DROPPED = 0


def dropped(count: int) -> list[Buffer]:
    """Frames by which a task process says how many calls it has forgotten."""
    return [bytes((_DROPPED,)) + count.to_bytes(4, "little")]


class TaskProcess:
    """A slot's task process, as the rank has it.

    Attributes:
        slot: its number.
        pid: None until it is known.
        link: the stream to it. Send through `give`, receive through `receive`.
        client: the stream of what its tasks say as clients.
        seat: the socket by which its task says that it waits.
        stdout: read end of the pipe that is its stdout, non-blocking.
        stderr: likewise.
    """

    def __init__(  # noqa: PLR0917
        self, slot: int, link: StreamLink, client: StreamLink, seat: socket.socket, tokens: int, stdout: int, stderr: int
    ) -> None:
        self.slot = slot
        self.pid: int | None = None
        self.link = link
        self.client = client
        self.seat = seat
        self.stdout = stdout
        self.stderr = stderr
        self._tokens = tokens
        self._to_drop = 0  # calls that were taken back, and of which it has not said that it has dropped them
        self._waiting: deque[tuple[int, list[Buffer]]] = deque()  # given meanwhile

    def give(self, count: int, frames: list[Buffer]) -> None:
        """Let it run `count` calls, the ones of the Assign in `frames`. Never blocks.

        To a process that has died nothing is sent, but its tokens are counted: `take_back` returns them.
        """
        if self._to_drop:
            self._waiting.append((count, frames))
            return
        os.eventfd_write(self._tokens, count)
        try:
            self.link.send(0, frames)
        except ConnectionError:
            pass  # how it died comes from the template

    def take_back(self) -> int:
        """How many calls, the last ones given, it has not started, and will not start any more."""
        given_up = sum(count for count, _ in self._waiting)
        self._waiting.clear()
        taken = 0
        try:
            while True:
                os.eventfd_read(self._tokens)
                taken += 1
        except BlockingIOError:
            self._to_drop += taken
            return given_up + taken

    def receive(self) -> list[Buffer] | None:
        """Frames of the next Done that has arrived, `GONE` once at the end of the stream, or None for now."""
        while (arrived := self.link.receive()) is not None:
            frames = arrived[1]
            if frames is GONE or frames[0][0] != _DROPPED:
                return frames
            self._to_drop -= int.from_bytes(frames[0][1:5], "little")
            while self._waiting and not self._to_drop:
                self.give(*self._waiting.popleft())
        return None

    def said(self) -> tuple[int, Payload] | None:
        """The next message that its task has said as a client, and the task's number; None for now, or at the end."""
        arrived = self.client.receive()
        if arrived is None or arrived[1] is GONE:
            return None
        first, *more = arrived[1]
        task = int.from_bytes(first[:TASK_BYTES], "little")
        head = bytes(memoryview(first)[TASK_BYTES:])
        return task, Large([head, *more]) if more else head

    def tell(self, message: Payload) -> None:
        """Pass on what the manager says to its task as a client."""
        try:
            self.client.send(0, list(message.frames) if type(message) is Large else [message])
        except ConnectionError:
            pass  # how it died comes from the template

    def moves(self) -> list[int | None] | None:
        """What its task has said since: its number if it waits, None if it would go on. None at the end."""
        found: list[int | None] = []
        try:
            while packet := self.seat.recv(64):
                found.append(decode_waits(packet).task if packet != GO_ON else None)
        except BlockingIOError:
            return found
        except ConnectionError:
            pass
        return found or None

    def go_on(self, home: list[int], cores: list[int]) -> None:
        """Its task has slots again."""
        try:
            self.seat.send(encode(GoOn(home, cores)))
        except OSError:
            pass  # it has died

    def close(self) -> None:
        """Release all descriptors. Whatever it sent and printed must have been read before."""
        self.link.close()
        self.client.close()
        self.seat.close()
        for fd in (self._tokens, self.stdout, self.stderr):
            os.close(fd)
