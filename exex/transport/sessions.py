"""Sessions of clients that come over a network: what both ends say to keep one alive over broken connections. Pure.

A *session* is a client's, from its first word to its last. It has a random token and may use one connection after the other;
a new one takes the place of the older. Frame 0 of all that travels is a header: kind, number, and the number of
the last message that has arrived here.

client -> manager: `OPEN` (frame 1: the token; number: twice that of the connection, 1, 2, ..., and one more if the session was
open before).
manager -> client: `OPENED` (frame 1: the grace period), `REFUSED` (frame 1: the reason).
both: `DATA` (a message), `PIECE` (of a large one: see `pieces`), `WORD` (still here; number: of the last message sent), `AGAIN`
(something is missing), `END` (number: of the last message; nothing follows).
"""

from __future__ import annotations

import struct
from collections import deque
from enum import IntEnum

from exex.errors import ProtocolError
from exex.protocol.payload import Buffer
from exex.transport.base import GONE
from exex.transport.delivery import Delivery
from exex.transport.pieces import Assembly, Piece, split

BEAT_S = 2.0
"""Silence after which an end says that it is still here."""

SILENT_S = 8.0
"""Silence after which a client tries another connection."""

LOOK_S = 0.02
"""How often the manager's end looks at clients of which it hears nothing."""

TOKEN_BYTES = 16

_HEADER = struct.Struct("<4sBQQ")
_MAGIC = b"exx1"
_GRACE = struct.Struct("<d")
_AGAIN_S = 1.0  # at the most once in so long
_FAREWELL_S = 30.0  # for how long after an end its confirmation is repeated

Frames = list[Buffer]


class Kind(IntEnum):
    """See the module docstring."""

    OPEN = 1
    OPENED = 2
    REFUSED = 3
    DATA = 4
    WORD = 5
    AGAIN = 6
    END = 7
    PIECE = 8


def header(kind: Kind, number: int, received: int) -> bytes:
    """Frame 0."""
    return _HEADER.pack(_MAGIC, kind, number, received)


def read_header(frames: Frames) -> tuple[Kind, int, int]:
    """Raises:
    ProtocolError: frame 0 is no header.
    """
    try:
        magic, kind, number, received = _HEADER.unpack(frames[0])
        if magic != _MAGIC:
            raise ValueError
        return Kind(kind), number, received
    except (struct.error, ValueError, IndexError):
        raise ProtocolError("what arrives is not of this protocol") from None


class _End:
    """What both ends of a session do alike.

    Attributes:
        outgoing: for the wire.
        arrived: complete messages.
        ended: the peer has said END, and all before it has arrived.
    """

    def __init__(self, now_s: float) -> None:
        self.delivery = Delivery()
        self.outgoing: list[Frames] = []
        self.arrived: deque[Frames] = deque()
        self.ended = False
        self.heard_s = now_s
        self.is_open = False
        self._said_s = now_s
        self._asked_s = -_AGAIN_S
        self._end_said = False
        self._end_number = -1  # of the peer's last message, once it has said so
        self._assembly = Assembly()

    def post(self, frames: Frames) -> None:
        """Accept a message for the peer."""
        for piece in split(frames):
            self.delivery.post(piece)

    def say(self, kind: Kind, number: int, now_s: float, *frames: Buffer) -> None:
        """Something for the wire."""
        self.outgoing.append([header(kind, number, self.delivery.received), *frames])
        self.delivery.told()
        self._said_s = now_s

    def end(self, now_s: float) -> None:
        """Nothing more will be posted."""
        self.flush(now_s)
        self._end_said = True
        if self.is_open:
            self.say(Kind.END, self.delivery.posted, now_s)

    def flush(self, now_s: float) -> None:
        """Put what may go now into `outgoing`."""
        if not self.is_open:
            return
        while (following := self.delivery.next()) is not None:
            self.say(Kind.PIECE if type(following[1]) is Piece else Kind.DATA, following[0], now_s, *following[1])
        if self.delivery.owes(now_s) or now_s - self._said_s >= BEAT_S:
            kind = Kind.END if self._end_said else Kind.WORD
            self.say(kind, self.delivery.posted, now_s)

    def resume(self, received: int, now_s: float) -> None:
        """A connection has begun; the peer has messages up to `received`."""
        self.delivery.again(received)
        self.is_open = True
        self.heard_s = now_s
        if self._end_said:
            self.say(Kind.END, self.delivery.posted, now_s)

    def hear(self, kind: Kind, number: int, received: int, frames: Frames, now_s: float) -> None:
        """A word of the open session.

        Raises:
            ProtocolError: it cannot be right.
        """
        self.heard_s = now_s
        delivery = self.delivery
        if kind == Kind.AGAIN:
            delivery.again(received)
            return
        delivery.confirmed(received)
        if kind in (Kind.DATA, Kind.PIECE):
            if number > delivery.received + 1:
                self._ask_again(now_s)
            elif delivery.take(number, sum(memoryview(frame).nbytes for frame in frames[1:]), now_s):
                message = frames[1:] if kind == Kind.DATA else self._assembly.add(frames[1:])
                if message is not None:
                    self.arrived.append(message)
        elif kind == Kind.WORD:
            if number > delivery.received:
                self._ask_again(now_s)
        elif kind == Kind.END:
            self._end_number = number
            self.ended = False  # it may not have heard that we know
            if number > delivery.received:
                self._ask_again(now_s)
        else:
            raise ProtocolError(f"{kind.name} in an open session")
        if not self.ended and 0 <= self._end_number <= delivery.received:
            self.ended = True
            self.say(Kind.WORD, delivery.posted, now_s)

    def _ask_again(self, now_s: float) -> None:
        if now_s - self._asked_s >= _AGAIN_S:
            self._asked_s = now_s
            self.say(Kind.AGAIN, 0, now_s)


