"""Links between the manager and clients on other nodes: sessions over encrypted connections that may break."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from exex.errors import ProtocolError
from exex.protocol.payload import Buffer
from exex.transport.base import GONE, Announced
from exex.transport.sessions import TOKEN_BYTES, ClientSession, ServerSessions
from exex.transport.zeromq import Caller, Context, Listener

ATTEMPT_S = 5.0
"""How long one attempt to connect may take."""

PAUSE_S = 0.25
"""Between two attempts."""

_REPORT_S = 1.0  # refusals are told of once in so long
_CLOSE_S = 5.0


class Keys(NamedTuple):
    """What a client proves itself with, and what the server must prove; keys are texts of 40 characters."""

    server: str
    public: str
    secret: str


class CurveServer(Announced):
    """The manager's end. Peers are numbered from 0 in the order of their first words.

    ZeroMQ has a thread that moves messages, and a full window is opened by a word that wakes.

    Args:
        listener: where clients come.
        grace_s: silence after which a client is gone.
    """

    def __init__(self, listener: Listener, grace_s: float) -> None:
        self._listener = listener
        self._sessions = ServerSessions(grace_s)
        self._reported_s = 0.0
        self._closed = False

    def fileno(self) -> int:
        """See `Link.fileno`."""
        return -1 if self._closed else self._listener.fileno()

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self._sessions.post(peer, frames)

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        sessions = self._sessions
        arrived = sessions.receive()
        while arrived is None:
            got = self._listener.receive()
            if got is None:
                self.progress()
                return sessions.receive()
            sessions.hear(*got, time.monotonic())
            arrived = sessions.receive()
        return arrived

    def progress(self) -> bool:
        """See `Link.progress`. False also while a client does not take what waits for it: what it says will wake us."""
        if self._closed:
            return False
        now_s = time.monotonic()
        leaving = self._sessions.outgoing(now_s)
        for connection, frames in leaving:
            if not self._listener.send(connection, frames):
                self._sessions.disconnected(connection)
        if leaving:
            self._listener.sent()
        if (self._listener.refused or self._sessions.refused) and now_s - self._reported_s > _REPORT_S:
            self._reported_s = now_s
            self._report()
        return False

    def _report(self) -> None:
        refused = [*self._listener.refused, *(f"a client that breaks the protocol: {why}" for _, why in self._sessions.refused)]
        self._listener.refused.clear()
        self._sessions.refused.clear()
        for text in dict.fromkeys(refused):
            count = refused.count(text)
            times = f" ({count} times)" if count > 1 else ""
            print(f"exex: refused {text}{times}", file=sys.stderr, flush=True)

    def kept_bytes(self, peer: int) -> int:
        """Bytes for a peer that it has not confirmed."""
        return self._sessions.kept_bytes(peer)

    def drop(self, peer: int) -> None:
        """See `Server.drop`."""
        self._sessions.drop(peer, time.monotonic())

    def is_settled(self) -> bool:
        """Whether all clients have what they were sent."""
        return self._sessions.is_settled()

    def close(self) -> None:
        """See `Link.close`."""
        if not self._closed:
            self._sessions.end(time.monotonic())
            self.progress()
            self._closed = True
            self._listener.close()


class CurveLink(Announced):
    """A client's end; its only peer is 0, the manager.

    Args:
        endpoints: `host:port`, to be tried in turn.

    Attributes:
        error: why there is no connection at the moment, or for ever; "" while there is one.
    """

    def __init__(self, endpoints: Sequence[str], keys: Keys) -> None:
        self._endpoints = list(endpoints)
        self._keys = keys
        self._context = Context()
        self._session = ClientSession(os.urandom(TOKEN_BYTES), time.monotonic())
        self._caller: Caller | None = None
        self._attempts = 0
        self._attempt_s = -ATTEMPT_S
        self._told = False  # of the end
        self._closed = False
        self.error = ""

    def fileno(self) -> int:
        """See `Link.fileno`."""
        return self._context.fileno()

    def transferring(self) -> bool:
        """See `Link.transferring`: the manager has not confirmed everything."""
        return not self._session.delivery.is_settled() and not self._session.error

    def is_connected(self) -> bool:
        """Whether the manager has answered on this connection."""
        return self._session.is_open

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        if self._closed or self._session.error:
            raise ConnectionError(self._session.error or "the link is closed")
        self._session.post(frames)
        self._turn(time.monotonic())

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        session = self._session
        if not session.arrived and not self._closed:
            self._turn(time.monotonic())
        if session.arrived:
            return 0, session.arrived.popleft()
        if session.error and not self._told:
            self._told = True
            self.error = session.error
            return 0, GONE
        return None

    def progress(self) -> bool:
        """See `Link.progress`. False also without a connection: it is made by `receive`."""
        if not self._closed:
            self._turn(time.monotonic())
        return False

    def _turn(self, now_s: float) -> None:
        """Take what has arrived, see to the connection, and send what may go."""
        session = self._session
        caller = self._caller
        if caller is not None:
            try:
                while (frames := caller.receive()) is not None:
                    session.hear_frames(frames, now_s)
            except ProtocolError as error:
                session.error = session.error or f"the manager and this client do not understand each other: {error}"
        if session.error:
            if caller is not None:
                self._put(caller)  # the manager waits for what confirms its last words
            return
        if session.is_lost(now_s):
            why = f"; the last attempt to reach it: {self.error}" if self.error else ""
            session.error = f"the manager was not heard of for {session.grace_s:g} s{why}"
            return
        if caller is not None and self._is_bad(caller, now_s):
            caller.close(wait=False)
            caller = self._caller = None
            session.disconnected()
        if caller is None and now_s - self._attempt_s >= PAUSE_S:
            caller = self._connect(now_s)
        if caller is not None:
            session.flush(now_s)
            self._put(caller)

    def _put(self, caller: Caller) -> None:
        outgoing = self._session.outgoing
        if outgoing:
            for frames in outgoing:
                caller.send(frames)
            outgoing.clear()
            caller.sent()

    def _is_bad(self, caller: Caller, now_s: float) -> bool:
        """Whether another connection is to be tried."""
        if self._session.is_open:
            self.error = caller.broken or ("it is silent" if self._session.is_silent(now_s) else "")
        else:
            self.error = caller.broken or ("no answer" if now_s - self._attempt_s >= ATTEMPT_S else "")
        return bool(self.error)

    def _connect(self, now_s: float) -> Caller:
        endpoint = self._endpoints[self._attempts % len(self._endpoints)]
        self._attempts += 1
        self._attempt_s = now_s
        self._caller = Caller(self._context, endpoint, *self._keys)
        self._session.connect(now_s)
        return self._caller

    def close(self) -> None:
        """See `Link.close`. Tells the manager, and stays until it has heard, for some seconds at the most."""
        if self._closed:
            return
        session = self._session
        give_up_s = time.monotonic() + _CLOSE_S
        while session.grace_s and self.transferring() and time.monotonic() < give_up_s:
            self._turn(time.monotonic())
            self._context.wait(0.05)
        if session.is_open and not session.error:
            session.end(time.monotonic())
            self._turn(time.monotonic())
        self._closed = True
        if self._caller is not None:
            self._caller.close(wait=True)
        self._context.close()
