"""One end of a conversation that outlives its connections: numbered messages, in order, each exactly once. Pure.

A connection may lose what is under way when it breaks. So each end keeps what the other has not confirmed, up to a window
on the wire and the rest behind it, and begins again where the other stands when there is another connection.
"""

from __future__ import annotations

from collections import deque

from exex.errors import ProtocolError
from exex.protocol.payload import Buffer

WINDOW_BYTES = 32 * 1024**2
"""On the wire without confirmation. A larger message travels alone."""

CONFIRM_AFTER = 16
"""Messages after which the other end is told at once that they have arrived."""

CONFIRM_LATER_S = 0.02
"""When it is told of fewer, if nothing is to be said in which that could be told."""

_OVERHEAD_BYTES = 64  # of a message, in the counts


class Delivery:
    """Messages to one peer and from it, over any number of connections, one after the other.

    Attributes:
        posted: number of the last message that was given to `post`.
        received: number of the last message that has arrived in order.
        kept_bytes: of messages that the peer has not confirmed.
    """

    __slots__ = (
        "_confirmed",
        "_kept",
        "_on_wire",
        "_on_wire_bytes",
        "_owed",
        "_owed_bytes",
        "_owed_since_s",
        "_unsent",
        "_window_bytes",
        "kept_bytes",
        "posted",
        "received",
    )

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self.posted = 0
        self.received = 0
        self.kept_bytes = 0
        self._window_bytes = window_bytes
        self._confirmed = 0  # by the peer
        self._on_wire = 0  # the last one that this connection was given
        self._on_wire_bytes = 0
        self._kept: deque[tuple[list[Buffer], int]] = deque()  # `_confirmed` + 1, ...
        self._unsent: deque[tuple[list[Buffer], int]] = deque()  # `_on_wire` + 1, ...
        self._owed = 0  # messages that have arrived since the peer was told
        self._owed_bytes = 0
        self._owed_since_s = 0.0

    # ---- to the peer ----

    def post(self, frames: list[Buffer]) -> None:
        """Accept a message."""
        size = _OVERHEAD_BYTES + sum(len(frame) if type(frame) is bytes else memoryview(frame).nbytes for frame in frames)
        self.posted += 1
        self.kept_bytes += size
        self._kept.append((frames, size))
        self._unsent.append((frames, size))

    def next(self) -> tuple[int, list[Buffer]] | None:
        """Number and frames of the next message for the wire; None: there is none, or the window is full."""
        if not self._unsent:
            return None
        frames, size = self._unsent[0]
        if self._on_wire_bytes and self._on_wire_bytes + size > self._window_bytes:
            return None
        self._unsent.popleft()
        self._on_wire += 1
        self._on_wire_bytes += size
        return self._on_wire, frames

    def confirmed(self, number: int) -> None:
        """The peer has all messages up to this one.

        Raises:
            ProtocolError: it cannot have them.
        """
        if number > self.posted:
            raise ProtocolError(f"it confirms message {number}, but {self.posted} were sent")
        while self._confirmed < number:
            self._confirmed += 1
            size = self._kept.popleft()[1]
            self.kept_bytes -= size
            if self._on_wire < self._confirmed:  # it had come before it was to be sent again
                self._on_wire += 1
                self._unsent.popleft()
            else:
                self._on_wire_bytes -= size

    def again(self, number: int) -> None:
        """Send once more what follows this number: another connection has begun, or something is missing.

        Raises:
            ProtocolError: it is nowhere any more.
        """
        if number < self._confirmed:
            raise ProtocolError(f"it asks for message {number + 1} again, which it has confirmed")
        self.confirmed(number)
        self._on_wire, self._on_wire_bytes = number, 0
        self._unsent = deque(self._kept)

    def is_settled(self) -> bool:
        """Whether the peer has confirmed everything."""
        return not self._kept

    # ---- from the peer ----

    def take(self, number: int, size: int, now_s: float) -> bool:
        """Whether this message is the next one, and so is to be handed on; what was there before is not.

        Args:
            size: of its frames, in bytes.

        Raises:
            ProtocolError: one before it is missing.
        """
        if number <= self.received:
            self._owe(CONFIRM_AFTER, 0, now_s)  # the peer does not know
            return False
        if number != self.received + 1:
            raise ProtocolError(f"message {number} comes after {self.received}")
        self.received = number
        self._owe(1, size, now_s)
        return True

    def _owe(self, messages: int, size: int, now_s: float) -> None:
        if not self._owed:
            self._owed_since_s = now_s
        self._owed += messages
        self._owed_bytes += size

    def owes(self, now_s: float) -> bool:
        """Whether the peer should be told now what has arrived."""
        if not self._owed:
            return False
        return (
            self._owed >= CONFIRM_AFTER
            or self._owed_bytes >= self._window_bytes // 4
            or now_s - self._owed_since_s >= CONFIRM_LATER_S
        )

    def told(self) -> None:
        """The peer is told of `received`."""
        self._owed = self._owed_bytes = 0