class ClientSession(_End):
    """A client's end.

    Args:
        token: random, of `TOKEN_BYTES`.

    Attributes:
        grace_s: after which the manager gives up a client of which it hears nothing; 0 until it has said so.
        error: why nothing more can come; "" while it can.
    """

    def __init__(self, token: bytes, now_s: float) -> None:
        super().__init__(now_s)
        self.token = token
        self.grace_s = 0.0
        self.error = ""
        self._connections = 0

    def connect(self, now_s: float) -> None:
        """Another connection: say who we are. What was for the old one is dropped."""
        self.outgoing.clear()
        self.is_open = False
        self._connections += 1
        self.say(Kind.OPEN, 2 * self._connections + bool(self.grace_s), now_s, self.token)

    def disconnected(self) -> None:
        """There is no connection."""
        self.is_open = False
        self.outgoing.clear()

    def hear_frames(self, frames: Frames, now_s: float) -> None:
        """Something has arrived from the manager.

        Raises:
            ProtocolError: it cannot be right.
        """
        kind, number, received = read_header(frames)
        if kind == Kind.REFUSED:
            self.error = bytes(frames[1]).decode(errors="replace") if len(frames) == 2 else "refused"
        elif kind == Kind.OPENED:
            if len(frames) != 2 or len(frames[1]) != _GRACE.size:
                raise ProtocolError("OPENED without a grace period")
            self.grace_s = _GRACE.unpack(frames[1])[0]
            self.resume(received, now_s)
        elif self.is_open:
            self.hear(kind, number, received, frames, now_s)
            if self.ended and not self.error:
                self.error = "the manager has ended"

    def is_silent(self, now_s: float) -> bool:
        """Whether the connection should be given up for another one."""
        return now_s - self.heard_s >= SILENT_S

    def is_lost(self, now_s: float) -> bool:
        """Whether the manager has given this client up, or will have when it could be reached again."""
        return bool(self.grace_s) and now_s - self.heard_s >= self.grace_s


class _ServerEnd(_End):
    """The manager's end of one session."""

    def __init__(self, number: int, connection: bytes, now_s: float) -> None:
        super().__init__(now_s)
        self.number = number
        self.connection = connection
        self.connections = 0  # how many there have been
        self.dropped = False
        self.gone = False


class ServerSessions:
    """The manager's ends of all sessions. Connections have names, unique while they last.

    Args:
        grace_s: for how long a client may be silent.

    Attributes:
        refused: (connection, reason) of those that broke the rules; whoever reads them clears them.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._ends: dict[int, _ServerEnd] = {}
        self._next_number = 0
        self._by_token: dict[bytes, _ServerEnd] = {}
        self._by_connection: dict[bytes, _ServerEnd] = {}
        self._farewell: dict[bytes, float] = {}  # tokens of sessions that are over, until when
        self._ready: deque[_ServerEnd] = deque()
        self._others: list[tuple[bytes, Frames]] = []
        self._touched: dict[_ServerEnd, None] = {}  # that may have something for the wire
        self._looked_s = 0.0  # when all were looked at
        self.refused: deque[tuple[bytes, str]] = deque(maxlen=100)

    def hear(self, connection: bytes, frames: Frames, now_s: float) -> None:
        """Something has arrived. Who breaks the rules is at its end."""
        end = self._by_connection.get(connection)
        if end is not None:
            self._touched[end] = None
        try:
            kind, number, received = read_header(frames)
            if kind == Kind.OPEN:
                self._open(connection, number, received, frames, now_s)
            elif end is not None:
                end.hear(kind, number, received, frames, now_s)
                if end.dropped:
                    end.arrived.clear()  # it only confirms our last words
                else:
                    self._ready.append(end)
        except ProtocolError as error:
            self.refused.append((connection, str(error)))
            if end is not None:
                self.drop(end.number, now_s)

    def _open(self, connection: bytes, number: int, received: int, frames: Frames, now_s: float) -> None:
        if len(frames) != 2 or len(frames[1]) != TOKEN_BYTES:
            raise ProtocolError("OPEN without a token")
        token = bytes(frames[1])
        end = self._by_token.get(token)
        if end is None:
            if number % 2:
                self._refuse(connection, token)
                return
            end = self._ends[self._next_number] = _ServerEnd(self._next_number, connection, now_s)
            self._next_number += 1
            self._by_token[token] = end
        elif number // 2 <= end.connections:
            return  # it was given up before it came here
        elif self._by_connection.get(end.connection) is end:
            del self._by_connection[end.connection]  # whatever still comes from there is old
        end.outgoing.clear()
        end.connection, end.connections = connection, number // 2
        self._by_connection[connection] = end
        end.is_open = False
        try:
            end.delivery.again(received)
        except ProtocolError:
            self.drop(end.number, now_s)
            raise
        end.say(Kind.OPENED, 0, now_s, _GRACE.pack(self._grace_s))
        end.resume(received, now_s)
        self._touched[end] = None
        self._ready.append(end)

    def _refuse(self, connection: bytes, token: bytes) -> None:
        reason = "its session is over" if token in self._farewell else f"it was not heard of for {self._grace_s:g} s"
        text = f"the manager knows this client no longer: {reason}".encode()
        self._others.append((connection, [header(Kind.REFUSED, 0, 0), text]))

    def post(self, peer: int, frames: Frames) -> None:
        """Queue a message.

        Raises:
            ConnectionError: the peer is gone.
        """
        end = self._ends.get(peer)
        if end is None or end.gone or end.dropped:
            raise ConnectionError(f"client {peer} is gone")
        end.post(frames)
        self._touched[end] = None

    def receive(self) -> tuple[int, Frames] | None:
        """The next message and its sender; `(sender, GONE)` once at its end."""
        while self._ready:
            end = self._ready[0]
            if end.arrived and not end.dropped:
                return end.number, end.arrived.popleft()
            self._ready.popleft()
            if (end.ended or end.dropped) and not end.gone:
                end.gone = True
                return end.number, GONE
        return None

    def kept_bytes(self, peer: int) -> int:
        """Bytes for a peer that it has not confirmed."""
        end = self._ends.get(peer)
        return 0 if end is None else end.delivery.kept_bytes

    def drop(self, peer: int, now_s: float) -> None:
        """Hear no more of a peer. What is queued for it still leaves, and then its end."""
        end = self._ends.get(peer)
        if end is not None and not end.dropped:
            end.dropped = True
            end.end(now_s)
            self._touched[end] = None
            self._ready.append(end)

    def end(self, now_s: float) -> None:
        """Tell all that this is the end."""
        for end in self._by_token.values():
            if not end.dropped:
                self.drop(end.number, now_s)

    def outgoing(self, now_s: float) -> list[tuple[bytes, Frames]]:
        """What is to be put on the wire, and where. Also sees who has been silent for too long."""
        leaving, self._others = self._others, []
        if now_s - self._looked_s >= LOOK_S:
            self._look_at_all(now_s)
        for end in self._touched:
            end.flush(now_s)
            if end.outgoing:
                leaving += [(end.connection, frames) for frames in end.outgoing]
                end.outgoing = []
        self._touched.clear()
        return leaving

    def _look_at_all(self, now_s: float) -> None:
        stood_still_s = now_s - self._looked_s
        self._looked_s = now_s
        for token, end in list(self._by_token.items()):
            self._touched[end] = None
            if stood_still_s > BEAT_S:
                end.heard_s += min(stood_still_s, now_s - end.heard_s)  # nobody has listened
            is_silent = now_s - end.heard_s >= self._grace_s
            if is_silent and not end.dropped:
                end.dropped = True
                self._ready.append(end)
            if end.gone and (end.ended or is_silent or end.delivery.is_settled()):
                self._forget(token, end, now_s)

    def disconnected(self, connection: bytes) -> None:
        """What was sent there did not leave."""
        end = self._by_connection.pop(connection, None)
        if end is not None and end.connection == connection:
            end.is_open = False

    def is_settled(self) -> bool:
        """Whether every client that is still there has confirmed everything that it was sent."""
        return all(end.ended or end.delivery.is_settled() for end in self._by_token.values())

    def _forget(self, token: bytes, end: _ServerEnd, now_s: float) -> None:
        del self._by_token[token]
        del self._ends[end.number]
        self._touched.pop(end, None)
        if self._by_connection.get(end.connection) is end:
            del self._by_connection[end.connection]
        for old in [old for old, until_s in self._farewell.items() if until_s < now_s]:
            del self._farewell[old]
        if end.ended:
            self._farewell[token] = now_s + _FAREWELL_S
